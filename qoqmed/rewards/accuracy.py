"""QoQ-Med's accuracy reward: F1 between the set of predicted labels and the set of true ones."""

from __future__ import annotations

from collections.abc import Sequence

from qoqmed.types import Case, Reading, Rollout, Verdict


class Accuracy:
    """Not applicable to cases without known labels. Two empty sets agree: 1. Order and repetition do not count."""

    low = 0.0
    high = 1.0

    def score(self, cases: Sequence[Case], rollouts: Sequence[Rollout], readings: Sequence[Reading]) -> list[Verdict]:
        return [_verdict(case, reading) for case, reading in zip(cases, readings, strict=True)]


def _verdict(case: Case, reading: Reading) -> Verdict:
    if case.target.labels is None or not case.label_space:
        return Verdict.not_applicable("the case has no labels")
    if reading.answer.labels is None:
        return Verdict(0.0, reason="no answer was found")
    true, predicted = set(case.target.labels), set(reading.answer.labels)
    if not true and not predicted:
        return Verdict(1.0, reason="no label is right, and none was predicted")
    hits = len(true & predicted)
    value = 2 * hits / (len(true) + len(predicted))
    return Verdict(value, reason=f"{hits} right of {len(predicted)} predicted, {len(true)} true")
