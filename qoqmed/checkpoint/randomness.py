"""The state of the global random streams of one process: torch (CPU and GPUs), numpy, Python.

The loop's own draws come from (seed, step, case) and need none of this: it serves code that draws from the global ones.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from qoqmed.checkpoint.folder import ALONE, Ranks, read_tensors


def random_state() -> dict[str, Tensor]:
    """This process's streams as tensors."""
    _, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    nothing = float("nan")
    state = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor(words, dtype=torch.int64),
        "python_gauss": torch.tensor(nothing if gauss is None else gauss, dtype=torch.float64),
        "numpy": torch.from_numpy(np.asarray(keys, dtype=np.int64)),
        "numpy_position": torch.tensor([position, has_gauss], dtype=torch.int64),
        "numpy_gauss": torch.tensor(cached, dtype=torch.float64),
    }
    if torch.cuda.is_available():
        state |= {f"cuda_{i}": value for i, value in enumerate(torch.cuda.get_rng_state_all())}
    return state


def set_random_state(state: Mapping[str, Tensor]) -> None:
    """The inverse of `random_state`; streams of GPUs that this process lacks are left out."""
    torch.set_rng_state(state["torch"])
    gauss = state["python_gauss"].item()
    random.setstate((3, tuple(state["python"].tolist()), None if math.isnan(gauss) else gauss))
    position, has_gauss = state["numpy_position"].tolist()
    keys = state["numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, position, has_gauss, state["numpy_gauss"].item()))
    for i in range(torch.cuda.device_count()):
        if f"cuda_{i}" in state:
            torch.cuda.set_rng_state(state[f"cuda_{i}"], i)


def load_random(path: Path, ranks: Ranks = ALONE) -> dict[str, Tensor] | None:
    """This rank's streams of a checkpoint; None where none were saved, or by another number of processes."""
    file = path / f"random-{ranks.index:05d}.safetensors"
    world = json.loads((path / "COMPLETE").read_text(encoding="utf-8"))["world"]
    return read_tensors(file) if world == ranks.world and file.exists() else None
