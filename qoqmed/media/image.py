"""Still pictures through Pillow: any mode to RGB.

Rules: the format is taken from the bytes, never from the name. EXIF orientation is applied; colour profiles are not.
More than 8 bits a channel: windowed as volumes are (`window.robust`). Transparency is composed on black, which is the
background of radiographs. A file of several pages is refused: which page is meant cannot be known.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from qoqmed.media.refusals import decoding, refused
from qoqmed.media.window import Pixels, grey_to_rgb, robust, stretch

MAX_PIXELS = 89_478_485  # Pillow's own limit, where it only warns
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF")
WIDE_MODES = frozenset({"I", "F", "I;16", "I;16L", "I;16B", "I;16N"})


@contextmanager
def opened(path: Path, formats: tuple[str, ...] = FORMATS) -> Iterator[Image.Image]:
    """The one page of a picture file, upright and not yet converted. Its size is checked before it is decoded."""
    with decoding("image", path):
        try:
            file = Image.open(path, formats=formats)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise _too_large(path) from error
        with file:
            if file.width * file.height > MAX_PIXELS:
                raise _too_large(path)
            pages = getattr(file, "n_frames", 1)
            if pages > 1 and file.format != "MPO":  # an MPO is a JPEG with previews behind the picture
                raise refused(f"the image has {pages} pages", path, expected="one page", mend="split it")
            yield ImageOps.exif_transpose(file)


def _too_large(path: Path) -> Exception:
    return refused("the image is too large to decode", path, f"at most {MAX_PIXELS} pixels", "scale it down first")


def load(path: Path) -> Pixels:
    """A picture file -> [H, W, 3]."""
    with opened(path) as image:
        if image.mode in WIDE_MODES:
            grey = np.asarray(image)
            return grey_to_rgb(stretch(grey, *robust(grey, path)))
        if image.has_transparency_data:
            layer = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", layer.size, (0, 0, 0, 255)), layer)
        return np.array(image.convert("RGB"))
