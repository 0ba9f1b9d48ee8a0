"""Does a recipe's value fit a type annotation? Only what is plainly wrong does not: an unknown annotation fits all."""

from __future__ import annotations

import types
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

_WORDS: Mapping[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a string",
    Path: "a path",
    type(None): "null",
}


def fits(value: Any, annotation: Any) -> bool:
    """True unless the value is plainly of another type. A whole number fits float; true and false fit bool only."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return any(fits(value, one) for one in inner)
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in inner)
    if _is_mapping(origin or annotation):
        return isinstance(value, Mapping) and all(fits(item, inner[1]) for item in value.values() if len(inner) == 2)
    if _is_list(origin or annotation):
        return isinstance(value, (list, tuple)) and all(fits(item, inner[0]) for item in value if inner)
    if annotation is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation in (bool, str):
        return isinstance(value, annotation)
    if annotation is Path:
        return isinstance(value, (str, Path))
    if annotation in (None, type(None)):
        return value is None
    return True


def spell(annotation: Any) -> str:
    """An annotation in words: "a whole number or null", "a list of strings"."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(spell(one) for one in inner)
    if origin is Literal:
        return f"one of {', '.join(repr(one) for one in inner)}"
    if _is_mapping(origin or annotation):
        return "a mapping"
    if _is_list(origin or annotation):
        return f"a list, each item {spell(inner[0])}" if inner else "a list"
    if annotation in _WORDS:
        return _WORDS[annotation]
    return getattr(annotation, "__name__", str(annotation))


def _is_mapping(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Mapping)


def _is_list(kind: Any) -> bool:
    return kind in (list, tuple, set, frozenset, Sequence, Collection)
