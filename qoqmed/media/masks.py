"""Segmentations as one bool picture [H, W] of the medium that they lie on.

Rules: nonzero is inside, any channel of it; a mask of no pixel is allowed. A NIfTI mask is the union of its slices, in
the plane and view in which its volume is shown. A mask of another size than its picture is resized by nearest
neighbour where their aspects agree. JPEG is refused: its noise would count as inside.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from qoqmed.media import nifti, options, planes, volume
from qoqmed.media.image import opened
from qoqmed.media.options import Options
from qoqmed.media.paths import resolve
from qoqmed.media.refusals import decoding, refused
from qoqmed.types import Box, Mask, Medium

Inside = npt.NDArray[np.bool_]

FORMATS = ("PNG", "TIFF", "BMP", "GIF")  # without loss
ROUNDING = 1  # pixel, up or down, of a side that somebody scaled


def load(mask: Mask, root: str | Path, medium: Medium | None = None) -> Inside:
    """A mask of a case -> [H, W], True inside. medium: what it lies on, whose options say how a volume is shown."""
    if mask.array is not None:
        return _union(_nonzero(np.asarray(mask.array), "array"), "array")
    if mask.path is None:
        raise refused("a mask has neither path nor array", "mask")
    path = resolve(root, mask.path)
    with decoding("mask", path):
        if not nifti.is_nifti(path):
            return _picture(path)
        return nifti.union(path, _options(medium, root))


def _options(medium: Medium | None, root: str | Path) -> Options:
    """Those of a volume, with its plane spelt out: what its own file means by it may not be what the mask's does."""
    if medium is None or medium.modality != "volume":
        return Options()
    wish = options.read(medium.modality, medium.options)
    if medium.path is None:
        return wish
    return replace(wish, axis=volume.plane(resolve(root, medium.path), wish))


def fit(inside: Inside, width: int, height: int, path: str | Path = "mask") -> Inside:
    """A mask -> [height, width], the size of the picture that it lies on, before any resizing for the policy."""
    rows, columns = inside.shape
    if (rows, columns) == (height, width):
        return inside
    larger = columns >= width
    small, large = ((width, height), (columns, rows)) if larger else ((columns, rows), (width, height))
    low = max((side - ROUNDING) / whole for side, whole in zip(small, large, strict=True))
    high = min((side + ROUNDING) / whole for side, whole in zip(small, large, strict=True))
    if low >= high:  # no one scale makes the small one of the large one
        sizes = f"the mask has {columns} x {rows} pixels and its picture {width} x {height}"
        raise refused(sizes, path, "the same shape", "give the mask that belongs to the picture")
    return np.asarray(planes.resized(inside[None], width, height)[0])


def _picture(path: Path) -> Inside:
    with opened(path, FORMATS) as image:
        bands = image.getbands()
        inside = _nonzero(np.asarray(image), path)
        if inside.ndim == 2:
            return inside
        colours = [index for index, band in enumerate(bands) if band not in ("A", "a")]
        return np.asarray(inside[..., colours].any(-1))


def _nonzero(values: npt.NDArray[np.generic], path: str | Path) -> Inside:
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise refused("the mask holds NaN or infinite values", path)
    return np.asarray(values != 0)


def _union(inside: Inside, path: str | Path) -> Inside:
    """[H, W] or slices [N, H, W] -> [H, W]."""
    if inside.ndim == 3:
        return np.asarray(inside.any(0))
    if inside.ndim != 2:
        raise refused(f"a mask has shape {inside.shape}", path, "[H, W], or slices [N, H, W]")
    return inside


def boxes_of_mask(inside: Inside, label: str = "", medium: int = 0) -> tuple[Box, ...]:
    """The tight box around all that is inside, normalised; none around an empty mask."""
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    if not rows.size:
        return ()
    height, width = inside.shape
    x1, x2 = columns[0] / width, (columns[-1] + 1) / width
    y1, y2 = rows[0] / height, (rows[-1] + 1) / height
    return (Box(float(x1), float(y1), float(x2), float(y2), label, medium),)
