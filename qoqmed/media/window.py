"""From intensities of any range to eight bits, and from one channel to three."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qoqmed.media.refusals import refused

Pixels = npt.NDArray[np.uint8]

ROBUST_PERCENT = (0.5, 99.5)
SAMPLE = 2_000_000  # percentiles of more values than this are taken from every n-th


def robust(values: npt.NDArray[Any], path: str | Path) -> tuple[float, float]:
    """The window from the 0.5th to the 99.5th percentile; from minimum to maximum where those two are equal (a
    picture that is nearly all background). NaN and infinities are refused."""
    flat = values.ravel()
    if not np.isfinite(flat).all():
        bad = int(flat.size - np.isfinite(flat).sum())
        raise refused(f"{bad} of {flat.size} intensities are NaN or infinite", path)
    step = max(1, flat.size // SAMPLE) | 1  # odd, so that it does not walk down one column
    low, high = (float(edge) for edge in np.percentile(flat[::step], ROBUST_PERCENT))
    if low == high:
        low, high = float(flat.min()), float(flat.max())
    return low, high


def stretch(values: npt.NDArray[Any], low: float, high: float) -> Pixels:
    """Intensities to 0..255: `low` and below is 0, `high` and above is 255; all 0 where the window is empty."""
    if high <= low:
        return np.zeros(values.shape, dtype=np.uint8)
    scaled = (values.astype(np.float32) - np.float32(low)) * np.float32(255.0 / (high - low))
    return np.asarray(np.rint(scaled.clip(0, 255)), dtype=np.uint8)


def grey_to_rgb(grey: Pixels) -> Pixels:
    """[..., H, W] to [..., H, W, 3]."""
    return np.repeat(grey[..., None], 3, axis=-1)


def evenly(total: int, count: int) -> Sequence[int]:
    """Positions of `count` slices or frames out of `total`: the middles of as many equal parts, floor((i + 0.5) *
    total / count). All of them, none twice, where there are no more than `count`."""
    if total <= count:
        return range(total)
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]
