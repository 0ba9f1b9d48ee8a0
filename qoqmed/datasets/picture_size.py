"""Width and height of a picture, of its header alone: rows of other tools have boxes in pixels and no size."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from qoqmed.media.paths import resolve
from qoqmed.media.refusals import decoding, refused

ORIENTATION = 0x0112  # EXIF; from 5 on the stored rows are the picture's columns


def picture_size(path: str, root: str | Path) -> tuple[int, int]:
    """Upright, in pixels. Raises MediaError, without `where`, for what is no picture file."""
    file = resolve(root, path)
    if file.is_dir():
        raise refused("the size of a folder is not known", path, "an image", "give the row 'width' and 'height'")
    with decoding("image", path), Image.open(file) as image:
        turned = image.getexif().get(ORIENTATION, 1) >= 5
        return (image.height, image.width) if turned else (image.width, image.height)
