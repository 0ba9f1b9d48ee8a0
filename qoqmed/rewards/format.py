"""QoQ-Med's format reward (App. B.3, eq. 6): 1 where a box is present for every predicted label, else 0.

A box is present for a label when the box's own label names it (by the rules of `qoqmed.reading`); one box may name
several. Nothing predicted earns 0. Localisation cases predict no label: there, at least one box, well-formed json and
closed reasoning earn 1 (our extension). Cases without a picture are not applicable, nor are tasks that ask for no box.
"""

from __future__ import annotations

from collections.abc import Sequence

from qoqmed.reading import labels_of
from qoqmed.types import SPATIAL, Case, Reading, Rollout, Verdict

BOXLESS = ("vqa", "report")

MALFORMED = frozenset(
    {"think_missing", "think_unopened", "think_unclosed", "json_unclosed", "json_invalid", "json_shape", "box_invalid"}
)


class Format:
    """boxless_tasks: those that ask for no box."""

    low = 0.0
    high = 1.0

    def __init__(self, boxless_tasks: Sequence[str] = BOXLESS) -> None:
        self.boxless_tasks = frozenset(boxless_tasks)

    def score(self, cases: Sequence[Case], rollouts: Sequence[Rollout], readings: Sequence[Reading]) -> list[Verdict]:
        return [self._verdict(case, reading) for case, reading in zip(cases, readings, strict=True)]

    def _verdict(self, case: Case, reading: Reading) -> Verdict:
        if case.task in self.boxless_tasks:
            return Verdict.not_applicable(f"the task {case.task!r} asks for no box")
        return _verdict(case, reading)


def _verdict(case: Case, reading: Reading) -> Verdict:
    if not any(medium.modality in SPATIAL for medium in case.media):
        return Verdict.not_applicable("the case has no picture to put a box on")
    if not case.label_space:
        return _localisation(reading)
    if not reading.answer.labels:
        return Verdict(0.0, reason="no label was predicted")
    texts = dict.fromkeys(box.label for box in reading.boxes)
    named = {label for text in texts for label in labels_of(text, case)[0]}
    missing = [label for label in reading.answer.labels if label not in named]
    if missing:
        return Verdict(0.0, reason=f"no box for {', '.join(missing)}")
    return Verdict(1.0, reason="a box for every predicted label")


def _localisation(reading: Reading) -> Verdict:
    faults = sorted({flaw.kind for flaw in reading.flaws} & MALFORMED)
    if faults:
        return Verdict(0.0, reason=f"malformed: {', '.join(faults)}")
    if not reading.boxes:
        return Verdict(0.0, reason="no box was predicted")
    return Verdict(1.0, reason="well-formed, with a box")
