"""What a run was made with: versions, plugins, commit, machine, command. Imports none of the packages."""

from __future__ import annotations

import platform
import socket
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from qoqmed.contracts import GROUPS
from qoqmed.registry import available

PACKAGES = (
    "qoqmed",
    "torch",
    "torchvision",
    "transformers",
    "lightning",
    "torchmetrics",
    "vllm",
    "timm",
    "safetensors",
    "tokenizers",
    "numpy",
    "pillow",
    "omegaconf",
)


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def environment(command: Sequence[str]) -> dict[str, Any]:
    """Everything that a reader of the run's numbers may ask about where they come from."""
    installed = {name: version for name in PACKAGES if (version := _version(name)) is not None}
    plugins = {info.distribution: info.version for group in GROUPS for info in available(group)}
    return {
        "time": now(),
        "command": list(command),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "python": sys.version.split()[0],
        "packages": installed,
        "plugins": plugins,
        "code": commit_of(Path(__file__)),
        "working_folder": str(Path.cwd()),
    }


def commit_of(file: Path) -> dict[str, Any] | None:
    """Commit of the git checkout that tracks `file`, and whether its tree has changes; None outside a checkout."""
    if _git(file.parent, "ls-files", "--error-unmatch", file.name) is None:
        return None  # also where site-packages lies inside somebody's checkout
    commit, changes = _git(file.parent, "rev-parse", "HEAD"), _git(file.parent, "status", "--porcelain")
    return {"commit": commit, "dirty": bool(changes)}


def _git(folder: Path, *arguments: str) -> str | None:
    """Output of a git command, None where it fails or there is no git."""
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
