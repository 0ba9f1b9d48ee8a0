"""JSON Lines on disk as cases: an index of byte offsets in memory, each row read when it is asked for.

`path` is relative to `root`, the recipe's data.root, as are the paths of media (below `prefix`, where it is given).
`where` and `unless` pick rows by the file's own fields: `{split: train}`, `{dataset: [isic2017]}`; a field that holds a
list matches where any of its items does. All keys of `where` must match; one of `unless` is enough. Rows: see `rows`.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qoqmed.datasets.fields import text, wrong
from qoqmed.datasets.rows import RowReader
from qoqmed.errors import DataError, Problem, near
from qoqmed.media.refusals import of_row
from qoqmed.types import Case

MAX_PROBLEMS = 20  # told at once
Filter = Mapping[str, Any]  # a field of the file -> the value, or list of values, that matches


class JsonLines:
    """Map-style. `fingerprint` changes with the ids of the rows or their order.

    origins: number of rows by (domain, data set, licence), for model cards. A row states its licence in a field of that
    name or among its attributes; "" where it does not.
    """

    def __init__(
        self,
        path: str,
        root: str = ".",
        mapping: Mapping[str, str | None] | None = None,
        where: Filter | None = None,
        unless: Filter | None = None,
        task: str = "diagnosis",
        prefix: str | None = None,
    ) -> None:
        self.path = Path(root) / path
        folder = f"{prefix.rstrip('/')}/" if prefix else ""
        with of_row(str(self.path)):
            if not self.path.is_file():
                raise wrong("the data file does not exist", self.path, mend="check data.root and path")
            self._reader = RowReader(self.path.stem, mapping, task, folder)
            index = _Index(self._reader, where or {}, unless or {})
            index.scan(self.path)
        self.domains = index.domains
        self.fingerprint = index.digest.hexdigest()
        self.origins: Mapping[tuple[str, str, str], int] = index.origins
        self._offsets = np.array(index.offsets, dtype=np.int64)
        self._lines = np.array(index.lines, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.domains)

    def __getitem__(self, index: int) -> Case:
        offset, line = int(self._offsets[index]), int(self._lines[index])
        with self.path.open("rb") as file:  # opened anew: a dataset travels to loader workers
            file.seek(offset)
            raw = file.readline()
        with of_row(f"{self.path}:{line}"):
            row = parse(raw)
            case_id = self._reader.named(row).get("id")
            with of_row(f"{case_id} ({self.path}:{line})"):
                return self._reader.case(row)


class _Index:
    """What one pass over the file gathers; the ids are kept only as long as it lasts."""

    def __init__(self, reader: RowReader, where: Filter, unless: Filter) -> None:
        self.offsets: list[int] = []
        self.lines: list[int] = []
        self.domains: list[str] = []
        self.digest = hashlib.blake2b(digest_size=16)
        self.origins: Counter[tuple[str, str, str]] = Counter()
        self._reader, self._where, self._unless = reader, where, unless
        self._seen: dict[str, int] = {}  # id -> line
        self._met: set[str] = set()  # fields of the file

    def scan(self, path: Path) -> None:
        """Raises one DataError with every row that is no JSON object, or has no id, no domain, or an id used before."""
        problems: list[Problem] = []
        offset = 0
        with path.open("rb") as file:
            for line, raw in enumerate(file, start=1):
                try:
                    with of_row(f"{path}:{line}"):
                        self._add(raw, offset, line)
                except DataError as error:
                    problems += error.problems
                    if len(problems) >= MAX_PROBLEMS:
                        break
                offset += len(raw)
        if problems:
            raise DataError(problems)
        for name in sorted({*self._where, *self._unless} - self._met):
            raise wrong(f"no row has the field {name!r}, which picks rows", mend=near(name, sorted(self._met)))
        if not self.domains:
            raise wrong("no row is left", f"where {dict(self._where)}, unless {dict(self._unless)}")

    def _add(self, raw: bytes, offset: int, line: int) -> None:
        if not raw.strip():
            return
        row = parse(raw)
        self._met.update(row)
        if not all(matches(row, *item) for item in self._where.items()):
            return
        if any(matches(row, *item) for item in self._unless.items()):
            return
        given = self._reader.named(row)
        case_id, domain = text(given, "id", required=True), text(given, "domain", required=True)
        if case_id in self._seen:
            raise wrong(f"the id {case_id!r} was used before, in line {self._seen[case_id]}")
        self._seen[case_id] = line
        self.digest.update(case_id.encode() + b"\n")
        self.offsets.append(offset)
        self.lines.append(line)
        self.domains.append(sys.intern(domain))
        self.origins[domain, text(given, "dataset") or self._reader.source, licence(row, given)] += 1


def licence(row: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """What a row says of its licence, in either spelling; "" where it says nothing."""
    attributes = given.get("attributes")
    places = [row, attributes if isinstance(attributes, dict) else {}]
    stated = [place[name] for place in places for name in ("licence", "license") if name in place]
    return next((one.strip() for one in stated if isinstance(one, str)), "")


def parse(raw: bytes) -> dict[str, Any]:
    """One line -> its object. NaN and infinities are no JSON."""
    try:
        row = json.loads(raw.decode("utf-8-sig"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, nested too deeply
        raise wrong(f"the line is not valid JSON: {error}", expected="one JSON object a line, in UTF-8") from error
    if not isinstance(row, dict):
        raise wrong("the line is no JSON object", type(row).__name__)
    return row


def _no_constant(word: str) -> None:
    raise wrong(f"{word} is not a JSON number", mend="use null for what is not known")


def matches(row: Mapping[str, Any], name: str, wanted: Any) -> bool:
    """Whether the row's value, or an item of it, is the wanted one or among the wanted ones."""
    value = row.get(name)
    values = value if isinstance(value, list) else [value]
    options = list(wanted) if isinstance(wanted, list | tuple) else [wanted]
    return any(item in options for item in values)
