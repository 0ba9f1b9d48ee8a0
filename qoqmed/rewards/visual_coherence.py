"""QoQ-Med's visual coherence (App. B.3, eq. 7): boxes agree between views of the same structure.

    r = 1 / |V| sum over v in V of IoU(b_v, T(b_v')),   T from the coordinates of v' into those of v

The case says how its views lie to each other, in the attribute `views/transform` (see `qoqmed.reading.views`). Not
applicable without a transform between two views of the case.

Readings, where the paper has one box a view and one other view: T(b) is the upright rectangle around the moved corners,
clipped to the view; a box whose place the other view does not show is not compared with it. Several boxes are matched
one to one, equal labels only where both have one: sum of IoU / number of boxes on the side that has more. Several other
views: their mean. V holds the views where either side has a box; none at all earns 0. It says whether the boxes agree,
not whether they are right: the whole picture in each view agrees with itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from qoqmed.boxes import iou
from qoqmed.reading import labels_of
from qoqmed.reading.views import Matrix, Transforms, transforms_of
from qoqmed.rewards.assignment import assign
from qoqmed.types import Box, Case, Reading, Rollout, Verdict


class VisualCoherence:
    """Between the pictures of a case whose views have a name."""

    low = 0.0
    high = 1.0

    def score(self, cases: Sequence[Case], rollouts: Sequence[Rollout], readings: Sequence[Reading]) -> list[Verdict]:
        """One verdict a rollout; the transforms of a case are read once a batch."""
        transforms = {id(case): transforms_of(case) for case in {id(case): case for case in cases}.values()}
        rows = zip(cases, readings, strict=True)
        return [_verdict(case, reading.boxes, transforms[id(case)]) for case, reading in rows]


def _verdict(case: Case, boxes: Sequence[Box], transforms: Transforms) -> Verdict:
    if not transforms:
        return Verdict.not_applicable("the case has no transform between two of its views")
    by_view: dict[int, list[float]] = {}
    for (source, view), matrix in transforms.items():
        back = transforms[view, source]
        there = [moved(box, matrix, view) for box in boxes if box.medium == source]
        here = [box for box in boxes if box.medium == view and moved(box, back, source) is not None]
        seen = [box for box in there if box is not None]
        if here or seen:
            by_view.setdefault(view, []).append(_agreement(here, seen, case))
    if not by_view:
        return Verdict(0.0, reason="no box that another view could show")
    value = sum(sum(values) / len(values) for values in by_view.values()) / len(by_view)
    return Verdict(value, reason=f"{len(by_view)} views compared")


def _agreement(here: Sequence[Box], seen: Sequence[Box], case: Case) -> float:
    if not here or not seen:
        return 0.0
    names = {text: set(labels_of(text, case)[0]) or {text.casefold()} for text in {box.label for box in (*here, *seen)}}
    overlaps = np.array(
        [[iou(one, other) * _same(one.label, other.label, names) for other in seen] for one in here], dtype=np.float64
    )
    return float(sum(overlaps[pair] for pair in assign(-overlaps)) / max(overlaps.shape))


def _same(one: str, other: str, names: Mapping[str, set[str]]) -> bool:
    return not one or not other or not names[one].isdisjoint(names[other])


def moved(box: Box, matrix: Matrix, medium: int) -> Box | None:
    """The box in the other view; None: outside of it."""
    (a, b, c), (d, e, f) = matrix
    corners = [(x, y) for x in (box.x1, box.x2) for y in (box.y1, box.y2)]
    x1, *_, x2 = sorted(min(max(a * x + b * y + c, 0.0), 1.0) for x, y in corners)
    y1, *_, y2 = sorted(min(max(d * x + e * y + f, 0.0), 1.0) for x, y in corners)
    return Box(x1, y1, x2, y2, box.label, medium) if x1 < x2 and y1 < y2 else None
