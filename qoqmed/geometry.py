"""How a picture becomes tokens: original size -> resized size -> grid of merged cells (one vision token each).

The resize rule is Qwen2-VL's `smart_resize`: both sides multiples of patch * merge, pixels within bounds, aspect kept.

Coordinates are continuous: pixel i covers [i, i + 1), a picture [0, width]. The resize maps edges to edges, so that a
point keeps its share of either side; nothing is rounded before numbers are written (`qoqmed.boxes`) or drawn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

MAX_ASPECT = 200
SIZES = "media/sizes_px"  # attribute of a case: [width, height] or null of each medium

Units = Literal["original", "resized", "normalised"]


@dataclass(frozen=True)
class Geometry:
    """One picture. Sizes in pixels; `patch`: side of a vision patch; `merge`: patches per side of a merged cell."""

    width: int
    height: int
    resized_width: int
    resized_height: int
    patch: int
    merge: int

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of merged cells."""
        cell = self.patch * self.merge
        return self.resized_height // cell, self.resized_width // cell

    @property
    def tokens(self) -> int:
        """Vision tokens of one frame."""
        rows, columns = self.grid
        return rows * columns

    def size(self, units: Units) -> tuple[int, int]:
        """(width, height) of the picture in these units: original or resized pixels, or 1 x 1."""
        if units == "normalised":
            return 1, 1
        return (self.width, self.height) if units == "original" else (self.resized_width, self.resized_height)

    def convert(self, coordinates: npt.ArrayLike, source: Units, target: Units) -> npt.NDArray[np.float64]:
        """Points [..., 2] as (x, y), or boxes [..., 4] as xyxy, in `source` units -> the same in `target` units."""
        values = np.asarray(coordinates, dtype=np.float64)
        pairs = values.reshape(*values.shape[:-1], -1, 2)  # [..., 2 or 4] -> [..., 1 or 2, 2]
        return (pairs * self.size(target) / self.size(source)).reshape(values.shape)

    def resized_mask(self, mask: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """[height, width], nonzero inside -> bool [resized_height, resized_width]: pixels at least half covered."""
        return np.asarray(self._covered(mask, self.resized_height, self.resized_width) >= 0.5 - 1e-9)

    def cell_mask(self, mask: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """[height, width], nonzero inside -> [rows, columns] of merged cells: the fraction of each that is inside."""
        return self._covered(mask, *self.grid)

    def _covered(self, mask: npt.NDArray[Any], rows: int, columns: int) -> npt.NDArray[np.float64]:
        if mask.shape != (self.height, self.width):
            raise ValueError(f"a mask of shape {mask.shape} lies on a picture of {(self.height, self.width)}")
        inside = (mask != 0).astype(np.float64)
        return _means(_means(inside, rows).T, columns).T.clip(0, 1)


def fit(width: int, height: int, *, patch: int, merge: int, min_pixels: int, max_pixels: int) -> Geometry:
    """The geometry of a width x height picture. Raises ValueError where no grid fits (callers name the row)."""
    if width < 1 or height < 1:
        raise ValueError(f"a picture of {width} x {height} pixels is empty")
    if not 1 <= min_pixels <= max_pixels:
        raise ValueError(f"pixel bounds must satisfy 1 <= min_pixels <= max_pixels, got {min_pixels} and {max_pixels}")
    if max(width, height) / min(width, height) > MAX_ASPECT:
        raise ValueError(f"{width} x {height} pixels is too narrow: the long side may be {MAX_ASPECT} times the short")
    cell = patch * merge
    rows, columns = round(height / cell), round(width / cell)
    if rows * columns * cell * cell > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        rows = max(1, math.floor(height / shrink / cell))
        columns = max(1, math.floor(width / shrink / cell))
    elif rows * columns * cell * cell < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        rows, columns = math.ceil(height * grow / cell), math.ceil(width * grow / cell)
    return Geometry(width, height, columns * cell, rows * cell, patch, merge)


def _means(values: npt.NDArray[np.float64], parts: int) -> npt.NDArray[np.float64]:
    """[N, M] -> [parts, M]: means over `parts` equal stretches of the first axis; an edge may cut a value in two."""
    total = len(values)
    whole, rest = np.divmod(np.arange(parts + 1) * total, parts)  # edges at whole + rest / parts, without rounding
    sums = np.concatenate([np.zeros_like(values[:1]), values.cumsum(0)])
    upto = sums[whole] + values[np.minimum(whole, total - 1)] * (rest / parts)[:, None]
    return np.diff(upto, axis=0) * (parts / total)
