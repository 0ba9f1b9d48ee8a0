"""What the readers of volumes and wide pictures hand on, and how it becomes pictures of eight bits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from qoqmed.media.planes import square
from qoqmed.media.refusals import refused
from qoqmed.media.window import (
    PRESETS,
    Pixels,
    Window,
    Wish,
    full,
    grey_to_rgb,
    preset,
    require_finite,
    robust,
    stretch,
)


@dataclass(frozen=True)
class Slices:
    """values: [N, H, W] intensities, or [N, H, W, 3] uint8 where the file is in colour. window: the file's own.

    inverted: low is white. hounsfield: whether they are Hounsfield units; None: the file does not say. bits: of the
    stored values. spacing_mm: (down, across) where pixels are to be made square.
    """

    values: npt.NDArray[Any]
    window: Window | None = None
    inverted: bool = False
    hounsfield: bool | None = False
    bits: int = 16
    spacing_mm: tuple[float, float] | None = None


def shown(slices: Slices, wish: Wish, path: Path) -> Pixels:
    """Intensities or colour -> [N, H, W, 3], one window for all slices."""
    if slices.values.ndim == 4:
        if wish != "auto":
            raise refused(f"the window {wish!r} does not apply to a picture in colour", path, mend="leave it out")
        return slices.values
    require_finite(slices.values, path)
    grey = stretch(slices.values, _window(slices, wish, path))
    grey = 255 - grey if slices.inverted else grey
    if slices.spacing_mm is not None:
        grey = square(grey, slices.spacing_mm, path)
    return grey_to_rgb(grey)


def _window(slices: Slices, wish: Wish, path: Path) -> Window:
    if not isinstance(wish, str):
        return Window(*wish)
    if wish in PRESETS:
        _require_hounsfield(slices, wish, path)
        return preset(wish)
    if wish == "header" and slices.window is None:
        raise refused("the file gives no window", path, mend="window: auto, robust, full, a preset or [low, high]")
    if wish in ("auto", "header") and slices.window is not None:
        return slices.window
    return full(slices.values) if wish == "full" else robust(slices.values)


def _require_hounsfield(slices: Slices, wish: str, path: Path) -> None:
    """A file that does not say its unit (NIfTI) is taken at the row's word, unless its values cannot be it."""
    cause = ""
    if slices.bits <= 8:
        cause = f"the file has {slices.bits} bits"
    elif slices.hounsfield is False:
        cause = "the file is no CT in Hounsfield units"
    elif slices.hounsfield is None and slices.values.min() >= 0:
        cause = "the slices hold no value below 0, so neither air nor fat"
    if cause:
        expected = "CT in Hounsfield units"
        raise refused(f"the window {wish!r} does not apply: {cause}", path, expected, "window: robust, or [low, high]")
