"""Boxes: canonical normalised xyxy in [0, 1] against the frames that backbones write, and intersection over union.

A frame is one object per case. `AbsoluteFrame`: pixels of the resized picture (Qwen2.5-VL). `RelativeFrame`: 0 to
1000 (Qwen3-VL). A written box is read back within half a unit of its frame; a box thinner than a unit within one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from qoqmed.geometry import Geometry
from qoqmed.types import Box

Corners = tuple[float, float, float, float]


class AbsoluteFrame:
    """Pixels of the resized picture. geometries: one per medium of the case, None where it is not spatial."""

    def __init__(self, geometries: Sequence[Geometry | None]) -> None:
        self.geometries = tuple(geometries)

    def write(self, box: Box) -> list[int]:
        geometry = self._geometry(box.medium)
        return write_in(box, geometry.resized_width, geometry.resized_height)

    def read(self, numbers: Sequence[float], medium: int = 0) -> Corners:
        geometry = self._geometry(medium)
        return read_in(numbers, geometry.resized_width, geometry.resized_height)

    def _geometry(self, medium: int) -> Geometry:
        geometry = self.geometries[medium] if 0 <= medium < len(self.geometries) else None
        if geometry is None:
            raise ValueError(f"medium {medium} is no picture of this case")
        return geometry


class RelativeFrame:
    """0 to `scale` along both sides, whatever the picture's size."""

    def __init__(self, scale: int = 1000) -> None:
        self.scale = scale

    def write(self, box: Box) -> list[int]:
        return write_in(box, self.scale, self.scale)

    def read(self, numbers: Sequence[float], medium: int = 0) -> Corners:
        return read_in(numbers, self.scale, self.scale)


def write_in(box: Box, width: int, height: int) -> list[int]:
    """Whole numbers of a width x height frame, at least one unit apart."""
    x1, x2 = _side(box.x1, box.x2, width)
    y1, y2 = _side(box.y1, box.y2, height)
    return [x1, y1, x2, y2]


def _side(low: float, high: float, size: int) -> tuple[int, int]:
    start, stop = round(low * size), round(high * size)
    if start < stop:
        return start, stop
    start = min(math.floor(low * size), size - 1)
    return start, start + 1


def read_in(numbers: Sequence[float], width: float, height: float) -> Corners:
    """xyxy in units of a width x height frame -> normalised, clipped. Raises ValueError where they are no box."""
    if len(numbers) != 4:
        raise ValueError(f"a box has 4 numbers, got {len(numbers)}")
    x1, y1, x2, y2 = numbers
    corners = (_clip(x1 / width), _clip(y1 / height), _clip(x2 / width), _clip(y2 / height))
    if not (corners[0] < corners[2] and corners[1] < corners[3]):  # false for NaN too
        raise ValueError(f"[{x1:g}, {y1:g}, {x2:g}, {y2:g}] has no area inside {width:g} x {height:g}")
    return corners


def from_xywh(numbers: Sequence[float], width: float, height: float) -> Corners:
    """[x, y, box width, box height] in pixels of a width x height picture -> normalised xyxy, clipped."""
    if len(numbers) != 4:
        raise ValueError(f"a box has 4 numbers, got {len(numbers)}")
    x, y, box_width, box_height = numbers
    return read_in((x, y, x + box_width, y + box_height), width, height)


def _clip(value: float) -> float:
    return min(max(value, 0.0), 1.0) if not math.isnan(value) else value


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
