r"""The parser of responses: reasoning in <think></think>, boxes in fenced json, the final answer in \boxed{}.

Never raises on a response: what is wrong becomes a `Flaw`. Time is linear in the text on any input: every pass is a
`str.find`, `json`'s own scanner, or a regular expression without nested repetition. Labels: see `labels`.

Kinds of flaw: too_long, think_missing, think_unopened, think_unclosed, think_repeated, json_unclosed, json_invalid,
json_shape, json_repeated, box_invalid, too_many_boxes, boxed_missing, boxed_unclosed, boxed_repeated, boxed_in_think.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from qoqmed.types import Flaw

MAX_CHARACTERS = 262_144
MAX_BOXES = 100  # per response: a flood of boxes is no answer, and each costs an IoU
MAX_NUMBER = 1e7  # of a box's coordinates: larger ones are no pixels
MAX_LABEL = 200  # characters of a box's label
DETAIL = 80  # characters of the text that a flaw quotes

OPEN, CLOSE, FENCE = "<think>", "</think>", "```"
BOX_KEYS = ("bbox_2d", "bbox")
BRACES = re.compile(r"\{|\}|\\(?:[{}]|boxed\s*\{)")  # alternatives that each start with a literal: 3 times faster


@dataclass(frozen=True)
class RawBox:
    """Four finite numbers in the response's own frame; `picture`: which of the case's pictures, from 1, if said."""

    numbers: tuple[float, float, float, float]
    label: str = ""
    picture: int | None = None


@dataclass(frozen=True)
class Parsed:
    r"""What a response says, before the case is known. answer: the text inside the last \boxed{}, None without one."""

    reasoning: str = ""
    boxes: tuple[RawBox, ...] = ()
    answer: str | None = None
    flaws: tuple[Flaw, ...] = ()


def parse(text: str) -> Parsed:
    """Reads a whole response. Flaws, each once, in the order: length, think, json and boxes, answer."""
    flaws: list[Flaw] = []
    if len(text) > MAX_CHARACTERS:
        flaws.append(Flaw("too_long", f"{len(text)} characters, read {MAX_CHARACTERS}"))
        text = text[:MAX_CHARACTERS]
    reasoning, answer_start = _think(text, flaws)
    boxes = _boxes(text, flaws)
    answer = _boxed(text, answer_start, flaws)
    return Parsed(reasoning, boxes, answer, tuple(dict.fromkeys(flaws)))


def _think(text: str, flaws: list[Flaw]) -> tuple[str, int]:
    """The reasoning, and where the text after it starts."""
    opened, closed = text.find(OPEN), text.find(CLOSE)
    if text.find(OPEN, opened + 1) > opened >= 0 or text.find(CLOSE, closed + 1) > closed >= 0:
        flaws.append(Flaw("think_repeated"))
    if opened < 0 and closed < 0:
        flaws.append(Flaw("think_missing"))
        return "", 0
    if closed < 0:
        flaws.append(Flaw("think_unclosed"))
        return text[opened + len(OPEN) :].strip(), opened
    if opened < 0 or opened > closed:
        flaws.append(Flaw("think_unopened"))
        return text[:closed].strip(), closed + len(CLOSE)
    return text[opened + len(OPEN) : closed].strip(), closed + len(CLOSE)


def _boxes(text: str, flaws: list[Flaw]) -> tuple[RawBox, ...]:
    boxes: list[RawBox] = []
    blocks = 0
    for block in _json_blocks(text, flaws):
        blocks += 1
        try:  # json has no way to ask whether a text is valid
            value, _ = json.JSONDecoder(parse_constant=_refuse).raw_decode(block)
        except (ValueError, RecursionError) as error:
            flaws.append(Flaw("json_invalid", str(error)[:DETAIL]))
            continue
        items = value if isinstance(value, list) else [value]
        boxes += [box for item in items[: MAX_BOXES + 1] if (box := _box(item, flaws))]
    if blocks > 1:
        flaws.append(Flaw("json_repeated", f"{blocks} blocks"))
    if len(boxes) > MAX_BOXES:
        flaws.append(Flaw("too_many_boxes", f"read {MAX_BOXES}"))
    return tuple(boxes[:MAX_BOXES])


def _json_blocks(text: str, flaws: list[Flaw]) -> Iterator[str]:
    """The texts between code fences marked json, or unmarked and starting like json."""
    start = text.find(FENCE)
    while start >= 0:
        stop = text.find(FENCE, start + len(FENCE))
        block = text[start + len(FENCE) : stop if stop >= 0 else len(text)].lstrip()
        marked = block[:4].lower() == "json"
        block = block[4:].lstrip() if marked else block
        if marked or block[:1] in ("[", "{"):
            if stop < 0:
                flaws.append(Flaw("json_unclosed"))
            yield block
        start = text.find(FENCE, stop + len(FENCE)) if stop >= 0 else -1


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is no number of a box")


def _box(item: Any, flaws: list[Flaw]) -> RawBox | None:
    numbers = next((item[key] for key in BOX_KEYS if key in item), None) if isinstance(item, dict) else None
    if numbers is None:
        flaws.append(Flaw("json_shape", f"a {type(item).__name__} without bbox_2d"))
        return None
    if not isinstance(numbers, list) or len(numbers) != 4 or not all(_is_coordinate(number) for number in numbers):
        flaws.append(Flaw("box_invalid", "not 4 finite numbers"))
        return None
    x1, y1, x2, y2 = (float(number) for number in numbers)
    label, picture = item.get("label"), item.get("image")
    return RawBox(
        (x1, y1, x2, y2),
        label[:MAX_LABEL] if isinstance(label, str) else "",
        picture if type(picture) is int else None,
    )


def _is_coordinate(number: Any) -> bool:
    return isinstance(number, (int, float)) and not isinstance(number, bool) and -MAX_NUMBER <= number <= MAX_NUMBER


def _boxed(text: str, answer_start: int, flaws: list[Flaw]) -> str | None:
    r"""The text inside the last complete outermost \boxed{}; braces are counted, escaped ones are plain text."""
    spans: list[tuple[int, int]] = []  # outermost so far: an outer one replaces those inside it
    stack: list[tuple[bool, int]] = []  # open braces: whether of \boxed, and where their content starts
    for match in BRACES.finditer(text):
        token = match.group()
        if token == "}":
            boxed, start = stack.pop() if stack else (False, 0)
            if boxed:
                while spans and spans[-1][0] > start:
                    spans.pop()
                spans.append((start, match.start()))
        elif token[-1] == "{" and token != "\\{":
            stack.append((token != "{", match.end()))
    if any(boxed for boxed, _ in stack):
        flaws.append(Flaw("boxed_unclosed"))
    if not spans:
        flaws.append(Flaw("boxed_missing"))
        return None
    start, stop = spans[-1]
    if start < answer_start:
        flaws.append(Flaw("boxed_in_think"))
    elif len(spans) > 1 and spans[-2][0] >= answer_start:
        flaws.append(Flaw("boxed_repeated", text[slice(*spans[-2])][:DETAIL]))
    return text[start:stop].strip()
