"""Axial, coronal and sagittal slices of a volume, whatever its stored axes, in the radiological view.

Order: axial from feet to head, coronal from back to front, sagittal from left to right. View: axial with the front up,
coronal and sagittal with the head up; axial and coronal with the patient's right on the picture's left, sagittal with
the front on the left. An oblique volume is cut along its own axes, each named after the nearest of the body's. Where
voxels are not square within 1%, the coarser side is enlarged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from qoqmed.media.refusals import need, refused

BODY = ("sagittal", "coronal", "axial")  # slices across x, y, z
ALMOST_SQUARE = 1.01
MAX_PIXELS = 89_478_485  # Pillow's own limit, where it only warns

Choose = Callable[[int], Sequence[int]]  # number of slices -> the ones to read
Slab = Callable[[int], npt.NDArray[Any]]  # a place on the last stored axis -> [first axis, second axis]


@dataclass(frozen=True)
class Grid:
    """The three stored axes of a volume, the last the slowest: their lengths, the body axis that each runs along (0
    left to right, 1 back to front, 2 feet to head), whether it rises with it, and their spacings."""

    shape: tuple[int, int, int]
    body: tuple[int, int, int]
    rising: tuple[bool, bool, bool]
    spacing_mm: tuple[float, float, float]

    def plane(self, stored: int) -> str:
        """The plane of slices across a stored axis."""
        return BODY[self.body[stored]]


def grid(affine: npt.NDArray[np.float64], shape: Sequence[int], path: Path) -> Grid:
    """affine: [4, 4] from voxels to millimetres right, front and up (RAS+)."""
    orientations = need("nibabel.orientations", "imaging")
    spacing = np.sqrt((affine[:3, :3] ** 2).sum(0)) if np.abs(affine).max() < 1e6 else np.full(3, np.nan)
    axes = orientations.io_orientation(affine) if (spacing > 1e-6).all() else np.full((3, 2), np.nan)
    if not np.isfinite(axes).all():
        raise refused("the volume's affine does not say where its axes point", path)
    x, y, z = (int(axis) for axis in axes[:, 0])
    rising = [bool(sign > 0) for sign in axes[:, 1]]
    mm = [float(side) for side in spacing]
    i, j, k = (int(side) for side in shape)
    return Grid((i, j, k), (x, y, z), (rising[0], rising[1], rising[2]), (mm[0], mm[1], mm[2]))


def cut(grid: Grid, plane: str, choose: Choose, slab: Slab) -> npt.NDArray[Any]:
    """The chosen slices [N, H, W]; slabs are read once each, in stored order, and only those that are needed."""
    across = grid.body.index(BODY.index(plane))
    count = grid.shape[across]
    places = [place if grid.rising[across] else count - 1 - place for place in choose(count)]
    if across == 2:
        read = {place: slab(place) for place in sorted(places)}
        return _view(grid, across, np.stack([read[place] for place in places]))
    lines = [slab(place).take(places, axis=across) for place in range(grid.shape[2])]
    return _view(grid, across, np.moveaxis(np.stack(lines, axis=-1), across, 0))


def union(grid: Grid, plane: str, slab: Slab) -> npt.NDArray[np.bool_]:
    """What lies inside any slice [H, W] of a volume of bools."""
    across = grid.body.index(BODY.index(plane))
    slabs: Iterable[npt.NDArray[Any]] = (slab(place) for place in range(grid.shape[2]))
    if across == 2:
        flat = np.zeros(grid.shape[:2], dtype=bool)
        for part in slabs:
            flat |= part
    else:
        flat = np.stack([part.any(axis=across) for part in slabs], axis=-1)
    return np.asarray(_view(grid, across, flat[None])[0])


def spacing_in(grid: Grid, plane: str) -> tuple[float, float]:
    """Millimetres from pixel to pixel, (down, across)."""
    across, down = (axis for axis in range(3) if axis != BODY.index(plane))
    return grid.spacing_mm[grid.body.index(down)], grid.spacing_mm[grid.body.index(across)]


def _view(grid: Grid, across: int, stack: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """[N, a, b] over the other two stored axes -> [N, H, W]: rows run down the higher body axis of the two."""
    first, second = (axis for axis in range(3) if axis != across)
    if grid.body[first] < grid.body[second]:
        first, second, stack = second, first, stack.swapaxes(1, 2)
    stack = stack[:, ::-1] if grid.rising[first] else stack
    return stack[:, :, ::-1] if grid.rising[second] else stack


def square(stack: npt.NDArray[Any], spacing_mm: tuple[float, float], path: Path) -> npt.NDArray[Any]:
    """[N, H, W] uint8 (resampled by Lanczos) or bool (by nearest) with its coarser side enlarged to square pixels."""
    down, across = spacing_mm
    if max(down, across) <= ALMOST_SQUARE * min(down, across):
        return stack
    _, height, width = stack.shape
    height, width = (round(height * max(1.0, down / across)), round(width * max(1.0, across / down)))
    if height * width > MAX_PIXELS:
        raise refused(f"voxels of {down:g} x {across:g} mm make {width} x {height} pixels", path, f"{MAX_PIXELS}")
    return resized(stack, width, height)


def resized(stack: npt.NDArray[Any], width: int, height: int) -> npt.NDArray[Any]:
    """[N, H, W] uint8 or bool -> [N, height, width] of the same type."""
    method = Image.Resampling.NEAREST if stack.dtype == np.bool_ else Image.Resampling.LANCZOS
    pictures = (Image.fromarray(picture.astype(np.uint8)) for picture in stack)
    return np.stack([np.asarray(picture.resize((width, height), method)) for picture in pictures]).astype(stack.dtype)
