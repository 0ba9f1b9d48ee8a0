r"""Boxes of a response: json between code fences, or, where there is none, json that stands free in the text.

The house shape is a list of `{"bbox_2d": [x1, y1, x2, y2], "label": "..."}`; one object, and "bbox", will do as well.
Read too, with the flaw `json_repaired`: other names of the keys; a list of four numbers, or of such lists; two points
`[[x1, y1], [x2, y2]]`; corners by name; several boxes of one label; boxes by label; objects inside objects; several
values in one block; the whole items of a list that breaks off. Nothing is evaluated: json's own scanner reads, and what
it refuses is no box.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qoqmed.types import Flaw

MAX_BOXES = 100  # per response: a flood of boxes is no answer, and each costs an IoU
MAX_BLOCKS = 32
MAX_STARTS = 8  # places without a fence where json is looked for: each may cost a pass over the text
MAX_DEPTH = 4  # objects inside objects
MAX_NUMBER = 1e7  # of a box's coordinates: larger ones are no pixels
MAX_LABEL = 200  # characters of a box's label
DETAIL = 80  # characters of the text that a flaw quotes

FENCE = "```"
START = re.compile(r'\[\s*[\[{]|\{\s*"')
QUOTED = re.compile(r"\s*\d{1,4}\s*")
HOUSE_KEYS = ("bbox_2d", "bbox")
BOX_KEYS = (*HOUSE_KEYS, "box_2d", "box", "bboxes", "boxes", "bounding_box", "bounding_boxes")
NAME_KEYS = ("label", "name", "class", "category", "labels")
CORNERS = (("x1", "y1", "x2", "y2"), ("xmin", "ymin", "xmax", "ymax"), ("x_min", "y_min", "x_max", "y_max"))
WRAPPERS = frozenset({"objects", "detections", "findings", "results", "regions", "annotations", "predictions"})


@dataclass(frozen=True)
class RawBox:
    """Four finite numbers in the response's own frame; `picture`: which of the case's pictures, from 1, if said."""

    numbers: tuple[float, float, float, float]
    label: str = ""
    picture: int | None = None


def read_boxes(text: str, flaws: list[Flaw]) -> tuple[RawBox, ...]:
    """At most `MAX_BOXES`, in their order; what is wrong or was mended goes to `flaws`."""
    blocks = list(_fenced(text, flaws))
    if len(blocks) > 1:
        flaws.append(Flaw("json_repeated", f"{len(blocks)} blocks"))
    boxes: list[RawBox] = []
    for value in [value for block in blocks for value in _values(block, flaws)] if blocks else _free(text, flaws):
        for box in _found(value, "", None, 0, flaws):
            boxes.append(box)
            if len(boxes) > MAX_BOXES:
                flaws.append(Flaw("too_many_boxes", f"read {MAX_BOXES}"))
                return tuple(boxes[:MAX_BOXES])
    return tuple(boxes)


def _fenced(text: str, flaws: list[Flaw]) -> Iterator[str]:
    """The texts between code fences marked json, or unmarked and starting like json."""
    start, blocks = text.find(FENCE), 0
    while start >= 0 and blocks < MAX_BLOCKS:
        stop = text.find(FENCE, start + len(FENCE))
        block = text[start + len(FENCE) : stop if stop >= 0 else len(text)].strip()
        marked = block[:4].lower() == "json"
        block = block[4:].lstrip() if marked else block
        if marked or block[:1] in ("[", "{"):
            blocks += 1
            if stop < 0:
                flaws.append(Flaw("json_unclosed"))
            yield block
        start = text.find(FENCE, stop + len(FENCE)) if stop >= 0 else -1


def _free(text: str, flaws: list[Flaw]) -> list[Any]:
    """Values of json without a fence, where the text names a box at all."""
    if not any(f'"{key}"' in text for key in BOX_KEYS):
        return []
    values, match = [], START.search(text)
    for _ in range(MAX_STARTS):
        if match is None:
            break
        value, stop, error = _decode(text, match.start())
        found = _whole_items(text, match.start()) if error else [value]
        if found:
            values += found
            flaws.append(Flaw("json_unfenced"))
            if error:
                flaws.append(Flaw("json_invalid", error))
                break
        match = START.search(text, max(stop, match.start() + 1))
    return values


def _values(block: str, flaws: list[Flaw]) -> list[Any]:
    """The block's value, and those that follow it, as in a block of one object a line."""
    first = None if block[:1] in ("[", "{") else START.search(block)
    if first is not None:
        flaws.append(Flaw("json_repaired", f"left out what precedes the json: {block[:DETAIL]}"))
        block = block[first.start() :]
    value, stop, error = _decode(block, 0)
    if error:
        flaws.append(Flaw("json_invalid", error))
        items = _whole_items(block, 0)
        if items:
            flaws.append(Flaw("json_repaired", f"{len(items)} whole items before the fault"))
        return items
    following, stop = _items_from(block, stop)
    if following:
        flaws.append(Flaw("json_repaired", f"{1 + len(following)} values in one block"))
    rest = block[stop:].strip()
    if rest and Flaw("json_unclosed") not in flaws:  # there it is the rest of the response
        flaws.append(Flaw("json_repaired", f"left out what follows the json: {rest[:DETAIL]}"))
    return [value, *following]


def _decode(text: str, start: int) -> tuple[Any, int, str]:
    """The json value that starts there, where it ends, and why there is none."""
    try:  # json has no way to ask whether a text is valid
        value, stop = DECODER.raw_decode(text, start)
    except (ValueError, RecursionError) as error:
        return None, start, str(error)[:DETAIL]
    return value, stop, ""


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is no number of a box")


