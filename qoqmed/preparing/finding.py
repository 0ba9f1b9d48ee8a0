"""Patterns of a spec: regular expressions, and globs that stay inside the data set's folder."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Any

from qoqmed.errors import DataError, Problem


def pattern(text: Any, where: str) -> re.Pattern[str]:
    """A regular expression. Raises DataError where it is none."""
    try:  # only compiling tells
        return re.compile(str(text))
    except re.error as error:
        raise DataError(Problem(f"no regular expression: {error}", where, str(text))) from error


def found(root: Path, glob: str) -> list[str]:
    """Names under the root that fit, in order; none for a glob that is blank, absolute, or has ".." in it."""
    path = PurePosixPath(glob)
    if not path.parts or path.is_absolute() or ".." in path.parts:
        return []
    return sorted(item.relative_to(root).as_posix() for item in root.glob(glob))
