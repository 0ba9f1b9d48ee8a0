"""MedMO's label accuracy: the labels that are right, of all that are true or were named.

The paper gives no formula. Ours is the accuracy of multi-label classification (Godbole and Sarawagi 2004), |T and P| /
|T or P|: 1 or 0 where one label is true and one is named. Cases without a label space, such as grounding, are scored by
the labels of their boxes: those named in the response against those of the gold boxes; a name that none of the gold
boxes has is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence

from qoqmed.reading import match_labels
from qoqmed.types import Box, Case, Reading, Rollout, Verdict


class LabelAccuracy:
    """Not applicable without known labels: neither the case's, nor its boxes'."""

    low = 0.0
    high = 1.0

    def score(self, cases: Sequence[Case], rollouts: Sequence[Rollout], readings: Sequence[Reading]) -> list[Verdict]:
        return [_verdict(case, reading) for case, reading in zip(cases, readings, strict=True)]


def _verdict(case: Case, reading: Reading) -> Verdict:
    if case.label_space and case.target.labels is not None:
        if reading.answer.labels is None:
            return Verdict(0.0, reason="no answer was found")
        return _shared(set(case.target.labels), set(reading.answer.labels), 0)
    true = {box.label for box in case.target.boxes or () if box.label}
    if case.label_space or not true:
        return Verdict.not_applicable("the case has no labels")
    if not reading.boxes:
        return Verdict(0.0, reason="no box was predicted")
    named, unknown = _of_boxes(reading.boxes, sorted(true))
    return _shared(true, named, unknown)


def _of_boxes(boxes: Sequence[Box], space: Sequence[str]) -> tuple[set[str], int]:
    """Labels of the space that the boxes name, and how many other names they have; no name is one of these."""
    found = {text: match_labels(text, space)[0] for text in {box.label for box in boxes}}
    return {label for labels in found.values() for label in labels}, sum(not labels for labels in found.values())


def _shared(true: set[str], named: set[str], unknown: int) -> Verdict:
    every = len(true | named) + unknown
    if not every:
        return Verdict(1.0, reason="no label is right, and none was named")
    hits = len(true & named)
    return Verdict(hits / every, reason=f"{hits} right of {len(named) + unknown} named, {len(true)} true")