DECODER = json.JSONDecoder(parse_constant=_refuse)
GAP = re.compile(r"[\s,]*")


def _whole_items(text: str, start: int) -> list[Any]:
    """Of a list that is broken somewhere: the objects and lists before that."""
    return _items_from(text, start + 1)[0] if text[start : start + 1] == "[" else []


def _items_from(text: str, start: int) -> tuple[list[Any], int]:
    """Objects and lists in a row, only white space and commas between them, and where what follows starts."""
    items: list[Any] = []
    position, error = start, ""
    while not error:
        gap = GAP.match(text, position)
        position = gap.end() if gap else position
        if text[position : position + 1] not in ("[", "{"):
            break
        value, position, error = _decode(text, position)
        items += [] if error else [value]
    return items, position


def _found(item: Any, label: str, picture: int | None, depth: int, flaws: list[Flaw]) -> Iterator[RawBox]:
    """The boxes of one json value; label and picture are those of the object around it."""
    if isinstance(item, list) and depth < MAX_DEPTH:
        numbers = _numbers(item)
        if numbers is None:
            yield from (box for one in item for box in _found(one, label, picture, depth + 1, flaws))
        else:
            flaws.append(Flaw("json_repaired", "a list of numbers"))
            yield RawBox(numbers, label, picture)
    elif isinstance(item, dict) and depth < MAX_DEPTH:
        yield from _of_object(item, label, picture, depth, flaws)
    else:
        flaws.append(Flaw("json_shape", f"a {type(item).__name__} without bbox_2d"))


def _of_object(
    item: Mapping[str, Any], label: str, picture: int | None, depth: int, flaws: list[Flaw]
) -> Iterator[RawBox]:
    names = [item[key] for key in NAME_KEYS if item.get(key) is not None]
    label = next((name[:MAX_LABEL] for name in names if isinstance(name, str)), label)
    flaws += [Flaw("json_shape", f"a name that is a {type(one).__name__}") for one in names if not _nameable(one)]
    picture = _picture(item, picture, flaws)
    key = next((key for key in BOX_KEYS if item.get(key) is not None), None)
    corners = next((keys for keys in CORNERS if all(one in item for one in keys)), None)
    inner = [(name, one) for name, one in item.items() if isinstance(one, (list, dict)) and name not in NAME_KEYS]
    if key is not None:
        yield from _of_key(item, key, label, picture, depth, flaws)
    elif corners is not None:
        numbers = _numbers([item[one] for one in corners])
        flaws.append(Flaw("json_repaired", "corners by name") if numbers else _no_numbers())
        yield from [RawBox(numbers, label, picture)] if numbers else []
    elif inner:
        flaws.append(Flaw("json_repaired", "boxes inside another object"))
        for name, one in inner:
            own = label if name.lower() in WRAPPERS else name[:MAX_LABEL]
            yield from _found(one, own, picture, depth + 1, flaws)
    else:
        flaws.append(Flaw("json_shape", "a dict without bbox_2d"))


def _of_key(
    item: Mapping[str, Any], key: str, label: str, picture: int | None, depth: int, flaws: list[Flaw]
) -> Iterator[RawBox]:
    """The box under its key, or several of them, each with the label at its place where there are as many."""
    value = item[key]
    numbers = _numbers(value)
    if numbers is not None:
        if key not in HOUSE_KEYS:
            flaws.append(Flaw("json_repaired", f"boxes under {key!r}"))
        yield RawBox(numbers, label, picture)
    elif isinstance(value, dict):
        yield from _found(value, label, picture, depth + 1, flaws)
    elif value and isinstance(value, list) and all(isinstance(one, (list, dict)) for one in value):
        flaws.append(Flaw("json_repaired", f"several boxes under {key!r}"))
        names: list[Any] = next((item[name] for name in NAME_KEYS if isinstance(item.get(name), list)), [])
        own = names if len(names) == len(value) else [label] * len(value)
        for one, name in zip(value, own, strict=True):
            yield from _found(one, name[:MAX_LABEL] if isinstance(name, str) else label, picture, depth + 1, flaws)
    else:
        flaws.append(_no_numbers())


def _nameable(name: Any) -> bool:
    """One name, or a list of one for each box."""
    return isinstance(name, (str, list))


def _picture(item: Mapping[str, Any], around: int | None, flaws: list[Flaw]) -> int | None:
    """The number of the picture, counted from 1: the object's own, or that of the object around it."""
    given = item.get("image")
    if given is None or type(given) is int:
        return around if given is None else given
    if isinstance(given, str) and QUOTED.fullmatch(given):
        flaws.append(Flaw("json_repaired", "a picture's number in quotes"))
        return int(given)
    flaws.append(Flaw("json_shape", f"an image that is a {type(given).__name__}"))
    return around


def _no_numbers() -> Flaw:
    return Flaw("box_invalid", "not 4 finite numbers")


def _numbers(value: Any) -> tuple[float, float, float, float] | None:
    """Four finite numbers, or two points of two; None for anything else."""
    if not isinstance(value, list):
        return None
    if len(value) == 2 and all(isinstance(point, list) and len(point) == 2 for point in value):
        value = [*value[0], *value[1]]
    if len(value) != 4 or not all(_is_coordinate(number) for number in value):
        return None
    x1, y1, x2, y2 = (float(number) for number in value)
    return x1, y1, x2, y2


def _is_coordinate(number: Any) -> bool:
    return isinstance(number, (int, float)) and not isinstance(number, bool) and -MAX_NUMBER <= number <= MAX_NUMBER
