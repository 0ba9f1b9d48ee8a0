"""Exchange files: JSON Lines, an object a line, each with its place for what is told of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qoqmed.errors import DataError, Problem


def rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """("file:line", object); blank lines count as lines. Raises DataError at the first line that is none."""
    if not path.is_file():
        raise DataError(Problem("the file does not exist", where=str(path)))
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            expected = "one JSON object a line, in UTF-8"
            raise DataError(Problem(f"not JSON: {error}", where, repr(line[:60])[1:], expected)) from error
        if not isinstance(row, dict):
            raise DataError(Problem("not a JSON object", where, repr(line[:60])[1:], "one JSON object a line"))
        yield where, row
