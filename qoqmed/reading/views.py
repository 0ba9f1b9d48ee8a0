"""How the views of a case lie to each other, by its attribute `views/transform`.

A list of {"from": view, "to": view, "matrix": [[a, b, c], [d, e, f]]}, affine, from normalised points (x, y) of one
view to those of the other: x' = a x + b y + c, y' = d x + e y + f. The way back is its inverse, unless it is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qoqmed.errors import DataError, Problem
from qoqmed.types import SPATIAL, Case

TRANSFORM = "views/transform"
MIN_AREA = 1e-9  # of a unit square after the transform
LARGEST = 1e6  # of a matrix's numbers: larger ones move everything out of the view

Row = tuple[float, float, float]
Matrix = tuple[Row, Row]
Transforms = Mapping[tuple[int, int], Matrix]  # by (medium from, medium to)


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
