"""What can go wrong, as the user is told: what, where, got, expected, how to mend it.

A `UserError` is the user's to mend: the command line prints it without a traceback and exits with 2.
Every other exception is a failure of the work and exits with 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches


@dataclass(frozen=True)
class Problem:
    """One mistake in the input. `where` is a YAML path, a row id or a file; empty parts are left out of the text."""

    what: str
    where: str = ""
    got: str = ""
    expected: str = ""
    mend: str = ""

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        rows = [("got", self.got), ("expected", self.expected), ("mend", self.mend)]
        return "\n".join([head, *(f"    {name + ':':<10}{text}" for name, text in rows if text)])


class UserError(Exception):
    """Wrong input. Carries every problem found, so that all are reported at once."""

    def __init__(self, problems: Problem | Sequence[Problem]) -> None:
        self.problems: tuple[Problem, ...] = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))

    def __reduce__(self) -> tuple[type[UserError], tuple[tuple[Problem, ...]]]:
        return type(self), (self.problems,)  # ranks tell each other of errors


class RecipeError(UserError):
    """A recipe, or an override of it, is wrong."""


class PluginError(UserError):
    """A plugin is unknown, offered twice, or broken; names its distribution and entry point."""


class DataError(UserError):
    """A data file or one of its rows is wrong; `where` names the row's id."""


class MediaError(DataError):
    """A medium is missing, unreadable, corrupt or refused; `where` names the row's id, `got` the path."""


class RunError(UserError):
    """A run folder or a checkpoint cannot be used: in use, incomplete, or of another recipe."""


def near(word: str, known: Sequence[str]) -> str:
    """A hint for a misspelt word: "did you mean 'a' or 'b'?", or nothing when no known word is close."""
    close = get_close_matches(word, list(known), n=3, cutoff=0.6)
    return f"did you mean {' or '.join(repr(word) for word in close)}?" if close else ""
