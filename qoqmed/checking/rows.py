"""The rows of one file, read as training would read them; all that is wrong with one is told, not the first alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qoqmed.checking.findings import ERROR, WARNING, Findings
from qoqmed.datasets import fields
from qoqmed.datasets.index import Filter, matches, parse
from qoqmed.datasets.rows import OURS, RowReader
from qoqmed.errors import DataError, Problem
from qoqmed.types import SPATIAL, Case


@dataclass(frozen=True)
class Row:
    """A row that is whole. split: its file, or the value of the field that says so. sized: width and height that it
    states, where boxes in pixels depend on them."""

    split: str
    where: str
    case: Case
    sized: tuple[float, float] | None
    digest: bytes  # of all that it asks and answers, without its id


def read(
    path: Path,
    reader: RowReader,
    findings: Findings,
    *,
    where: Filter,
    unless: Filter,
    split: Callable[[Mapping[str, Any]], str],
) -> Iterator[Row]:
    """The rows that can be used; what is wrong with the others goes to `findings`."""
    lines: dict[str, int] = {}
    same: dict[Any, Any] = {}  # spaces and questions that rows have in common, held once
    with path.open("rb") as file:
        for line, raw in enumerate(file, start=1):
            if not raw.strip():
                continue
            place = f"{path}:{line}"
            try:
                row = parse(raw)
            except DataError as error:
                findings.add("json", ERROR, *(_at(problem, place) for problem in error.problems))
                continue
            if not all(matches(row, *item) for item in where.items()):
                continue
            if any(matches(row, *item) for item in unless.items()):
                continue
            try:
                case, problems = reader.case(row, line), list[tuple[str, Problem]]()
            except DataError:
                case, problems = None, list(faults(reader, row, line))
            name = str(row.get("id") or "") if case is None else case.id
            if name in lines:
                findings.add("id", ERROR, Problem(f"the id {name!r} was used before, in line {lines[name]}", place))
            elif name:
                lines[name] = line
            named = f"{name} ({place})" if name else place
            for kind, problem in problems:
                findings.add(kind, ERROR, _at(problem, named))
            if case is not None:
                space, asked = (same.setdefault(value, value) for value in (case.label_space, case.text))
                case = replace(case, label_space=space, text=asked)
                yield Row(split(row), named, case, _sized(reader, row, line, case), _digest(case))


def faults(reader: RowReader, row: Mapping[str, Any], line: int) -> Iterator[tuple[str, Problem]]:
    """Kind and problem of each part of a bad row that fails by itself, without `where`; at least one."""
    told: set[str] = set()  # a part that needs another fails as that does
    given: dict[str, Any] = {}
    for kind, part in _parts(reader, row, line, given):
        try:
            part()
        except DataError as error:
            yield from ((kind, problem) for problem in error.problems if problem.what not in told)
            told |= {problem.what for problem in error.problems}
    if not told:
        try:
            reader.case(row, line)
        except DataError as error:
            yield from (("schema", problem) for problem in error.problems)


def _parts(
    reader: RowReader, row: Mapping[str, Any], line: int, given: dict[str, Any]
) -> Iterator[tuple[str, Callable[[], object]]]:
    """What can be read of a row by itself. The later ones need what the first gives."""
    yield "schema", lambda: given.update(reader.named(row, line))
    if not given:
        return
    for name in ("id", "domain"):
        yield "schema", lambda name=name: fields.text(given, name, required=True)  # type: ignore[misc]
    yield "schema", lambda: fields.media(given, reader.prefix)
    for name in ("value", "time_days"):
        yield "schema", lambda name=name: fields.number(given, name)  # type: ignore[misc]
    yield "schema", lambda: fields.pair(given)
    yield "label", lambda: reader.labels(given, reader.space(given))
    yield "box", lambda: _boxes(reader, given)


def _boxes(reader: RowReader, given: Mapping[str, Any]) -> object:
    """Our own rows need no medium for them."""
    if reader.format == OURS:
        return fields.boxes(given, 0)
    media = fields.media(given, reader.prefix)
    spatial = next((i for i, medium in enumerate(media) if medium.modality in SPATIAL), 0)
    return reader.boxes(given, media, spatial)


def _sized(reader: RowReader, row: Mapping[str, Any], line: int, case: Case) -> tuple[float, float] | None:
    if not case.target.boxes:
        return None
    given = reader.named(row, line)
    if not ("boxes_px" in given or "boxes_xywh" in given) or not ("width" in given and "height" in given):
        return None
    return float(given["width"]), float(given["height"])


def _digest(case: Case) -> bytes:
    target = case.target
    asked = case.domain, case.dataset, case.task, case.text, case.label_space, case.media
    told = target.labels, target.text, target.boxes, target.mask, target.value, target.time_days, target.event
    return hashlib.blake2b(repr((asked, told)).encode("utf-8", "backslashreplace"), digest_size=8).digest()


def _at(problem: Problem, where: str) -> Problem:
    return problem if problem.where else Problem(problem.what, where, problem.got, problem.expected, problem.mend)


def twice(rows: list[Row], findings: Findings) -> None:
    """Rows of a split that ask and answer the same as an earlier one."""
    first: dict[tuple[str, bytes], str] = {}
    for row in rows:
        earlier = first.setdefault((row.split, row.digest), row.where)
        if earlier != row.where:
            findings.add("duplicate", WARNING, Problem(f"the row says the same as {earlier}", row.where))
