"""What every test shares: one CPU thread, steady hypothesis runs, and which tests this machine can run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models gain nothing from a second thread, here and in subprocesses

settings.register_profile("tests", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("tests")

pytest_plugins = ["tiny_run"]
REPOSITORY = Path(__file__).resolve().parent.parent
_LEFT_OUT = pytest.StashKey[list[str]]()


def real_data_root() -> Path:
    """The folder of the real clinical data, there or not: QOQMED_TEST_DATA, else ../shared/data."""
    return Path(os.environ.get("QOQMED_TEST_DATA") or REPOSITORY.parent / "shared" / "data").resolve()


@pytest.fixture(scope="session")
def real_root() -> Path:
    return real_data_root()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselects what this machine cannot run; the summary says so."""
    lines: list[str] = []
    root = real_data_root()
    real = {item for item in items if item.get_closest_marker("real")}
    if real and not (root / "manifest.jsonl").is_file():
        lines.append(f"{len(real)} tests need real clinical data, which is not in {root} (set QOQMED_TEST_DATA)")
    else:
        real = set()
    gpu = {item for item in items if item.get_closest_marker("gpu")}
    if gpu and not _has_cuda():
        lines.append(f"{len(gpu)} tests need a CUDA device")
    else:
        gpu = set()
    if real or gpu:
        config.hook.pytest_deselected(items=[item for item in items if item in real | gpu])
        items[:] = [item for item in items if item not in real | gpu]
    config.stash[_LEFT_OUT] = lines


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in config.stash.get(_LEFT_OUT, []):
        terminalreporter.write_line(f"deselected: {line}", yellow=True)
