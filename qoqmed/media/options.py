"""How a spatial medium is read, as its row says: `Medium.options`, checked by name and value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

from qoqmed.errors import MediaError, Problem, near
from qoqmed.media.window import WINDOWS, Wish

AXES = ("axial", "coronal", "sagittal", "acquired")
NAMES: Mapping[str, tuple[str, ...]] = {
    "image": ("window",),
    "volume": ("axis", "frames", "time", "window"),
    "video": ("frames", "start_s", "stop_s"),
}
MAX_FRAMES = 1024
LARGEST = 1e30


@dataclass(frozen=True)
class Options:
    """axis: None leaves it to the kind of file (NIfTI: axial; DICOM: acquired). frames: None leaves it to data.frames.

    window: a name of `window.WINDOWS`, or (low, high) in the file's own intensities after its modality LUT. time: a
    time point of a NIfTI file, from 0. start_s, stop_s: the stretch of a video, in seconds of its own clock from 0.
    """

    axis: str | None = None
    window: Wish = "auto"
    frames: int | None = None
    time: int | None = None
    start_s: float = 0.0
    stop_s: float | None = None


def read(modality: str, given: Mapping[str, Any]) -> Options:
    """The options of an image, volume or video. Raises MediaError, without `where`, for the first that is wrong."""
    names = NAMES[modality]
    for name in given:
        if name not in names:
            known = f"of {', '.join(names)}"
            raise _wrong(f"the modality {modality!r} has no option {name!r}", name, known, near(str(name), names))
    options = Options(
        axis=_word(given, "axis", AXES),
        window=_window(given),
        frames=_whole(given, "frames", 1, MAX_FRAMES),
        time=_whole(given, "time", 0, 2**31),
        start_s=_seconds(given, "start_s") or 0.0,
        stop_s=_seconds(given, "stop_s"),
    )
    if options.stop_s is not None and options.stop_s <= options.start_s:
        stretch = f"{options.start_s:g} to {options.stop_s:g}"
        raise _wrong("the stretch of the video is empty", stretch, "'stop_s' after 'start_s'")
    return options


def _wrong(what: str, got: Any, expected: str, mend: str = "") -> MediaError:
    return MediaError(Problem(what, got=str(got)[:200], expected=expected, mend=mend))


def _word(given: Mapping[str, Any], name: str, known: tuple[str, ...]) -> str | None:
    value = given.get(name)
    if value is not None and value not in known:
        raise _wrong(f"the option {name!r}", repr(value), f"one of {', '.join(known)}", near(str(value), known))
    return value


def _window(given: Mapping[str, Any]) -> Wish:
    value = given.get("window", "auto")
    if isinstance(value, list | tuple):
        numbers = [_finite(edge) for edge in value]
        if len(numbers) == 2 and None not in numbers and value[0] < value[1]:
            return float(value[0]), float(value[1])
    elif isinstance(value, str) and value in WINDOWS:
        return value
    raise _wrong(
        "the option 'window'", repr(value), f"[low, high] or one of {', '.join(WINDOWS)}", near(str(value), WINDOWS)
    )


def _whole(given: Mapping[str, Any], name: str, low: int, high: int) -> int | None:
    value = given.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise _wrong(f"the option {name!r}", repr(value), f"a whole number from {low} to {high}")
    return value


def _seconds(given: Mapping[str, Any], name: str) -> float | None:
    value = given.get(name)
    if value is None:
        return None
    seconds = _finite(value)
    if seconds is None or seconds < 0:
        raise _wrong(f"the option {name!r}", repr(value), "seconds from 0")
    return seconds


def _finite(value: Any) -> float | None:
    """A plain number; None for whatever else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not -LARGEST < value < LARGEST:
        return None
    return float(value) if isfinite(value) else None
