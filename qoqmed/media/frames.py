"""One door to every spatial medium: an image, volume or video of a case as a list of RGB pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from qoqmed.media import dicom, image, video, volume
from qoqmed.media.paths import resolve
from qoqmed.media.refusals import refused
from qoqmed.media.window import Pixels, evenly
from qoqmed.types import SPATIAL, Medium


def load(medium: Medium, root: str | Path, frames: int) -> list[Pixels]:
    """An image -> one picture; a volume or video -> at most `frames`, evenly spaced. Each is [H, W, 3] uint8."""
    if medium.modality not in SPATIAL:
        raise refused(f"a medium of modality {medium.modality!r} has no pictures", medium.path or "array")
    if medium.array is not None:
        return _in_memory(medium, medium.array, frames)
    if medium.path is None:
        raise refused(f"the {medium.modality} has neither path nor array", "medium")
    path = resolve(root, medium.path)
    if medium.modality == "image":
        return [_image(path)]
    return list(volume.load(path, frames) if medium.modality == "volume" else video.load(path, frames))


def _image(path: Path) -> Pixels:
    if path.is_dir():
        raise refused("an image is a file and this is a folder", path, mend="give it the modality 'volume'")
    if not dicom.is_dicom(path):
        return image.load(path)
    pictures = list(volume.load(path, 2))
    if len(pictures) > 1:
        raise refused("the DICOM file has several frames", path, mend="give it the modality 'volume'")
    (picture,) = pictures
    return np.asarray(picture)


def _in_memory(medium: Medium, array: Pixels, frames: int) -> list[Pixels]:
    axes = "[H, W, 3]" if medium.modality == "image" else "[N, H, W, 3]"
    if array.dtype != np.uint8 or array.ndim != axes.count(",") + 1 or array.shape[-1] != 3 or 0 in array.shape:
        raise refused(f"the {medium.modality} array is {array.dtype} {array.shape}", "array", f"uint8 {axes}")
    if medium.modality == "image":
        return [array]
    return [array[position] for position in evenly(len(array), frames)]
