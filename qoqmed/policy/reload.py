"""Does a saved model compute what it did before it was saved? The same conversations, in this process and a clean one.

    python -m qoqmed.policy.reload FOLDER WORK

The clean process knows of transformers and `qoqmed.hf` alone. In WORK it finds `asked.json` and `media.safetensors`;
it leaves `logits.safetensors` and `weights.json` there.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, AutoProcessor

import qoqmed.hf  # noqa: F401  (registers our models)

LAST = 8  # positions of a prompt whose logits are compared: they see all of it

Item = str | tuple[str, npt.NDArray[Any]]  # text, or (modality, array)
Conversation = Sequence[Item]


@torch.no_grad()
def logits(model: Any, processor: Any, asked: Mapping[str, Conversation]) -> dict[str, Tensor]:
    """By name of the conversation: float32 [min(T, LAST), V] of the last positions, on the CPU."""
    model.eval()
    return {name: _last(model, processor, items).float().cpu() for name, items in asked.items()}


def _last(model: Any, processor: Any, items: Conversation) -> Tensor:
    content = [
        {"type": "text", "text": item} if isinstance(item, str) else {"type": item[0], item[0]: item[1]}
        for item in items
    ]
    batch = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return model(**batch, use_cache=False).logits[0, -LAST:].contiguous()  # type: ignore[no-any-return]


def digests(model: nn.Module) -> dict[str, str]:
    """By name: a hash of the dtype, shape and bytes of each weight and saved buffer."""
    out = {}
    for name, value in model.state_dict().items():
        digest = hashlib.blake2b(f"{value.dtype} {tuple(value.shape)}".encode(), digest_size=16)
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        out[name] = digest.hexdigest()
    return out


def in_a_clean_process(
    folder: Path, work: Path, asked: Mapping[str, Conversation], dtype: torch.dtype
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Load `folder` there: its `logits` and `digests`. Raises RuntimeError, with what the process said, where it fails.

    work: an empty folder for what the processes tell each other.
    """
    arrays: dict[str, npt.NDArray[Any]] = {}
    plain: dict[str, list[Any]] = {}
    for name, items in asked.items():
        plain[name] = []
        for item in items:
            if isinstance(item, str):
                plain[name].append(item)
            else:
                arrays[str(len(arrays))] = np.ascontiguousarray(item[1])
                plain[name].append([item[0], str(len(arrays) - 1)])
    told = {"asked": plain, "dtype": str(dtype).removeprefix("torch."), "threads": torch.get_num_threads()}
    (work / "asked.json").write_text(json.dumps(told), encoding="utf-8")
    save_arrays(arrays, work / "media.safetensors")
    command = [sys.executable, "-P", "-m", "qoqmed.policy.reload", str(folder), str(work)]
    offline = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=offline, check=False)
    if done.returncode:
        raise RuntimeError(f"a clean process cannot load it:\n{done.stderr.strip()[-2000:]}")
    found = json.loads((work / "weights.json").read_text(encoding="utf-8"))
    return load_file(work / "logits.safetensors"), found


def main(folder: Path, work: Path) -> None:
    """What the clean process does."""
    told = json.loads((work / "asked.json").read_text(encoding="utf-8"))
    arrays = load_arrays(work / "media.safetensors")
    asked = {
        name: [item if isinstance(item, str) else (item[0], arrays[item[1]]) for item in items]
        for name, items in told["asked"].items()
    }
    torch.set_num_threads(told["threads"])
    model = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=getattr(torch, told["dtype"]), local_files_only=True
    )
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    (work / "weights.json").write_text(json.dumps(digests(model)), encoding="utf-8")
    save_file(logits(model, processor, asked), work / "logits.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
