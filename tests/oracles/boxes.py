"""MedMO's box reward written a second time, from the paper: plain loops, all matchings tried, areas counted in pixels.

Boxes are whole-numbered pixels (x1, y1, x2, y2).
"""

from __future__ import annotations

import itertools
import math

Pixels = tuple[int, int, int, int]


def cells(box: Pixels) -> set[tuple[int, int]]:
    return {(x, y) for x in range(box[0], box[2]) for y in range(box[1], box[3])}


def giou(one: Pixels, other: Pixels) -> float:
    both, either = cells(one) & cells(other), cells(one) | cells(other)
    columns, rows = [x for x, _ in either], [y for _, y in either]
    hull = (max(columns) - min(columns) + 1) * (max(rows) - min(rows) + 1)
    return len(both) / len(either) - (hull - len(either)) / hull


def distance(one: Pixels, other: Pixels, width: float, height: float) -> float:
    return sum(abs(a - b) for a, b in zip(one, other, strict=True)) / (2 * math.sqrt(height**2 + width**2))


def rewards(
    predicted: list[Pixels], gold: list[Pixels], size: tuple[int, int] | None = None, fn: float = 0.0, fp: float = 0.0
) -> list[float]:
    """Equations 7 to 12, for every matching of least cost; size: (width, height), else the gold boxes' extents."""
    if not gold:
        return [0.5]
    width, height = size or (max(box[2] for box in gold), max(box[3] for box in gold))
    m = min(len(predicted), len(gold))
    penalty = (fn * (len(gold) - m) + fp * (len(predicted) - m)) / max(1, len(gold))
    found = []
    for chosen in itertools.permutations(range(len(gold)), m):
        for ours in itertools.combinations(range(len(predicted)), m):
            pairs = [(predicted[i], gold[j]) for i, j in zip(ours, chosen, strict=True)]
            l1 = [distance(p, g, width, height) for p, g in pairs]
            overlap = [giou(p, g) for p, g in pairs]
            cost = sum(5 * a + 2 * (1 - b) for a, b in zip(l1, overlap, strict=True))
            base = sum((5 * (1 - min(a, 1)) + 2 * (b + 1) / 2) / 7 for a, b in zip(l1, overlap, strict=True)) / len(
                gold
            )
            found.append((cost, min(max(base - penalty, 0.0), 1.0)))
    least = min(cost for cost, _ in found)
    return [value for cost, value in found if cost <= least + 1e-9]
