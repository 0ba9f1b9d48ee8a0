"""How a picture becomes tokens: original size -> resized size -> grid of merged cells (one vision token each).

The resize rule is Qwen2-VL's `smart_resize`: both sides multiples of patch * merge, pixels within bounds, aspect kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

MAX_ASPECT = 200


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
