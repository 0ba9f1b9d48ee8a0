"""The attributes of a row that are ours, checked when the row is read: a reward would meet what is wrong days later."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from qoqmed.datasets.fields import wrong
from qoqmed.geometry import SIZES
from qoqmed.reading import SYNONYMS, synonyms_of
from qoqmed.reading.views import TRANSFORM, transforms_of
from qoqmed.types import BOX_SOURCE, MASK_SOURCE, Case


def check_attributes(case: Case) -> None:
    """Raises DataError, without `where`, for the first that is malformed; those of others are left alone."""
    given, nameless = case.attributes, replace(case, id="")  # the reader knows file and line
    if SYNONYMS in given:
        synonyms_of(nameless)
    if TRANSFORM in given:
        transforms_of(nameless)
    if SIZES in given and not _is_sizes(given[SIZES], len(case.media)):
        expected = "[width, height] in pixels, or null, for each medium"
        raise wrong(f"the attribute {SIZES!r} is malformed", repr(given[SIZES]), expected)
    for name in (MASK_SOURCE, BOX_SOURCE):
        if not isinstance(given.get(name, ""), str):
            raise wrong(f"the attribute {name!r} is no text", repr(given[name]), "who drew it, as the name of a model")


def _is_sizes(value: Any, media: int) -> bool:
    return isinstance(value, list) and len(value) == media and all(one is None or _is_size(one) for one in value)


def _is_size(one: Any) -> bool:
    sides = one if isinstance(one, list) else ()
    return len(sides) == 2 and all(type(side) in (int, float) and 0 < side < float("inf") for side in sides)
