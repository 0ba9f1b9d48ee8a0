"""MedMO's tag count: a share for every tag of the response's form that is in its place, once; 0.25 for each of four.

The paper gives no formula; this is that of open-r1, from which it comes, but for line breaks, which do not count here.
A tag is in place where it stands once, and on the right side of all others that stand once.
"""

from __future__ import annotations

from collections.abc import Sequence

from qoqmed.errors import Problem
from qoqmed.registry.arguments import check
from qoqmed.types import Case, Reading, Rollout, Verdict

TAGS = ("<think>", "</think>", "<answer>", "</answer>")


class TagCount:
    """tags: in the order in which they are to stand. It needs no gold answer, and applies to every case."""

    low = 0.0
    high = 1.0

    def __init__(self, tags: Sequence[str] = TAGS) -> None:
        distinct = Problem("tags must be texts, each once", got=repr(list(tags)), expected="at least one")
        check(None if tags and all(tags) and len(set(tags)) == len(tags) else distinct)
        self.tags = tuple(tags)

    def score(self, cases: Sequence[Case], rollouts: Sequence[Rollout], readings: Sequence[Reading]) -> list[Verdict]:
        return [self._verdict(rollout.text) for rollout in rollouts]

    def _verdict(self, text: str) -> Verdict:
        once = [(order, text.find(tag)) for order, tag in enumerate(self.tags) if text.count(tag) == 1]
        good = [
            order
            for order, place in once
            if all((other < order) == (there < place) for other, there in once if other != order)
        ]
        absent = [tag for order, tag in enumerate(self.tags) if order not in good]
        reason = f"missing, repeated or out of place: {' '.join(absent)}" if absent else "every tag is in place"
        return Verdict(len(good) / len(self.tags), reason=reason)
