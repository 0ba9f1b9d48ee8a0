"""MedMO's bounding-box reward (App. A.1, eq. 7-12): boxes matched one to one, scored by distance and GIoU.

    L1[i,j]  = sum of |corner of p_i - corner of g_j| / (2 sqrt(H^2 + W^2))                           (7)
    C[i,j]   = 5 L1[i,j] + 2 (1 - GIoU[i,j]), the least total cost matches min(P, G) pairs             (8)
    s_k      = (5 (1 - clip(L1_k)) + 2 (GIoU_k + 1) / 2) / 7                                           (9)
    R        = clip(sum_k s_k / G - (fn (G - m) + fp (P - m)) / max(1, G))                       (10)-(12)

clip is to [0, 1]. Readings: s_k has the clip of eq. 9, which eq. 13 leaves out. R has no square: the one printed in
section 3.5.1 is a footnote's mark. (H, W) are the largest y and x of the gold boxes (`size: gold`), or the picture's
(`size: image`). Numbers are pixels where the picture's size is known (its array, its mask's, or the case's attribute
`media/sizes_px`), else shares of the sides. No gold box: 0.5 in grounding tasks, elsewhere not applicable.

Deviations: boxes on different media never match; `max_extra`, a guard of ours. A case with a mask and no boxes has the
tight box around it. The floor is high: one box anywhere on the picture earns about a half.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from qoqmed.geometry import SIZES
from qoqmed.media.masks import boxes_of_mask
from qoqmed.registry.arguments import check, one_of, within
from qoqmed.rewards.assignment import assign
from qoqmed.rewards.iou import drawn, loaded
from qoqmed.types import Box, Case, Reading, Rollout, Verdict

DISTANCE, OVERLAP = 5.0, 2.0  # w_L1 and w_G, of the cost and of the score
NEUTRAL = 0.5

Size = Literal["gold", "image"]
Floats = npt.NDArray[np.float64]


class HungarianBoxes:
    """false_negative, false_positive: lambda of eq. 11. max_extra: more boxes than gold ones and these earn 0."""

    low = 0.0
    high = 1.0

    def __init__(
        self,
        size: Size = "gold",
        false_negative: float = 0.0,
        false_positive: float = 0.0,
        max_extra: int | None = None,
        grounding_tasks: Sequence[str] = ("grounding",),
    ) -> None:
        check(
            one_of("size", size, get_args(Size)),
            within("false_negative", false_negative, low=0),
            within("false_positive", false_positive, low=0),
            None if max_extra is None else within("max_extra", max_extra, low=0),
        )
        self.size = size
        self.false_negative, self.false_positive = false_negative, false_positive
        self.max_extra = max_extra
        self.grounding_tasks = frozenset(grounding_tasks)

    def score(self, cases: Sequence[Case], rollouts: Sequence[Rollout], readings: Sequence[Reading]) -> list[Verdict]:
        return [self._verdict(case, reading.boxes) for case, reading in zip(cases, readings, strict=True)]

    def _verdict(self, case: Case, predicted: Sequence[Box]) -> Verdict:
        gold = _gold(case)
        if not gold and case.task in self.grounding_tasks:
            return Verdict(NEUTRAL, reason="no gold box: neutral")
        if not gold:
            return Verdict.not_applicable("the case has no boxes")
        source = case.box_source
        extra = len(predicted) - len(gold)
        if self.max_extra is not None and extra > self.max_extra:
            return Verdict(0.0, reason=f"{len(predicted)} boxes for {len(gold)}: too many", source=source)
        scores = [
            score for medium in sorted({box.medium for box in gold}) for score in self._on(medium, case, predicted)
        ]
        missed, spurious = len(gold) - len(scores), len(predicted) - len(scores)
        penalty = (self.false_negative * missed + self.false_positive * spurious) / max(1, len(gold))
        value = min(max(sum(scores) / len(gold) - penalty, 0.0), 1.0)
        reason = f"{len(scores)} matched of {len(predicted)} predicted, {len(gold)} gold{drawn(source)}"
        return Verdict(value, reason=reason, source=source)

    def _on(self, medium: int, case: Case, predicted: Sequence[Box]) -> list[float]:
        """s_k of the pairs on one medium."""
        scale = np.asarray(_pixels(case, medium) * 2, dtype=np.float64)  # width, height, width, height
        gold = _corners([box for box in _gold(case) if box.medium == medium]) * scale
        ours = _corners([box for box in predicted if box.medium == medium]) * scale
        extent = gold[:, 2:].max(0) if self.size == "gold" else scale[:2]
        distance = np.abs(ours[:, None] - gold[None]).sum(-1) / (2 * np.hypot(*extent))  # [P, G]
        overlap = giou(ours, gold)
        pairs = assign(DISTANCE * distance + OVERLAP * (1 - overlap))
        return [_quality(float(distance[pair]), float(overlap[pair])) for pair in pairs]


def _quality(distance: float, overlap: float) -> float:
    """Eq. 9."""
    return (DISTANCE * (1 - min(distance, 1.0)) + OVERLAP * (overlap + 1) / 2) / (DISTANCE + OVERLAP)


def giou(one: Floats, other: Floats) -> Floats:
    """Generalised IoU (Rezatofighi et al. 2019) of boxes [P, 4] and [G, 4], xyxy with an area -> [P, G] in [-1, 1]."""
    a, b = one[:, None], other[None]
    shared = np.clip(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0, None).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - shared
    hull = (np.maximum(a[..., 2:], b[..., 2:]) - np.minimum(a[..., :2], b[..., :2])).prod(-1)
    return np.asarray(shared / union - (hull - union) / hull)


def _corners(boxes: Sequence[Box]) -> Floats:
    return np.asarray([(box.x1, box.y1, box.x2, box.y2) for box in boxes], dtype=np.float64).reshape(-1, 4)


def _gold(case: Case) -> tuple[Box, ...]:
    mask = case.target.mask
    if case.target.boxes is not None or mask is None:
        return case.target.boxes or ()
    return boxes_of_mask(loaded(mask, case), medium=mask.medium)


def _pixels(case: Case, medium: int) -> tuple[float, float]:
    """(width, height) of a medium, (1, 1) where nobody knows them."""
    given: Any = case.attributes.get(SIZES) or ()
    if medium < len(given) and given[medium]:
        width, height = given[medium]
        return float(width), float(height)
    mask, array = case.target.mask, case.media[medium].array if medium < len(case.media) else None
    if mask is not None and mask.array is not None and mask.medium == medium:
        height, width = mask.array.shape
        return float(width), float(height)
    return (1.0, 1.0) if array is None else (float(array.shape[-2]), float(array.shape[-3]))
