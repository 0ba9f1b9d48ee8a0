"""A hospital stay of MIMIC-IV, and how its tables and times are found."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal, overload

from qoqmed.errors import DataError, Problem

MOMENT = re.compile(r"\d{4}-[01]\d-[0-3]\d([ T][0-2]\d:[0-5]\d(:[0-5]\d)?)?")
ENDINGS = (".csv.gz", ".csv", ".parquet")


@dataclass(frozen=True)
class Stay:
    """An admission. Inputs lie in [first, stop). los_days: from admission to discharge. died: within 48 hours."""

    id: str
    subject: str
    start: datetime
    first: datetime
    stop: datetime
    los_days: float
    died: bool
    about: str

    def holds(self, time: datetime) -> bool:
        """Whether something of this time is an input."""
        return self.first <= time < self.stop


def moment(text: str) -> datetime | None:
    """A time of MIMIC-IV ("2180-05-06 22:23:00", or a date alone); None where there is none."""
    return datetime.fromisoformat(text) if MOMENT.fullmatch(text) else None


@overload
def table(folder: Path, name: str, optional: Literal[False] = False) -> Path: ...
@overload
def table(folder: Path, name: str, optional: Literal[True]) -> Path | None: ...
def table(folder: Path, name: str, optional: bool = False) -> Path | None:
    """The file of a table, gzipped or not. Raises DataError where one that is needed is not there."""
    found = next((folder / f"{name}{end}" for end in ENDINGS if (folder / f"{name}{end}").is_file()), None)
    if found is None and not optional:
        expected = f"{name} with one of {', '.join(ENDINGS)}"
        raise DataError(Problem("a table of MIMIC-IV is not there", str(folder), expected=expected))
    return found
