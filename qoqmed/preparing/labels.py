"""How the labels of a case are read from a row. A reader is made once, with its arguments, and called for every row.

`hidden`: labels that are not known for this case (uncertain ones): they leave the case's label space.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from qoqmed.errors import DataError, Problem
from qoqmed.preparing import tables
from qoqmed.preparing.binding import cell
from qoqmed.preparing.tables import Row

NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
LIMIT = re.compile(r"(>=|<=|>|<)\s*([-+]?\d+\.?\d*)")
COMPARE = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}
POLICIES = ("hide", "positive", "negative", "drop")


@dataclass(frozen=True)
class Marked:
    """The labels of a row, empty where none holds; `why`, where it is not blank, says why nothing is known of them."""

    labels: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()
    why: str = ""

    @property
    def unusable(self) -> str:
        """Why no case can be made of it; "" where one can."""
        return self.why or ("" if self.labels else "no label is positive")


Reader = Callable[[Row], Marked]
Space = tuple[str, ...]


def value(root: Path, space: Space, column: str, map: Mapping[str, Any] | None = None) -> Reader:
    """One column, through `map` where it is given: text -> label. A label null leaves the row out."""

    def read(row: Row) -> Marked:
        text = cell(row, column, "labels")
        if not text:
            return Marked(why=f"no label in {column!r}")
        if map is not None and text not in names:
            return Marked(why=f"the label {text!r} is not in the spec's map")
        label = text if map is None else names[text]
        if label is None:
            return Marked(why=f"the label {text!r} is left out by the spec")
        return Marked((label,)) if label in space else Marked(why=f"the label {label!r} is not in the label space")

    names = {tables.plain(key): None if one is None else str(one) for key, one in (map or {}).items()}
    _inside(names.values(), space)
    return read


def flags(
    root: Path,
    space: Space,
    columns: Mapping[str, Any],
    positive: Sequence[Any] = (1,),
    uncertain: Sequence[Any] = (),
    policy: str = "hide",
    alone: Sequence[str] = (),
    none: str = "",
) -> Reader:
    """A column a label. columns: label -> column, or columns of which the first that the table has counts.

    policy, for values in `uncertain`: hide the label from the case's space, take it as positive or as negative, or
    drop the row. alone: labels that count only where no other does. none: label of rows without any.
    """
    _inside(columns, space)
    if policy not in POLICIES:
        raise DataError(Problem("no such policy for uncertain labels", got=repr(policy), expected=", ".join(POLICIES)))
    yes, unsure = {tables.plain(item) for item in positive}, {tables.plain(item) for item in uncertain}
    candidates = {label: [one] if isinstance(one, str) else list(one) for label, one in columns.items()}

    def read(row: Row) -> Marked:
        """Blank cells are negative."""
        held = {
            label: cell(row, next((one for one in names if one in row), names[0]), "labels")
            for label, names in candidates.items()
        }
        open_ones = tuple(label for label, text in held.items() if text in unsure)
        if open_ones and policy == "drop":
            return Marked(why="a label is uncertain")
        counted = yes | unsure if policy == "positive" else yes
        found = tuple(label for label, text in held.items() if text in counted)
        hidden = open_ones if policy == "hide" else ()
        found = _alone(found, alone) or ((none,) if none and not hidden else ())
        return Marked(found, hidden)

    return read


def codes(
    root: Path,
    space: Space,
    column: str,
    map: Mapping[Any, Any] | None = None,
    groups: Mapping[str, Sequence[Any]] | None = None,
    separator: str = ",",
    form: str = "list",
    classes: Mapping[str, str] | None = None,
    ignore: Sequence[Any] = (),
    alone: Sequence[str] = (),
    other: str = "",
    least: float = 0.0,
) -> Reader:
    """Several codes in one column. map: code, or class of it -> label, or null for none; `other`: label of the rest.

    groups: the same the other way, label -> codes; `map` goes first. A name stands for a map that comes with qoqmed.

    form: list (parted by `separator`) or scp (PTB-XL's {"NORM": 100.0}; codes below `least` percent do not count,
    where 0 means "not said"). classes: {table, key, value} gives a code's class where the map has not the code.
    """
    grouped = {code: label for label, codes in (groups or {}).items() for code in codes}
    names = {tables.plain(key): None if one is None else str(one) for key, one in (grouped | dict(map or {})).items()}
    _inside([*names.values(), other or None], space)
    of_code = _classes(root, classes) if classes else {}
    passed = {tables.plain(code) for code in ignore}

    def read(row: Row) -> Marked:
        text = cell(row, column, "labels")
        held = _scp(text, least) if form == "scp" else [part.strip() for part in text.split(separator)]
        held = [code for code in held if code and code not in passed]
        if not held:
            return Marked(why=f"no code in {column!r} that counts")
        found = [names.get(_key(code, names, of_code), other) for code in held]
        labels = _alone(tuple(label for label in dict.fromkeys(found) if label), alone)
        return Marked(labels, why="" if labels else f"no code in {column!r} has a label")

    return read


def rules(root: Path, space: Space, cases: Sequence[Mapping[str, Any]]) -> Reader:
    """cases: [{label, when: {column: value or values}}]; the first whose columns all hold such a value.

    A value such as "> 0", ">= 3" or "< 3" holds for numbers.
    """
    _inside([case["label"] for case in cases], space)
    tests = [
        (
            str(case["label"]),
            {name: {tables.plain(item) for item in _many(wish)} for name, wish in case["when"].items()},
        )
        for case in cases
    ]

    def read(row: Row) -> Marked:
        for label, wishes in tests:
            if all(_holds(cell(row, name, "labels"), wish) for name, wish in wishes.items()):
                return Marked((label,))
        return Marked(why="no rule of the spec gives it a label")

    return read


def bins(root: Path, space: Space, column: str, edges: Sequence[float], labels: Sequence[str]) -> Reader:
    """A number -> the label of its bin (edges[i], edges[i + 1]]; the last bin has no upper edge."""
    _inside(labels, space)
    if len(edges) != len(labels):
        raise DataError(
            Problem("bins need a lower edge for each label", got=f"{len(edges)} edges, {len(labels)} labels")
        )

    def read(row: Row) -> Marked:
        text = cell(row, column, "labels")
        number = float(text) if NUMBER.fullmatch(text) else float("nan")
        if not isfinite(number):
            return Marked(why=f"{column!r} is no number")
        place = sum(number > edge for edge in edges) - 1
        return Marked((labels[place],)) if place >= 0 else Marked(why=f"{column!r} is {edges[0]:g} or less")

    return read


READERS: Mapping[str, Callable[..., Reader]] = {
    "value": value, "flags": flags, "codes": codes, "rules": rules, "bins": bins,
}  # fmt: skip


def merged(marks: Sequence[Marked], space: Space, agree: str) -> Marked:
    """The labels of the rows of one case, over those rows whose labels are known. any: of at least one row; majority:
    of more than half; all; first: of those of any row, the one that stands first in the space (the gravest, where the
    space is so ordered)."""
    used = [mark for mark in marks if not mark.why]
    if not used:
        return marks[0]
    counts = {label: sum(label in mark.labels for mark in used) for label in space}
    least = {"any": 1, "first": 1, "majority": len(used) // 2 + 1, "all": len(used)}[agree]
    found = tuple(label for label in space if counts[label] >= least)
    found = found[:1] if agree == "first" else found
    hidden = tuple(label for label in space if label not in found and any(label in mark.hidden for mark in used))
    return Marked(found, hidden, "" if found else "its readers agree on no label")


AGREE = ("any", "majority", "all", "first")


def _alone(found: tuple[str, ...], alone: Sequence[str]) -> tuple[str, ...]:
    """Without the labels that count only where no other does ("Normal")."""
    return tuple(label for label in found if label not in alone) or found


def _key(code: str, names: Mapping[str, Any], of_code: Mapping[str, str]) -> str:
    return code if code in names else of_code.get(code, code)


def _holds(text: str, wishes: set[str]) -> bool:
    if text in wishes:
        return True
    limits = [match for match in map(LIMIT.fullmatch, wishes) if match]
    return bool(NUMBER.fullmatch(text)) and any(COMPARE[match[1]](float(text), float(match[2])) for match in limits)


def _many(wish: Any) -> list[Any]:
    return wish if isinstance(wish, list) else [wish]


def _scp(text: str, least: float) -> list[str]:
    """PTB-XL's column: a Python dictionary of numbers. A code of 0 percent has no likelihood given, and counts."""
    try:  # a literal: no code of it is run
        held = ast.literal_eval(text or "{}")
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise DataError(Problem("the codes are no dictionary", got=text[:80])) from error
    if not isinstance(held, dict) or not all(isinstance(percent, int | float) for percent in held.values()):
        raise DataError(Problem("the codes are no dictionary of numbers", got=text[:80]))
    return [str(code) for code, percent in held.items() if percent == 0 or percent >= least]


def _classes(root: Path, classes: Mapping[str, str]) -> dict[str, str]:
    path = root / classes["table"]
    if not path.is_file():
        raise DataError(Problem("a table of the data set is not there", str(path)))
    pairs = (
        (cell(row, classes["key"], path.name), cell(row, classes["value"], path.name)) for row in tables.read(path)
    )
    return {code: kind for code, kind in pairs if kind}


def _inside(labels: Any, space: Space) -> None:
    wrong = sorted({str(label) for label in labels if label is not None and label not in space})
    if wrong:
        raise DataError(
            Problem("the spec's labels are outside the label space", got=", ".join(wrong), expected=", ".join(space))
        )
