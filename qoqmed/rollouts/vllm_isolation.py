"""What a library in this process must not change for the trainer, put back after it has run."""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

HANDLED = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def isolated(environment: Mapping[str, str]) -> Iterator[None]:
    """Inside, `environment` is set besides, and warnings are not shown. Afterwards all is as it was: random streams of
    torch, its devices, numpy and Python; threads, default dtype and device; environment; logging; signal handlers and
    the hook for uncaught errors (torch.distributed would add itself to it with every engine)."""
    kept = _state()
    os.environ.update(environment)
    try:
        with warnings.catch_warnings(), torch.random.fork_rng():
            warnings.simplefilter("ignore")
            yield
    finally:
        _restore(kept)


def _state() -> dict[str, Any]:
    root = logging.getLogger()
    return {
        "environment": dict(os.environ),
        "numpy": np.random.get_state(),
        "python": random.getstate(),
        "set_num_threads": torch.set_num_threads,  # vLLM puts a stub in its place
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "grad": torch.is_grad_enabled(),
        "logging": (root.level, list(root.handlers), logging.root.manager.disable),
        "levels": {name: logging.getLogger(name).level for name in ("torch", "transformers", "lightning")},
        "excepthook": sys.excepthook,
        "signals": {number: signal.getsignal(number) for number in HANDLED},
    }


def _restore(kept: Mapping[str, Any]) -> None:
    for name in set(os.environ) - set(kept["environment"]):
        del os.environ[name]
    os.environ.update(kept["environment"])
    np.random.set_state(kept["numpy"])
    random.setstate(kept["python"])
    torch.set_num_threads = kept["set_num_threads"]
    torch.set_num_threads(kept["threads"])
    torch.set_default_dtype(kept["dtype"])
    if torch.get_default_device() != kept["device"]:
        torch.set_default_device(kept["device"])
    torch.set_grad_enabled(kept["grad"])
    root = logging.getLogger()
    root.level, root.handlers[:], logging.root.manager.disable = kept["logging"]
    for name, level in kept["levels"].items():
        logging.getLogger(name).setLevel(level)
    sys.excepthook = kept["excepthook"]
    if threading.current_thread() is threading.main_thread():  # only there can they be changed
        for number, handler in kept["signals"].items():
            signal.signal(number, handler)
