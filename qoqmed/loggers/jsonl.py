"""Metrics as JSON Lines: {"step": 3, "reward": 0.5, ...}."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.loggers import Logger

from qoqmed.checkpoint.files import append_row, rewind_rows
from qoqmed.loggers.scalars import plain


class JSONLLogger(Logger):
    """root_dir: the run's folder. file: the name in it.

    Every row is in the file when `log_metrics` returns. NaN and infinities are written as `NaN`, `Infinity` and
    `-Infinity`, which Python's json reads.
    """

    def __init__(self, root_dir: str | Path, file: str = "metrics.jsonl") -> None:
        super().__init__()
        self.path = Path(root_dir) / file

    @property
    def name(self) -> str:
        return "jsonl"

    @property
    def version(self) -> str:
        return ""

    @property
    def root_dir(self) -> str:
        return str(self.path.parent)

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        append_row(self.path, {"step": step, **plain(metrics)})

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: the run's folder holds recipe.yaml."""

    def rewind(self, step: int) -> None:
        """Drop the rows of later steps, and a last row that a kill cut short: a resumed run writes them again."""
        rewind_rows(self.path, step)
