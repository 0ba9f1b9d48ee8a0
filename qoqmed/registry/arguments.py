"""Checks of a plugin constructor's arguments: every one that is wrong is told at once, with near matches.

check(one_of("kl", kl, KL_ESTIMATORS), within("epochs", epochs, low=1))
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from qoqmed.errors import Problem, UserError, near


def check(*problems: Problem | None) -> None:
    """Raises UserError with every problem that is not None."""
    found = [problem for problem in problems if problem is not None]
    if found:
        raise UserError(found)


def one_of(name: str, value: str, known: Sequence[str]) -> Problem | None:
    if value in known:
        return None
    return Problem(
        f"unknown {name}", got=repr(value), expected=f"one of {', '.join(known)}", mend=near(str(value), known)
    )


def within(name: str, value: float, low: float = -inf, high: float = inf, above: float = -inf) -> Problem | None:
    """low <= value <= high and value > above."""
    if low <= value <= high and value > above:
        return None
    bounds = [(low, f"at least {low:g}"), (above, f"above {above:g}"), (-high, f"at most {high:g}")]
    return Problem(
        f"{name} is out of range", got=repr(value), expected=", ".join(text for bound, text in bounds if bound != -inf)
    )
