"""Exchange files: JSON Lines, an object a line, each with its place for what is told of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qoqmed.errors import DataError, Problem

Placed = tuple[str, dict[str, Any]]  # ("file:line", object)


def rows(path: Path) -> list[Placed]:
    """All objects of the file. Raises DataError naming every line that is none."""
    found, problems = read(path)
    if problems:
        raise DataError(problems)
    return found


def read(path: Path) -> tuple[list[Placed], list[Problem]]:
    """Objects, and what is wrong with the other lines; blank ones count as lines. Raises DataError without a file."""
    if not path.is_file():
        raise DataError(Problem("the file does not exist", where=str(path)))
    found: list[Placed] = []
    problems: list[Problem] = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            expected = "one JSON object a line, in UTF-8"
            problems.append(Problem(f"not JSON: {error}", where, repr(line[:60])[1:], expected))
            continue
        if isinstance(row, dict):
            found.append((where, row))
        else:
            problems.append(Problem("not a JSON object", where, repr(line[:60])[1:], "one JSON object a line"))
    return found, problems
