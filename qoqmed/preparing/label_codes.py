"""Labels from several codes in one column: SNOMED CT codes of WFDB headers, PTB-XL's statements."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qoqmed.errors import DataError, Problem
from qoqmed.preparing import tables
from qoqmed.preparing.binding import cell
from qoqmed.preparing.marked import Marked, Reader, Space, require_inside, without_alone
from qoqmed.preparing.tables import Row


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
    require_inside([*names.values(), other or None], space)
    of_code = _classes(root, classes) if classes else {}
    passed = {tables.plain(code) for code in ignore}

    def read(row: Row) -> Marked:
        text = cell(row, column, "labels")
        held = _scp(text, least) if form == "scp" else [part.strip() for part in text.split(separator)]
        held = [code for code in held if code and code not in passed]
        if not held:
            return Marked(why=f"no code in {column!r} that counts")
        found = [names.get(_key(code, names, of_code), other) for code in held]
        labels = without_alone(tuple(label for label in dict.fromkeys(found) if label), alone)
        return Marked(labels, why="" if labels else f"no code in {column!r} has a label")

    return read


def _key(code: str, names: Mapping[str, Any], of_code: Mapping[str, str]) -> str:
    return code if code in names else of_code.get(code, code)


def _scp(text: str, least: float) -> list[str]:
    """PTB-XL's column: a Python dictionary of numbers. A code of 0 percent has no likelihood given, and counts."""
    try:  # a literal: no code of it is run
        held = ast.literal_eval(text or "{}")
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise DataError(Problem("the codes are no dictionary", "labels", text[:80], "as {'NORM': 100.0}")) from error
    if not isinstance(held, dict) or not all(isinstance(percent, int | float) for percent in held.values()):
        raise DataError(Problem("the codes are no dictionary of numbers", "labels", text[:80], "as {'NORM': 100.0}"))
    return [str(code) for code, percent in held.items() if percent == 0 or percent >= least]


def _classes(root: Path, classes: Mapping[str, str]) -> dict[str, str]:
    path = root / classes["table"]
    if not path.is_file():
        raise DataError(Problem("a table of the data set is not there", str(path)))
    pairs = (
        (cell(row, classes["key"], path.name), cell(row, classes["value"], path.name)) for row in tables.read(path)
    )
    return {code: kind for code, kind in pairs if kind}
