"""From intensities of any range to eight bits, and from one channel to three.

Windows by name: `auto` (the file's own, else `robust`), `header` (the file's own), `robust`, `full` (minimum to
maximum), and presets for Hounsfield units. Level and width of the presets: Radiopaedia, "Windowing (CT)" (Bell, Murphy
et al.); where it gives a range (subdural, soft tissues), a common pair within it. Low and high: level -/+ width / 2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qoqmed.media.refusals import refused

Pixels = npt.NDArray[np.uint8]
Wish = str | tuple[float, float]  # a name of WINDOWS, or low and high

PRESETS: Mapping[str, tuple[float, float]] = {  # level and width in Hounsfield units
    "lung": (-600, 1500),
    "mediastinum": (50, 350),
    "soft_tissue": (40, 400),
    "abdomen": (50, 400),
    "liver": (30, 150),
    "bone": (400, 1800),
    "brain": (40, 80),
    "subdural": (75, 215),
    "stroke": (40, 40),
}
WINDOWS = ("auto", "header", "robust", "full", *PRESETS)
ROBUST_PERCENT = (0.5, 99.5)
SAMPLE = 2_000_000  # percentiles of more values than this are taken from every n-th
BLOCK = 2**20  # values stretched at a time
ABSURD = 1e30


@dataclass(frozen=True)
class Window:
    """`low` becomes 0 and `high` 255, in a line; sigmoid: DICOM's curve around their middle (PS3.3 C.11.2.1.3.1)."""

    low: float
    high: float
    sigmoid: bool = False


def preset(name: str) -> Window:
    """The window of a name in PRESETS."""
    level, width = PRESETS[name]
    return Window(level - width / 2, level + width / 2)


def require_finite(values: npt.NDArray[Any], path: str | Path) -> None:
    """Refuses NaN, infinities, and what no scanner measures (beyond 1e30)."""
    if values.dtype.kind == "f":
        good = np.abs(values) < ABSURD  # NaN compares as false
        if not good.all():
            bad = int(values.size - good.sum())
            raise refused(f"{bad} of {values.size} intensities are NaN, infinite or beyond {ABSURD:g}", path)


def robust(values: npt.NDArray[Any]) -> Window:
    """From the 0.5th to the 99.5th percentile; from minimum to maximum where those two are equal (a picture that is
    nearly all background)."""
    flat = values.ravel()
    step = max(1, flat.size // SAMPLE) | 1  # odd, so that it does not walk down one column
    low, high = (float(edge) for edge in np.percentile(flat[::step], ROBUST_PERCENT))
    return Window(low, high) if low < high else full(values)


def full(values: npt.NDArray[Any]) -> Window:
    """From minimum to maximum."""
    return Window(float(values.min()), float(values.max()))


def stretch(values: npt.NDArray[Any], window: Window) -> Pixels:
    """Finite intensities to 0..255; all 0 where the window is empty."""
    out = np.zeros(values.shape, dtype=np.uint8)
    width = window.high - window.low
    if width > 0:
        flat, shown = values.reshape(-1), out.reshape(-1)
        for start in range(0, flat.size, BLOCK):  # block by block: float64 of a whole picture would be eight times it
            block = flat[start : start + BLOCK].astype(np.float64)
            if window.sigmoid:
                middle = window.low + width / 2
                share = 1 / (1 + np.exp(-(4 * (block - middle) / width).clip(-50, 50)))
            else:
                share = (block.clip(window.low, window.high) - window.low) / width
            shown[start : start + BLOCK] = np.rint(255 * share)
    return out


def grey_to_rgb(grey: Pixels) -> Pixels:
    """[..., H, W] to [..., H, W, 3]."""
    return np.repeat(grey[..., None], 3, axis=-1)


def evenly(total: int, count: int) -> Sequence[int]:
    """Positions of `count` slices or frames out of `total`: the middles of as many equal parts, floor((i + 0.5) *
    total / count). All of them, none twice, where there are no more than `count`."""
    if total <= count:
        return range(total)
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]
