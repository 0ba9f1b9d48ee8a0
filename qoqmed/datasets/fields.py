"""The values of a row's fields, each read by its rule (the table is in `rows`). What breaks a rule is a DataError."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from qoqmed.errors import DataError, Problem, near
from qoqmed.media import options
from qoqmed.types import SPATIAL, Box, Medium

MEDIUM_FIELDS = ("modality", "path", "view")
PLAIN = str | int | float | bool
PAIR = ("chosen", "rejected")
BOX_FIELDS = ("boxes", "boxes_px", "boxes_xywh")
OVERSHOOT = 0.01  # of a side
LARGEST = 1e300
LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # half a character: JSON can write it, UTF-8 cannot

Given = Mapping[str, Any]  # a row under our names, without nulls


def wrong(what: str, got: Any = "", expected: str = "", mend: str = "") -> DataError:
    """A row's mistake; `jsonl` adds where."""
    return DataError(Problem(what, got=str(got)[:200], expected=expected, mend=mend))


def text(given: Given, name: str, required: bool = False) -> str:
    value = given.get(name, "")
    if not isinstance(value, str):
        raise wrong(f"{name!r} is no text", repr(value), expected="text in quotes")
    if required and not value.strip():
        raise wrong(f"{name!r} is missing or blank")
    if not value.isascii() and LONE_SURROGATE.search(value):
        raise wrong(f"{name!r} has half a character in it", repr(value))
    return value


def texts(given: Given, name: str) -> tuple[str, ...] | None:
    value = given.get(name)
    if value is None:
        return None
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list):
        raise wrong(f"{name!r} is no list of texts", repr(value))
    if all(type(item) is str and item.isascii() and item.strip() for item in items):
        return tuple(items)
    return tuple(text({name: item}, name, required=True) for item in items)


def number(given: Given, name: str) -> float | None:
    value = given.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not -LARGEST < value < LARGEST:
        raise wrong(f"{name!r} is no finite number", repr(value))
    return float(value)


def truth(given: Given, name: str) -> bool | None:
    value = given.get(name)
    if value is not None and not isinstance(value, bool):
        raise wrong(f"{name!r} is neither true nor false", repr(value))
    return value


def pair(given: Given) -> dict[str, str]:
    """A chosen and a rejected response, as the attributes that `objectives.dpo` reads; {} where the row has none."""
    present = [name for name in PAIR if name in given]
    if not present:
        return {}
    if len(present) < len(PAIR):
        raise wrong(f"the row has {present[0]!r} alone", mend="a pair of responses is 'chosen' and 'rejected'")
    chosen, rejected = (text(given, name, required=True) for name in PAIR)
    if chosen == rejected:
        raise wrong("'chosen' and 'rejected' are the same text", repr(chosen))
    return {"dpo/chosen": chosen, "dpo/rejected": rejected}


def media(given: Given, prefix: str) -> tuple[Medium, ...]:
    value, view = given.get("media", []), text(given, "view")
    if isinstance(value, dict):
        pairs = [(modality, paths if isinstance(paths, list) else [paths]) for modality, paths in value.items()]
        value = [{"modality": modality, "path": path} for modality, paths in pairs for path in paths]
    if not isinstance(value, list):
        raise wrong("'media' is neither a list nor an object", repr(value))
    return tuple(_medium(item, prefix, view) for item in value)


def _medium(item: Any, prefix: str, view: str) -> Medium:
    if not isinstance(item, dict):
        raise wrong("a medium is malformed", repr(item), expected='{"modality": ..., "path": ..., "view": ...}')
    modality = text(item, "modality", required=True)
    path = prefix + text(item, "path", required=True)
    given = {name: value for name, value in item.items() if name not in MEDIUM_FIELDS and value is not None}
    if modality in SPATIAL:
        known = (*MEDIUM_FIELDS, *options.NAMES[modality])
        for name in given:
            if name not in known:
                raise wrong(
                    f"a medium of modality {modality!r} has no {name!r}", item, ", ".join(known), near(name, known)
                )
        options.read(modality, given)
    for name, value in given.items():
        if not all(isinstance(each, PLAIN) for each in (value if isinstance(value, list) else [value])):
            raise wrong(f"the option {name!r} of a medium is neither a plain value nor a list of such", repr(value))
    return Medium(modality, path, view=text(item, "view") or view, options=given)


def space(given: Given) -> tuple[str, ...] | None:
    """The row's label space; None where it has none."""
    found = texts(given, "label_space")
    if found is not None and len(set(found)) < len(found):
        raise wrong("'label_space' names a label twice", [label for label in found if found.count(label) > 1])
    return found


def labels(given: Given, space: Sequence[str]) -> tuple[str, ...] | None:
    """The row's labels; None, not known, where neither they nor a label space are given."""
    labels = texts(given, "labels")
    if not labels:
        return labels if space else None
    if not space:
        raise wrong("labels are given and no label space", labels, mend="add 'label_space'")
    outside = [label for label in labels if label not in space]
    if outside:
        hints = [hint for hint in (near(label, space) for label in outside) if hint]
        raise wrong("labels outside the label space", outside, f"of {list(space)}", "; ".join(hints))
    if len(set(labels)) < len(labels):
        raise wrong("a label is given twice", labels)
    return labels


def boxes(given: Given, medium: int) -> tuple[Box, ...] | None:
    """The row's boxes, in whichever form; None where it has none."""
    present = [name for name in BOX_FIELDS if name in given]
    if not present:
        return None
    if len(present) > 1:
        raise wrong("boxes are given in several forms", present, expected="one")
    boxes = given[present[0]]
    if not isinstance(boxes, list):
        raise wrong(f"{present[0]!r} is no list of boxes", repr(boxes))
    names = texts(given, "box_labels") or ("",) * len(boxes)
    if len(names) != len(boxes):
        raise wrong("'box_labels' does not fit the boxes", f"{len(names)} names of {boxes!r}")
    return tuple(_box(box, name, medium, present[0], given) for box, name in zip(boxes, names, strict=True))


def _box(box: Any, label: str, medium: int, form: str, given: Given) -> Box:
    if not isinstance(box, list) or len(box) != 4 or None in box:
        raise wrong("a box is not four numbers", repr(box))
    a, b, c, d = (number({"a coordinate of a box": side}, "a coordinate of a box") or 0.0 for side in box)
    if form == "boxes_xywh":
        c, d = a + c, b + d
    if form != "boxes":
        width, height = number(given, "width"), number(given, "height")
        if not width or not height or width < 0 or height < 0:
            raise wrong("boxes in pixels need 'width' and 'height'", f"{width} x {height}")
        a, b, c, d = a / width, b / height, c / width, d / height
    low, high = -OVERSHOOT, 1 + OVERSHOOT
    if not (low <= a < c <= high and low <= b < d <= high):
        raise wrong("a box is empty or leaves the picture", repr(box), expected=f"{form} with x1 < x2 and y1 < y2")
    return Box(max(a, 0.0), max(b, 0.0), min(c, 1.0), min(d, 1.0), label, medium)
