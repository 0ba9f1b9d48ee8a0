"""ROUGE for reports (Lin 2004): F1 of the longest common subsequence of words, or of their n-grams, with the reference.

`rougeL`: recall LCS / reference words, precision LCS / words of the response. `rouge1`, `rouge2`: shared n-grams, each
as often as in both. Words are letters and digits without case, as in Google's rouge_score but for other scripts, whose
letters count here; no stemming. The subsequence is found with bit vectors (Hyyro 2004): 1,000 words in milliseconds.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal, get_args

from qoqmed.registry.arguments import check, one_of
from qoqmed.types import Case, Reading, Rollout, Verdict

Kind = Literal["rougeL", "rouge1", "rouge2"]
Part = Literal["answer", "reasoning", "response"]

WORDS = re.compile(r"[^\W_]+")
LONGEST = 4_096  # words of either text that are compared


class Rouge:
    """part: what of the response is compared with the case's text. Not applicable to cases without a text of words.

    `answer`: the final answer's text; without one 0. `response`: all that follows the reasoning.
    """

    low = 0.0
    high = 1.0

    def __init__(self, kind: Kind = "rougeL", part: Part = "answer") -> None:
        check(one_of("kind", kind, get_args(Kind)), one_of("part", part, get_args(Part)))
        self.kind, self.part = kind, part

    def score(self, cases: Sequence[Case], rollouts: Sequence[Rollout], readings: Sequence[Reading]) -> list[Verdict]:
        """One verdict a rollout; a reference is cut into words once a batch."""
        references = {text: _words(text) for text in {case.target.text or "" for case in cases}}
        rows = zip(cases, rollouts, readings, strict=True)
        return [self._verdict(references[case.target.text or ""], rollout, reading) for case, rollout, reading in rows]

    def _verdict(self, reference: Sequence[str], rollout: Rollout, reading: Reading) -> Verdict:
        if not reference:
            return Verdict.not_applicable("the case has no reference text")
        if self.kind != "rougeL" and len(reference) < int(self.kind[-1]):
            return Verdict.not_applicable(f"the reference is too short for {self.kind}")
        texts = {"answer": reading.answer.text, "reasoning": reading.reasoning}
        text = texts.get(self.part, rollout.text.rpartition("</think>")[2])
        words = _words(text or "")
        if not words:
            return Verdict(0.0, reason=f"the {self.part} has no words")
        shared, ours, theirs = _overlap(self.kind, words, reference)
        value = 2 * shared / (ours + theirs) if shared else 0.0
        return Verdict(value, reason=f"{self.kind}: {shared} shared of {ours}, reference {theirs}")


def _words(text: str) -> list[str]:
    return WORDS.findall(text.casefold())[:LONGEST]


def _overlap(kind: str, words: Sequence[str], reference: Sequence[str]) -> tuple[int, int, int]:
    """What both share, and how much each has."""
    if kind == "rougeL":
        return common_subsequence(words, reference), len(words), len(reference)
    n = int(kind[-1])
    ours, theirs = (Counter(zip(*(some[i:] for i in range(n)), strict=False)) for some in (words, reference))
    return (ours & theirs).total(), ours.total(), theirs.total()


def common_subsequence(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common subsequence. A row of the table of prefixes is one whole number, a bit a word."""
    places: dict[str, int] = {}
    for place, word in enumerate(other):
        places[word] = places.get(word, 0) | 1 << place
    full = (1 << len(other)) - 1
    row = full  # zeros: where the length grows
    for word in one:
        found = row & places.get(word, 0)
        row = (row + found) | (row - found)
    return len(other) - (row & full).bit_count()
