"""How a medium is refused: one sentence, its path, and how to mend it. The caller adds the row's id with `of_row`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from qoqmed.errors import DataError, MediaError, Problem, UserError


def refused(what: str, path: str | Path, expected: str = "", mend: str = "") -> MediaError:
    """The error to raise for a medium that is not read. `where` stays empty: the loader does not know the row."""
    return MediaError(Problem(what, got=str(path), expected=expected, mend=mend))


@contextmanager
def decoding(kind: str, path: str | Path) -> Iterator[None]:
    """Turns whatever a decoder raises on a bad file into a MediaError; our own errors pass."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # boundary: decoders of corrupt or hostile files raise anything
        cause = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise refused(f"the {kind} cannot be read: {cause}", path, mend="repair or remove the file") from error


@contextmanager
def of_row(where: str) -> Iterator[None]:
    """Names the row (its id, or file:line) in the data errors raised inside, where they do not name one yet."""
    try:
        yield
    except DataError as error:
        named = [replace(problem, where=problem.where or where) for problem in error.problems]
        raise type(error)(named) from error


def need(module: str, extra: str) -> Any:
    """Imports what an extra installs. A missing one is the environment's fault and no row's: a UserError."""
    try:
        return import_module(module)
    except ImportError as error:
        root = module.partition(".")[0]
        raise UserError(
            Problem(
                f"this needs the package '{root}', which cannot be imported: {error}",
                mend=f"pip install 'qoqmed[{extra}]'",
            )
        ) from error
