"""1 where the answer is exactly what is right, else 0: the set of labels, or the number, or the text.

The first of these that the case knows: labels of a closed space; a value, equal to `tolerance` (and to the 12 digits
that rounding leaves alone), which the task has read or which is the whole answer; a text, equal but for case, white
space, and marks around it (a LaTeX \\text{} too). `target.text` of a case with labels is its reasoning, and is not
asked for.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence

from qoqmed.registry.arguments import check, within
from qoqmed.types import Case, Reading, Rollout, Verdict

TEXT = re.compile(r"\\(?:text|mathrm|textbf)\{([^{}]*)\}")
NUMBER = re.compile(r"[+-]?(?:\d{1,30}(?:\.\d{0,30})?|\.\d{1,30})(?:e[+-]?\d{1,3})?", re.ASCII | re.IGNORECASE)
AROUND = " .,;:!?\"'`*$"
BEFORE_NUMBER = AROUND.replace(".", "")  # .5 is a half
ROUNDING = 1e-12  # of a value: tasks write 15 digits of it
LONGEST = 10_000  # characters of an answer that are compared


class ExactMatch:
    """Not applicable where the case has neither labels, nor a value, nor a text."""

    low = 0.0
    high = 1.0

    def __init__(self, tolerance: float = 0.0) -> None:
        check(within("tolerance", tolerance, low=0))
        self.tolerance = tolerance

    def score(self, cases: Sequence[Case], rollouts: Sequence[Rollout], readings: Sequence[Reading]) -> list[Verdict]:
        return [self._verdict(case, reading) for case, reading in zip(cases, readings, strict=True)]

    def _verdict(self, case: Case, reading: Reading) -> Verdict:
        target, answer = case.target, reading.answer
        if case.label_space and target.labels is not None:
            return _equal(answer.labels is not None and set(answer.labels) == set(target.labels), "labels")
        if target.value is not None:
            value = _number(answer.text) if answer.value is None else answer.value
            return _equal(value is not None and self._near(value, target.value), "value")
        if target.text is not None:
            return _equal(answer.text is not None and plain(answer.text) == plain(target.text), "text")
        return Verdict.not_applicable("the case has neither labels, nor a value, nor a text")

    def _near(self, value: float, target: float) -> bool:
        return math.isclose(value, target, rel_tol=ROUNDING, abs_tol=self.tolerance)


def _equal(same: bool, what: str) -> Verdict:
    return Verdict(float(same), reason=f"the same {what}" if same else f"other {what}, or none")


def _number(text: str | None) -> float | None:
    """Of an answer that is a number and nothing else."""
    match = NUMBER.fullmatch(_bare(text or "").lstrip(BEFORE_NUMBER).rstrip(AROUND))
    return float(match.group()) if match else None


def plain(text: str) -> str:
    """Without case, repeated white space and the marks around it."""
    return _bare(text).strip(AROUND).casefold()


def _bare(text: str) -> str:
    return " ".join(TEXT.sub(r"\1", unicodedata.normalize("NFKC", text[:LONGEST])).split())
