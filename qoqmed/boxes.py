"""Boxes: canonical normalised xyxy in [0, 1] against the frames that backbones write, and intersection over union.

A frame is one object per case. `AbsoluteFrame`: pixels of the resized picture (Qwen2.5-VL). `RelativeFrame`: 0 to
1000 (Qwen3-VL). order: "xyxy" (two corners) or "xywh" (first corner, width, height); both name the same corners.

Written: each corner to the nearest whole number (halves to even), a side thinner than that widened to one unit. So a
written box is read back within half a unit of its frame, a thinner one within one. Read: any numbers, clipped to the
picture; ValueError for NaN, reversed corners, and boxes with no area inside.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from qoqmed.geometry import Geometry
from qoqmed.registry.arguments import check, one_of
from qoqmed.types import Box

Corners = tuple[float, float, float, float]
Order = Literal["xyxy", "xywh"]

FAR = 1e9  # beyond any picture; larger numbers, infinities too, count as this


class AbsoluteFrame:
    """Pixels of the resized picture. geometries: one per medium of the case, None where it is not spatial."""

    def __init__(self, geometries: Sequence[Geometry | None], order: Order = "xyxy") -> None:
        check(one_of("order", order, get_args(Order)))
        self.geometries, self.order = tuple(geometries), order

    def write(self, box: Box) -> list[int]:
        geometry = self._geometry(box.medium)
        return write_in(box, geometry.resized_width, geometry.resized_height, self.order)

    def read(self, numbers: Sequence[float], medium: int = 0) -> Corners:
        geometry = self._geometry(medium)
        return read_in(numbers, geometry.resized_width, geometry.resized_height, self.order)

    def _geometry(self, medium: int) -> Geometry:
        geometry = self.geometries[medium] if 0 <= medium < len(self.geometries) else None
        if geometry is None:
            raise ValueError(f"medium {medium} is no picture of this case")
        return geometry


class RelativeFrame:
    """0 to `scale` along both sides, whatever the picture's size."""

    def __init__(self, scale: int = 1000, order: Order = "xyxy") -> None:
        check(one_of("order", order, get_args(Order)))
        self.scale, self.order = scale, order

    def write(self, box: Box) -> list[int]:
        return write_in(box, self.scale, self.scale, self.order)

    def read(self, numbers: Sequence[float], medium: int = 0) -> Corners:
        return read_in(numbers, self.scale, self.scale, self.order)


def write_in(box: Box, width: int, height: int, order: Order = "xyxy") -> list[int]:
    """Whole numbers of a width x height frame, sides at least one unit long."""
    x1, x2 = _side(box.x1, box.x2, width)
    y1, y2 = _side(box.y1, box.y2, height)
    return [x1, y1, x2, y2] if order == "xyxy" else [x1, y1, x2 - x1, y2 - y1]


def _side(low: float, high: float, size: int) -> tuple[int, int]:
    start, stop = round(low * size), round(high * size)
    if start < stop:
        return start, stop
    start = min(math.floor(low * size), size - 1)
    return start, start + 1


def read_in(numbers: Sequence[float], width: float, height: float, order: Order = "xyxy") -> Corners:
    """Four numbers in units of a width x height frame -> normalised xyxy, clipped. ValueError where they are no box."""
    if len(numbers) != 4:
        raise ValueError(f"a box has 4 numbers, got {len(numbers)}")
    x1, y1, x2, y2 = (_clip(number, -FAR, FAR) for number in numbers)
    shown = f"[{x1:g}, {y1:g}, {x2:g}, {y2:g}]"
    if order == "xywh":
        x2, y2 = x1 + x2, y1 + y2
    x1, x2 = _clip(x1, 0, width) / width, _clip(x2, 0, width) / width
    y1, y2 = _clip(y1, 0, height) / height, _clip(y2, 0, height) / height
    if not (x1 < x2 and y1 < y2):  # false for NaN too
        raise ValueError(f"{shown} has no area inside {width:g} x {height:g}")
    return x1, y1, x2, y2


def from_xywh(numbers: Sequence[float], width: float, height: float) -> Corners:
    """[x, y, box width, box height] in pixels of a width x height picture -> normalised xyxy, clipped."""
    return read_in(numbers, width, height, "xywh")


def _clip(value: float, low: float, high: float) -> float:
    """Keeps NaN; compares before it computes, since whole numbers may be too large for a float."""
    return min(max(value, low), high) if value == value else value


def iou(one: Box, other: Box) -> float:
    """Intersection over union of two boxes; 0 when they lie on different media."""
    if one.medium != other.medium:
        return 0.0
    across = min(one.x2, other.x2) - max(one.x1, other.x1)
    down = min(one.y2, other.y2) - max(one.y1, other.y1)
    if across <= 0 or down <= 0:
        return 0.0
    shared = across * down
    return shared / (_area(one) + _area(other) - shared)


def _area(box: Box) -> float:
    return (box.x2 - box.x1) * (box.y2 - box.y1)


def best_mask_iou(boxes: Sequence[Box], mask: npt.NDArray[Any]) -> float:
    """Best intersection over union of one box with the whole mask [H, W] (nonzero is inside), exact to the pixel.

    A box covers the pixels whose centres lie inside it. 0 without boxes or where box and mask are both empty.
    """
    inside = mask.astype(bool)
    mask_pixels = int(np.count_nonzero(inside))
    best = 0.0
    for box in boxes:
        rows = _centres(box.y1, box.y2, inside.shape[0])
        columns = _centres(box.x1, box.x2, inside.shape[1])
        shared = int(np.count_nonzero(inside[rows, columns]))
        union = (rows.stop - rows.start) * (columns.stop - columns.start) + mask_pixels - shared
        best = max(best, shared / union if union else 0.0)
    return best


def _centres(low: float, high: float, size: int) -> slice:
    """The pixels i with low <= (i + 0.5) / size < high."""
    return slice(max(math.ceil(low * size - 0.5), 0), min(max(math.ceil(high * size - 0.5), 0), size))
