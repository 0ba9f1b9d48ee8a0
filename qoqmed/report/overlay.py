"""Boxes with their labels on the pictures that they lie on, at the pictures' own resolution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from qoqmed.media.window import Pixels
from qoqmed.types import Box

Color = tuple[int, int, int]

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
LINES = 300  # of the longer side are one line's width
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
    sheet = Image.new("RGB", (width, max(one.height for one in drawn)), LIGHT)
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
    for box in boxes:  # above all frames
        if box.label:
            color = COLORS[labels.index(box.label) % len(COLORS)]
            _tag(canvas, _corners(box, image.size), box.label, color, pen, image.size)
    return image


def _corners(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The outermost pixels inside a box."""
    width, height = size
    left, top = min(int(box.x1 * width), width - 1), min(int(box.y1 * height), height - 1)
    return left, top, max(left, round(box.x2 * width) - 1), max(top, round(box.y2 * height) - 1)


def _frame(canvas: ImageDraw.ImageDraw, corners: tuple[int, int, int, int], color: Color, line: int) -> None:
    """The coloured line inside the box, a dark one on either side of it: it shows on any ground."""
    left, top, right, bottom = corners
    canvas.rectangle((left - line, top - line, right + line, bottom + line), outline=DARK, width=line)
    inner = (left + line, top + line, right - line, bottom - line)
    if inner[0] + 2 * line < inner[2] and inner[1] + 2 * line < inner[3]:
        canvas.rectangle(inner, outline=DARK, width=line)
    canvas.rectangle(corners, outline=color, width=line)


def _tag(
    canvas: ImageDraw.ImageDraw,
    corners: tuple[int, int, int, int],
    label: str,
    color: Color,
    pen: Pen,
    size: tuple[int, int],
) -> None:
    """The label on its colour: above the box, else inside it, always on the picture."""
    left, top, right, bottom = canvas.textbbox((0, 0), label, font=pen.font)
    margin = 2 * pen.line
    width, height = int(right - left) + 2 * margin, int(bottom - top) + 2 * margin
    x = max(0, min(corners[0], size[0] - width))
    y = corners[1] - pen.line - height
    y = y if y >= 0 else min(corners[1] + pen.line, max(0, size[1] - height))
    canvas.rectangle((x, y, x + width - 1, y + height - 1), fill=color)
    dark = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] < 110
    canvas.text((x + margin - left, y + margin - top), label, fill=LIGHT if dark else DARK, font=pen.font)
