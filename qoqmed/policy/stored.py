"""What a folder that `qoqmed export` made says of its own use, as keys of a recipe. A plain checkpoint says nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qoqmed.errors import Problem, UserError


def settings(folder: Path) -> dict[str, Any]:
    """`data` (frames and pixel bounds), `model.dtype` and `rollout.max_new_tokens`, as far as the folder has them.

    Raises UserError where its files are damaged.
    """
    processor = _read(folder / "processor_config.json")
    if "frames" not in processor:
        return {}
    size = processor.get("image_processor", {}).get("size", {})
    bounds = {"min_pixels": size.get("shortest_edge"), "max_pixels": size.get("longest_edge")}
    answer = {"max_new_tokens": _read(folder / "generation_config.json").get("max_new_tokens")}
    dtype = {"dtype": _read(folder / "config.json").get("dtype")}
    found = {"data": {"frames": processor["frames"], **bounds}, "rollout": answer, "model": dtype}
    return {key: {name: value for name, value in own.items() if value is not None} for key, own in found.items()}


def _read(file: Path) -> dict[str, Any]:
    """{} where it is not there."""
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(Problem(f"the file is no JSON: {error}", str(file), mend="export the run again")) from error
    if not isinstance(found, dict):
        raise UserError(Problem("the file holds no JSON object", str(file), mend="export the run again"))
    return found
