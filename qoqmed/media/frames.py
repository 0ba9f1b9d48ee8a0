"""One door to every spatial medium: an image, volume or video of a case as a list of RGB pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from qoqmed.media import dicom, image, options, video, volume
from qoqmed.media.options import Options
from qoqmed.media.paths import resolve
from qoqmed.media.refusals import decoding, refused
from qoqmed.media.window import Pixels, evenly
from qoqmed.types import SPATIAL, Medium


def load(medium: Medium, root: str | Path, frames: int) -> list[Pixels]:
    """An image -> one picture; a volume or video -> at most `frames` (the medium's own option goes first), evenly
    spaced. Each is [H, W, 3] uint8. Raises MediaError, without `where`."""
    if medium.modality not in SPATIAL:
        raise refused(f"a medium of modality {medium.modality!r} has no pictures", medium.path or "array")
    wish = options.read(medium.modality, medium.options)
    count = wish.frames or frames
    if medium.array is not None:
        return _in_memory(medium, medium.array, count)
    if medium.path is None:
        raise refused(f"the {medium.modality} has neither path nor array", "medium")
    path = resolve(root, medium.path)
    with decoding(medium.modality, path):
        if medium.modality == "image":
            return [_image(path, wish)]
        return list(volume.load(path, count, wish) if medium.modality == "volume" else video.load(path, count, wish))


def _image(path: Path, wish: Options) -> Pixels:
    if path.is_dir():
        raise refused("an image is a file and this is a folder", path, mend="give it the modality 'volume'")
    if not dicom.is_dicom(path):
        return image.load(path, wish.window)
    pictures = list(volume.load(path, 2, wish))
    if len(pictures) > 1:
        raise refused("the DICOM file has several frames", path, mend="give it the modality 'volume'")
    (picture,) = pictures
    return np.asarray(picture)


def _in_memory(medium: Medium, array: Pixels, frames: int) -> list[Pixels]:
    axes = "[H, W, 3]" if medium.modality == "image" else "[N, H, W, 3]"
    if array.dtype != np.uint8 or array.ndim != axes.count(",") + 1 or array.shape[-1] != 3 or 0 in array.shape:
        raise refused(f"the {medium.modality} array is {array.dtype} {array.shape}", "array", f"uint8 {axes}")
    if set(medium.options) - {"frames"}:
        raise refused(f"options are for files: {', '.join(medium.options)}", "array", mend="leave them out")
    if medium.modality == "image":
        return [array]
    return [array[position] for position in evenly(len(array), frames)]
