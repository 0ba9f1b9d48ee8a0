"""The micro-batch of an update that was not finite, in a file, to find out why."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from qoqmed.checkpoint.files import replace_text
from qoqmed.checkpoint.folder import write_tensors
from qoqmed.run import RunFolder
from qoqmed.types import Group
from qoqmed.updating import Broken

SHARED = ("sources", "response", "lengths", "trainable", "grids")
TEXT = ("token_ids", "targets", "positions")


DUMPS = 64  # packs of updates that were left out, kept by each process of a run


def keep_broken(
    run: RunFolder, step: int, rank: int, broken: Sequence[Broken], groups: tuple[Group, ...], level: str
) -> None:
    """Keep what an update that was left out had come from in the run's `dumps/`, and say so in its log."""
    folder = run.path / "dumps"
    for one in broken:
        number = len(list(folder.glob(f"*-{rank:05d}-*.safetensors")))
        if number == DUMPS:
            run.warn(f"step {step}: update left out; {folder} holds enough of them")
            break
        path = folder / f"step-{step:08d}-{rank:05d}-{number}.safetensors"
        write_dump(path, one, groups, level)
        run.warn(f"step {step}: update left out; its pack is kept in {path}")


def write_dump(path: Path, broken: Broken, groups: tuple[Group, ...], level: str) -> None:
    """Write `path` (safetensors: layout of the pack, and what was known of every response token) and beside it a .json
    with the loss and the cases.

    groups: of this rank's step. level: of the recipe's `traces`: with `text` the tokens too, with `full` the media.
    """
    names = (*SHARED, *(TEXT if level in ("text", "full") else ()), *(("pixel_values",) if level == "full" else ()))
    known = {
        **vars(broken.scores),
        "log_probs": broken.log_probs,
        **{name: getattr(broken.pack, name) for name in names},
    }
    series = {f"series/{name}": value for name, value in broken.pack.series.items()} if level == "full" else {}
    tensors = {name: value.cpu() for name, value in (known | series).items() if isinstance(value, Tensor)}
    path.parent.mkdir(parents=True, exist_ok=True)  # another node's disk
    write_tensors(path, tensors)
    rollouts = [{"case": groups[g].case.id, "rollout": groups[g].rollouts[i].index} for g, i in broken.members]
    told = {"loss": str(float(broken.loss)), "responses": rollouts}
    replace_text(path.with_suffix(".json"), json.dumps(told, indent=2))
