"""How the labels of a case are read from a row. A reader is made once, with its arguments, and called for every row.

`hidden`: labels that are not known for this case (uncertain ones): they leave the case's label space.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from qoqmed.errors import DataError, Problem, near
from qoqmed.preparing import tables
from qoqmed.preparing.binding import cell
from qoqmed.preparing.label_codes import codes
from qoqmed.preparing.label_pixels import pixels
from qoqmed.preparing.marked import Marked, Reader, Space, require_inside, without_alone
from qoqmed.preparing.tables import Row

NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
LIMIT = re.compile(r"(>=|<=|>|<)\s*([-+]?\d+\.?\d*)")
COMPARE = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}
POLICIES = ("hide", "positive", "negative", "drop")


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
    require_inside(names.values(), space)
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
    require_inside(columns, space)
    if policy not in POLICIES:
        what, mend = "no such policy for uncertain labels", near(str(policy), POLICIES)
        raise DataError(Problem(what, "labels.policy", repr(policy), ", ".join(POLICIES), mend))
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
        found = without_alone(found, alone) or ((none,) if none and not hidden else ())
        return Marked(found, hidden)

    return read


def rules(root: Path, space: Space, cases: Sequence[Mapping[str, Any]]) -> Reader:
    """cases: [{label, when: {column: value or values}}]; the first whose columns all hold such a value.

    A value such as "> 0", ">= 3" or "< 3" holds for numbers.
    """
    for place, case in enumerate(cases):
        if not isinstance(case, dict) or "label" not in case or not isinstance(case.get("when"), dict):
            expected = "{label: .., when: {column: value or values}}"
            raise DataError(Problem("a rule is malformed", f"labels.cases.{place}", repr(case)[:80], expected))
    require_inside([case["label"] for case in cases], space)
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
    require_inside(labels, space)
    if len(edges) != len(labels):
        raise DataError(
            Problem("bins need a lower edge for each label", "labels.bins", f"{len(edges)} edges, {len(labels)} labels")
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
    "value": value, "flags": flags, "codes": codes, "rules": rules, "bins": bins, "pixels": pixels,
}  # fmt: skip


def merged(marks: Sequence[Marked], space: Space, agree: str, alone: Sequence[str] = ()) -> Marked:
    """The labels of the rows of one case, over those rows whose labels are known. any: of at least one row; majority:
    of more than half; all; first, last: of those of any row, the one that stands first or last in the space (the
    gravest, where the space is so ordered). alone: labels that count only where no other does."""
    used = [mark for mark in marks if not mark.why]
    if not used:
        return marks[0]
    counts = {label: sum(label in mark.labels for mark in used) for label in space}
    least = {"any": 1, "first": 1, "last": 1, "majority": len(used) // 2 + 1, "all": len(used)}[agree]
    found = tuple(label for label in space if counts[label] >= least)
    found = found[:1] if agree == "first" else found[-1:] if agree == "last" else without_alone(found, alone)
    hidden = tuple(label for label in space if label not in found and any(label in mark.hidden for mark in used))
    return Marked(found, hidden, "" if found else "its readers agree on no label")


AGREE = ("any", "majority", "all", "first", "last")


def _holds(text: str, wishes: set[str]) -> bool:
    if text in wishes:
        return True
    limits = [match for match in map(LIMIT.fullmatch, wishes) if match]
    return bool(NUMBER.fullmatch(text)) and any(COMPARE[match[1]](float(text), float(match[2])) for match in limits)


def _many(wish: Any) -> list[Any]:
    return wish if isinstance(wish, list) else [wish]
