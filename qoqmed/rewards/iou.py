"""QoQ-Med's semantic alignment reward (section 3.4): the best intersection over union of one predicted box.

Against the whole mask S: max_j area(b_j and S) / area(b_j or S). `parts: best`: against the mask's connected parts one
by one, the best pair (a deviation, for several lesions: no one box can cover them well). Where a case has boxes and no
mask: against the target boxes one by one (a deviation: the paper has masks only). Boxes on other media do not count.
`boxes_per_label` (ours): the best of very many boxes is good wherever they lie; more than so many a label earn 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy.typing as npt

from qoqmed.boxes import best_mask_iou, iou
from qoqmed.errors import DataError, Problem
from qoqmed.registry.arguments import check, one_of, within
from qoqmed.rewards.parts import Parts, best_part_iou, parts_of
from qoqmed.types import Box, Case, Mask, Reading, Rollout, Verdict

Against = Literal["whole", "best"]


class IoU:
    """Not applicable without a mask or boxes, and where the mask is all zero. Masks arrive as arrays, loaded.

    parts: against the whole mask, or the best of its connected parts. boxes_per_label: for each label that the response
    answers, or each target box where there are more; null, as in the paper: any number.
    """

    low = 0.0
    high = 1.0

    def __init__(self, parts: Against = "whole", boxes_per_label: int | None = None) -> None:
        limit = None if boxes_per_label is None else within("boxes_per_label", boxes_per_label, low=1)
        check(one_of("parts", parts, get_args(Against)), limit)
        self.parts, self.boxes_per_label = parts, boxes_per_label

    def score(self, cases: Sequence[Case], rollouts: Sequence[Rollout], readings: Sequence[Reading]) -> list[Verdict]:
        """One verdict a rollout; the parts of a mask are found once a batch."""
        found: dict[int, Parts] | None = {} if self.parts == "best" else None
        rows = zip(cases, readings, strict=True)
        return [self._limited(_verdict(case, reading.boxes, found), case, reading) for case, reading in rows]

    def _limited(self, verdict: Verdict, case: Case, reading: Reading) -> Verdict:
        if verdict.value is None or self.boxes_per_label is None:
            return verdict
        labels = max(1, len(reading.answer.labels or ()), len(case.target.boxes or ()))
        boxes, limit = len(reading.boxes), self.boxes_per_label * labels
        if boxes <= limit:
            return verdict
        return Verdict(0.0, reason=f"{boxes} boxes, where {limit} may be given", source=verdict.source)


def _verdict(case: Case, predicted: Sequence[Box], found: dict[int, Parts] | None) -> Verdict:
    if case.target.mask is not None:
        return _against_mask(case, case.target.mask, predicted, found)
    if not case.target.boxes:
        return Verdict.not_applicable("the case has neither a mask nor boxes")
    if not predicted:
        return Verdict(0.0, reason="no box was predicted", source=case.box_source)
    value = max(iou(box, true) for box in predicted for true in case.target.boxes)
    reason = f"best of {len(predicted)} boxes against {len(case.target.boxes)}{drawn(case.box_source)}"
    return Verdict(value, reason=reason, source=case.box_source)


def _against_mask(case: Case, mask: Mask, predicted: Sequence[Box], found: dict[int, Parts] | None) -> Verdict:
    array = loaded(mask, case)
    if not array.any():
        return Verdict.not_applicable("the mask is all zero")
    boxes = [box for box in predicted if box.medium == mask.medium]
    if not boxes:
        return Verdict(0.0, reason="no box was predicted", source=case.mask_source)
    if found is None:
        value, against = best_mask_iou(boxes, array), "the mask"
    else:
        parts = _parts(array, found)
        value, against = best_part_iou(boxes, parts), f"{len(parts.sizes) - 1} parts of the mask"
    reason = f"best of {len(boxes)} boxes against {against}{drawn(case.mask_source)}"
    return Verdict(value, reason=reason, source=case.mask_source)


def loaded(mask: Mask, case: Case) -> npt.NDArray[Any]:
    """The mask's array. Raises DataError, naming the row, where there is none, or none that is flat."""
    if mask.array is None:
        what, mend = "the mask was not loaded before scoring", "load masks with qoqmed.media.masks.load first"
        raise DataError(Problem(what, where=case.id, got=str(mask.path), expected="mask.array [H, W]", mend=mend))
    if mask.array.ndim != 2:
        got = f"shape {list(mask.array.shape)}"
        raise DataError(Problem("the mask is not flat", where=case.id, got=got, expected="mask.array [H, W]"))
    return mask.array


def drawn(source: str) -> str:
    """For reasons: who drew it, where no person did."""
    return f", drawn by {source}" if source else ""


def _parts(mask: npt.NDArray[Any], found: dict[int, Parts]) -> Parts:
    """By the array's identity: the rollouts of a case share it."""
    if id(mask) not in found:
        found[id(mask)] = parts_of(mask)
    return found[id(mask)]
