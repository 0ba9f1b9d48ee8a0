"""A response, or its reasoning, of a wanted length: 1 inside the window, falling to 0 along a ramp on either side.

With length l: 1 for shortest <= l <= longest, else max(0, 1 - distance to the window / ramp); ramp 0: 0 outside. Like
the length term of QoQ-Med's code, which its paper does not have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from qoqmed.errors import Problem
from qoqmed.registry.arguments import check, one_of, within
from qoqmed.types import Case, Reading, Rollout, Verdict

Unit = Literal["tokens", "words", "characters"]
Part = Literal["response", "reasoning"]


class LengthWindow:
    """Words are what white space parts; tokens, known for whole responses only, include the stop token."""

    low = 0.0
    high = 1.0

    def __init__(
        self, shortest: int, longest: int, ramp: int = 0, unit: Unit = "tokens", part: Part = "response"
    ) -> None:
        countable = Problem("the tokens of the reasoning are not known", "part", part, "unit: words or characters")
        check(
            within("shortest", shortest, low=0),
            within("longest", longest, low=shortest),
            within("ramp", ramp, low=0),
            one_of("unit", unit, get_args(Unit)),
            one_of("part", part, get_args(Part)),
            countable if (unit, part) == ("tokens", "reasoning") else None,
        )
        self.shortest, self.longest, self.ramp = shortest, longest, ramp
        self.unit, self.part = unit, part

    def score(self, cases: Sequence[Case], rollouts: Sequence[Rollout], readings: Sequence[Reading]) -> list[Verdict]:
        return [self._verdict(rollout, reading) for rollout, reading in zip(rollouts, readings, strict=True)]

    def _verdict(self, rollout: Rollout, reading: Reading) -> Verdict:
        text = rollout.text if self.part == "response" else reading.reasoning
        if self.unit == "tokens" and not rollout.token_ids:
            return Verdict.not_applicable("the number of tokens is not known: the response was read from a file")
        lengths = {"tokens": len(rollout.token_ids), "characters": len(text)}
        length = lengths[self.unit] if self.unit in lengths else len(text.split())
        away = max(self.shortest - length, length - self.longest, 0)
        value = max(0.0, 1 - away / self.ramp) if self.ramp else float(not away)
        return Verdict(value, reason=f"{length} {self.unit}, wanted {self.shortest} to {self.longest}")
