"""The connected parts of a mask: pixels that touch by a side or a corner belong together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qoqmed.types import Box


@dataclass(frozen=True)
class Parts:
    """numbers: [H, W], 0 outside, else the part's number from 1. sizes: [number of parts + 1] pixels."""

    numbers: npt.NDArray[np.intp]
    sizes: npt.NDArray[np.intp]


def parts_of(mask: npt.NDArray[Any]) -> Parts:
    """[H, W], nonzero is inside -> its parts, numbered in reading order. Stretches of rows are joined, not pixels."""
    inside = mask != 0
    edges = np.diff(np.pad(inside, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(edges == 1)
    stops = np.nonzero(edges == -1)[1]
    roots = _roots(rows.tolist(), starts.tolist(), stops.tolist())
    _, part = np.unique(np.asarray(roots, dtype=np.intp), return_inverse=True)
    numbers = np.zeros(inside.shape, dtype=np.intp)
    numbers[inside] = np.repeat(part + 1, stops - starts)  # both in reading order
    return Parts(numbers, np.bincount(numbers.ravel()))


def _roots(rows: Sequence[int], starts: Sequence[int], stops: Sequence[int]) -> list[int]:
    """For each stretch of inside pixels the first stretch of its part (union-find)."""
    parent = list(range(len(rows)))

    def root(one: int) -> int:
        while parent[one] != one:
            parent[one] = parent[parent[one]]
            one = parent[one]
        return one

    above, below = 0, 0
    while below < len(rows):
        if above >= below or rows[above] >= rows[below]:
            below += 1
        elif rows[above] < rows[below] - 1 or stops[above] < starts[below]:
            above += 1
        elif stops[below] < starts[above]:
            below += 1
        else:
            first, second = sorted((root(above), root(below)))
            parent[second] = first
            if stops[above] < stops[below]:
                above += 1
            else:
                below += 1
    return [root(one) for one in range(len(rows))]


def best_part_iou(boxes: Sequence[Box], parts: Parts) -> float:
    """Best intersection over union of one box with one part; a box covers the pixels whose centres lie inside it."""
    best = 0.0
    for box in boxes:
        rows = _centres(box.y1, box.y2, parts.numbers.shape[0])
        columns = _centres(box.x1, box.x2, parts.numbers.shape[1])
        inside = parts.numbers[rows, columns]
        shared = np.bincount(inside.ravel(), minlength=len(parts.sizes))
        shares = shared[1:] / (inside.size + parts.sizes - shared)[1:]  # [0] counts what is outside
        best = max(best, float(shares.max(initial=0.0)))
    return best


def _centres(low: float, high: float, size: int) -> slice:
    """The pixels i with low <= (i + 0.5) / size < high."""
    return slice(max(math.ceil(low * size - 0.5), 0), max(math.ceil(high * size - 0.5), 0))
