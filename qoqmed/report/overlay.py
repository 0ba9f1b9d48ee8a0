"""Boxes with their labels on the pictures that they lie on, at the pictures' own resolution.

Pillow's own font has no letters beyond ASCII: accents are left out, and what is left without a letter is a "?".
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from qoqmed.media.window import Pixels
from qoqmed.types import Box

Color = tuple[int, int, int]
Corners = tuple[int, int, int, int]  # left, top, right, bottom, all inside

COLORS: tuple[Color, ...] = (  # Okabe and Ito's, which colour-blind readers tell apart, without black
    (240, 228, 66),
    (86, 180, 233),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (213, 94, 0),
    (0, 114, 178),
)
DARK: Color = (0, 0, 0)
LIGHT: Color = (255, 255, 255)
GROUND: Color = (128, 128, 128)  # where a picture is shorter than its neighbours
LINES = 200  # of the longer side are one line's width
LETTERS = 36  # of the longer side are one letter's height


@dataclass(frozen=True)
class Pen:
    """Widths in pixels, for one picture."""

    line: int
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont

    @classmethod
    def fit(cls, width: int, height: int) -> Pen:
        side = max(width, height)
        return cls(max(1, round(side / LINES)), ImageFont.load_default(size=max(10.0, side / LETTERS)))


def draw(pictures: Sequence[tuple[Pixels, Sequence[Box]]]) -> Image.Image:
    """Pictures [H, W, 3] uint8 with their boxes, side by side, tops in line. A label has one colour on all of them."""
    labels = list(dict.fromkeys(box.label for _, boxes in pictures for box in boxes))
    drawn = [_one(pixels, boxes, labels) for pixels, boxes in pictures]
    gap = max(2, max(one.width for one in drawn) // 50) if len(drawn) > 1 else 0
    width = sum(one.width for one in drawn) + gap * (len(drawn) - 1)
    sheet = Image.new("RGB", (width, max(one.height for one in drawn)), GROUND)
    left = 0
    for one in drawn:
        sheet.paste(one, (left, 0))
        left += one.width + gap
    return sheet


def _one(pixels: Pixels, boxes: Sequence[Box], labels: Sequence[str]) -> Image.Image:
    image = Image.fromarray(pixels)
    canvas, pen = ImageDraw.Draw(image), Pen.fit(image.width, image.height)
    for box in boxes:
        _frame(canvas, _corners(box, image.size), COLORS[labels.index(box.label) % len(COLORS)], pen.line)
    taken: list[Corners] = []
    for box in boxes:  # above all frames
        if text := _drawable(box.label):
            place = _room(
                canvas.textbbox((0, 0), text, font=pen.font), _corners(box, image.size), pen, image.size, taken
            )
            _tag(canvas, place, text, COLORS[labels.index(box.label) % len(COLORS)], pen)
            taken.append(place)
    return image


def _drawable(label: str) -> str:
    letters = (one for one in unicodedata.normalize("NFKD", label) if not unicodedata.combining(one))
    return "".join(one if one.isascii() else "?" for one in letters if one.isprintable())


def _corners(box: Box, size: tuple[int, int]) -> Corners:
    """The outermost pixels inside a box."""
    width, height = size
    left, top = min(int(box.x1 * width), width - 1), min(int(box.y1 * height), height - 1)
    return left, top, max(left, round(box.x2 * width) - 1), max(top, round(box.y2 * height) - 1)


def _frame(canvas: ImageDraw.ImageDraw, corners: Corners, color: Color, line: int) -> None:
    """The coloured line inside the box, a thin dark one on either side of it: it shows on any ground."""
    left, top, right, bottom = corners
    thin = max(1, line // 3)
    canvas.rectangle((left - thin, top - thin, right + thin, bottom + thin), outline=DARK, width=thin)
    inner = (left + line, top + line, right - line, bottom - line)
    if inner[0] + 2 * thin < inner[2] and inner[1] + 2 * thin < inner[3]:
        canvas.rectangle(inner, outline=DARK, width=thin)
    canvas.rectangle(corners, outline=color, width=line)


def _room(
    text: tuple[float, float, float, float], box: Corners, pen: Pen, size: tuple[int, int], taken: Sequence[Corners]
) -> Corners:
    """Where a box's label goes: above it, inside, or below, on the picture; the first place that no label has."""
    width, height = int(text[2] - text[0]) + 4 * pen.line, int(text[3] - text[1]) + 4 * pen.line
    x = max(0, min(box[0], size[0] - width))
    tops = (box[1] - pen.line - height, box[1] + pen.line, box[3] + pen.line, box[3] - pen.line - height)
    places = [(x, y, x + width - 1, y + height - 1) for y in tops if 0 <= y <= size[1] - height]
    free = [place for place in places if not any(_meet(place, other) for other in taken)]
    return (free or places or [(x, 0, x + width - 1, height - 1)])[0]


def _meet(one: Corners, other: Corners) -> bool:
    return one[0] <= other[2] and other[0] <= one[2] and one[1] <= other[3] and other[1] <= one[3]


def _tag(canvas: ImageDraw.ImageDraw, place: Corners, text: str, color: Color, pen: Pen) -> None:
    left, top, *_ = canvas.textbbox((0, 0), text, font=pen.font)
    canvas.rectangle(place, fill=color)
    dark = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] < 110
    start = (place[0] + 2 * pen.line - left, place[1] + 2 * pen.line - top)
    canvas.text(start, text, fill=LIGHT if dark else DARK, font=pen.font)
