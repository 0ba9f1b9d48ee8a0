"""Metrics as one wide table: a row per call, a column per name. New names widen the table."""

from __future__ import annotations

import csv
import os
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from math import inf
from pathlib import Path
from typing import Any

from lightning.fabric.loggers import Logger

from qoqmed.loggers.scalars import plain


class CSVLogger(Logger):
    """root_dir: the run's folder. file: the table's name in it.

    Every row is in the file when `log_metrics` returns. Numbers keep their full precision; NaN and infinities stand as
    `nan` and `inf`; a cell without a value is empty. Calls for one step make rows of their own.
    """

    def __init__(self, root_dir: str | Path, file: str = "metrics.csv") -> None:
        super().__init__()
        self.path = Path(root_dir) / file
        self._columns: list[str] | None = None

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @property
    def root_dir(self) -> str:
        return str(self.path.parent)

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        row = {"step": "" if step is None else step, **plain(metrics)}
        columns = self._header()
        new = [name for name in row if name not in columns]
        if new:
            columns += new
            self._rewrite(columns)
        with self.path.open("a", encoding="utf-8", newline="") as file:
            csv.DictWriter(file, columns, lineterminator="\n").writerow(row)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: the run's folder holds recipe.yaml."""

    def rewind(self, step: int) -> None:
        """Drop the rows of later steps, and a last row that a kill cut short: a resumed run writes them again."""
        if self.path.exists():
            self._rewrite(self._header(), step)

    def _header(self) -> list[str]:
        if self._columns is None:
            with self.path.open("a+", encoding="utf-8", newline="") as file:
                file.seek(0)
                self._columns = next(csv.reader(file), [])
        return self._columns

    def _rewrite(self, columns: Sequence[str], last: float = inf) -> None:
        draft = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        with draft.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(row for row in self._rows() if not row["step"] or int(row["step"]) <= last)
        draft.replace(self.path)

    def _rows(self) -> Iterator[dict[str, str]]:
        with self.path.open(encoding="utf-8", newline="") as file:
            yield from csv.DictReader(line for line in file if line.endswith("\n"))
