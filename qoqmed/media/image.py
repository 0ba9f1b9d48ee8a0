"""Still pictures through Pillow: any mode to RGB.

Rules: the format is taken from the bytes, never from the name. EXIF orientation is applied; colour profiles are not.
More than 8 bits a channel: windowed as volumes are. Transparency is composed on black, which is the background of
radiographs. A file of several pages is refused: which page is meant cannot be known.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps

from qoqmed.media.planes import MAX_PIXELS
from qoqmed.media.refusals import decoding, refused
from qoqmed.media.slices import Slices, shown
from qoqmed.media.window import Pixels, Wish

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF")
WIDE_MODES = frozenset({"I", "F", "I;16", "I;16L", "I;16B", "I;16N"})
TIFF_PHOTOMETRIC = 262  # 0: low is white; Pillow turns 8 bits and fewer the right way, wider ones not


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
            ImageOps.exif_transpose(file, in_place=True)
            yield file


def _too_large(path: Path) -> Exception:
    return refused("the image is too large to decode", path, f"at most {MAX_PIXELS} pixels", "scale it down first")


def load(path: Path, window: Wish = "auto") -> Pixels:
    """A picture file -> [H, W, 3]."""
    with opened(path) as image:
        if image.mode in WIDE_MODES:
            inverted = image.format == "TIFF" and _photometric(image) == 0
            (picture,) = shown(Slices(np.asarray(image)[None], inverted=inverted), window, path)
            return np.asarray(picture)
        if window != "auto":
            raise refused(f"the window {window!r} does not apply to a picture of 8 bits", path, mend="leave it out")
        if image.has_transparency_data:
            layer = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", layer.size, (0, 0, 0, 255)), layer)
        return np.array(_from_lab(image) if image.mode == "LAB" else image.convert("RGB"))


def _photometric(image: Image.Image) -> int | None:
    tags = getattr(image, "tag_v2", {})
    return tags.get(TIFF_PHOTOMETRIC) if tags else None


def _from_lab(image: Image.Image) -> Image.Image:
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    rgb = ImageCms.applyTransform(image, ImageCms.buildTransform(lab, srgb, "LAB", "RGB"))
    assert rgb is not None  # None is for transforms in place
    return rgb
