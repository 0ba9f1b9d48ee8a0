"""Segmentations as one bool picture [H, W] of the medium that they lie on.

Rules: nonzero is inside, any channel of it; a mask of no pixel is allowed. A NIfTI mask is the union of its slices, in
the view that `nifti` gives the volume. JPEG is refused: its noise would count as inside.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from qoqmed.media import nifti
from qoqmed.media.image import opened
from qoqmed.media.paths import resolve
from qoqmed.media.refusals import refused
from qoqmed.types import Box, Mask

Inside = npt.NDArray[np.bool_]

FORMATS = ("PNG", "TIFF", "BMP", "GIF")  # without loss


def load(mask: Mask, root: str | Path) -> Inside:
    """A mask of a case -> [H, W], True inside."""
    if mask.array is not None:
        return _union(np.asarray(mask.array) != 0, "array")
    if mask.path is None:
        raise refused("a mask has neither path nor array", "mask")
    path = resolve(root, mask.path)
    if not nifti.is_nifti(path):
        return _picture(path)
    values = nifti.slices(path, range)
    if not np.isfinite(values).all():
        raise refused("the mask holds NaN or infinite values", path)
    return _union(values != 0, path)


def _picture(path: Path) -> Inside:
    with opened(path, FORMATS) as image:
        bands = image.getbands()
        inside = np.asarray(image) != 0
        if inside.ndim == 2:
            return np.asarray(inside)
        colours = [index for index, band in enumerate(bands) if band not in ("A", "a")]
        return np.asarray(inside[..., colours].any(-1))


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
