"""Checkpoints: committed whole or not at all, safetensors and JSON only, independent of the number of processes."""

from qoqmed.checkpoint.folder import (
    ALONE,
    Loaded,
    Ranks,
    best,
    latest,
    load,
    mark_best,
    prune,
    read_tensors,
    save,
    step_of,
    write_tensors,
)
from qoqmed.checkpoint.randomness import load_random, random_state, set_random_state
from qoqmed.checkpoint.tensors import gather, load_optimizer, optimizer_tensors, restore

__all__ = [
    "ALONE",
    "Loaded",
    "Ranks",
    "best",
    "gather",
    "latest",
    "load",
    "load_optimizer",
    "load_random",
    "mark_best",
    "optimizer_tensors",
    "prune",
    "random_state",
    "read_tensors",
    "restore",
    "save",
    "set_random_state",
    "step_of",
    "write_tensors",
]
