"""QoQ-Med's visual coherence (App. B.3, eq. 7): boxes agree between views of the same structure.

    r = 1 / |V| sum over v in V of IoU(b_v, T(b_v')),   T from the coordinates of v' into those of v

The case says how its views lie to each other, in the attribute `views/transform`: a list of {"from": view, "to": view,
"matrix": [[a, b, c], [d, e, f]]}, affine, from normalised points (x, y) of one view to those of the other:
x' = a x + b y + c, y' = d x + e y + f. The way back is its inverse, unless it is given. Not applicable without one
between two views of the case.

Readings, where the paper has one box a view and one other view: T(b) is the upright rectangle around the moved corners,
clipped to the view; a box whose place the other view does not show is not compared with it. Several boxes are matched
one to one, equal labels only where both have one: sum of IoU / number of boxes on the side that has more. Several other
views: their mean. V holds the views where either side has a box; none at all earns 0. It says whether the boxes agree,
not whether they are right: the whole picture in each view agrees with itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qoqmed.boxes import iou
from qoqmed.errors import DataError, Problem
from qoqmed.reading import labels_of
from qoqmed.rewards.assignment import assign
from qoqmed.types import SPATIAL, Box, Case, Reading, Rollout, Verdict

TRANSFORM = "views/transform"
MIN_AREA = 1e-9  # of a unit square after the transform
LARGEST = 1e6  # of a matrix's numbers: larger ones move everything out of the view

Row = tuple[float, float, float]
Matrix = tuple[Row, Row]
Transforms = Mapping[tuple[int, int], Matrix]  # by (medium from, medium to)


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


def transforms_of(case: Case) -> Transforms:
    """Of the pictures that the case has. Raises DataError, naming the row, where the attribute is malformed."""
    given = case.attributes.get(TRANSFORM, ())
    if not isinstance(given, (list, tuple)):
        raise _malformed(case, given)
    if not given:
        return {}
    named = [(medium.view, index) for index, medium in enumerate(case.media) if medium.modality in SPATIAL]
    found: dict[tuple[int, int], Matrix] = {}
    for item in given:
        source, target, matrix = _read(case, item)
        pairs = [(i, j) for view, i in named if view == source for other, j in named if other == target]
        if len(pairs) > 1:
            raise _malformed(case, item, "two pictures have one of these views")
        found |= dict.fromkeys(pairs, matrix)
    return found | {(j, i): _inverse(matrix) for (i, j), matrix in found.items() if (j, i) not in found}


def _read(case: Case, item: Any) -> tuple[str, str, Matrix]:
    if not isinstance(item, Mapping) or not all(isinstance(item.get(end), str) and item[end] for end in ("from", "to")):
        raise _malformed(case, item)
    rows = item.get("matrix")
    if not isinstance(rows, (list, tuple)) or len(rows) != 2 or item["from"] == item["to"]:
        raise _malformed(case, item)
    if not all(isinstance(row, (list, tuple)) and len(row) == 3 and all(map(_is_number, row)) for row in rows):
        raise _malformed(case, item)
    (a, b, c), (d, e, f) = ([float(value) for value in row] for row in rows)
    if abs(a * e - b * d) < MIN_AREA:
        raise _malformed(case, item, "the matrix has no inverse")
    return item["from"], item["to"], ((a, b, c), (d, e, f))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -LARGEST <= value <= LARGEST


def _inverse(matrix: Matrix) -> Matrix:
    (a, b, c), (d, e, f) = matrix
    area = a * e - b * d
    return (e / area, -b / area, (b * f - c * e) / area), (-d / area, a / area, (c * d - a * f) / area)


def _malformed(case: Case, got: Any, why: str = "") -> DataError:
    expected = 'a list of {"from": view, "to": view, "matrix": [[a, b, c], [d, e, f]]}'
    what = f"the attribute {TRANSFORM!r} is malformed{f': {why}' if why else ''}"
    return DataError(Problem(what, case.id, repr(got)[:200], expected))
