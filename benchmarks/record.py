"""What every benchmark shares: versions and commit beside the figures, a table on the screen, JSON in `results/`."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parent.parent


def environment() -> dict[str, Any]:
    """Device, its load, versions and commit."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    dirty = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True, check=False)
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 1),  # of other work, at the start
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "transformers", "lightning", "qoqmed")},
        "commit": commit.stdout.strip(),
        "dirty": bool(dirty.stdout.strip()),
    }


STARTED = environment()  # the code that is measured is the one that was read


def keep(name: str, rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> Path:
    """Write results/NAME.json."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    content = {"benchmark": name, "environment": STARTED, "settings": dict(settings), "rows": list(rows)}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path


def show(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """A table of the rows' keys."""
    table = Table(title=title)
    for name in rows[0]:
        table.add_column(name, justify="left" if isinstance(rows[0][name], str) else "right")
    for row in rows:
        table.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=140).print(table)
