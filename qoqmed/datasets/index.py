"""Where each row of a JSON Lines file begins, gathered in one pass and kept in arrays: 20 bytes a row.

The ids are compared by 64 bits of a hash, and by themselves where these are the same.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qoqmed.datasets.fields import text, texts, wrong
from qoqmed.datasets.formats import JOINED
from qoqmed.datasets.rows import RowReader
from qoqmed.errors import DataError, Problem, near
from qoqmed.media.refusals import of_row

MAX_PROBLEMS = 20  # told at once
Filter = Mapping[str, Any]  # a field of the file -> the value, or list of values, that matches
Origin = tuple[str, str, str]  # domain, data set, licence


@dataclass(frozen=True)
class Index:
    """offsets, lines: [N] int64, of each row. codes: [N] uint16, of its domain in `domains`. fingerprint: of the ids in
    their order. spaces: by data set, where they were gathered from the rows."""

    offsets: npt.NDArray[np.int64]
    lines: npt.NDArray[np.int64]
    codes: npt.NDArray[np.uint16]
    domains: tuple[str, ...]
    fingerprint: str
    origins: Mapping[Origin, int]
    spaces: Mapping[str, tuple[str, ...]]


def scan(path: Path, reader: RowReader, where: Filter, unless: Filter, gather: bool = False) -> Index:
    """Raises one DataError with every row that is no JSON object, or has no id, no domain, or an id used before."""
    made = _Scan(reader, where, unless, gather)
    offset = 0
    with path.open("rb") as file:
        for line, raw in enumerate(file, start=1):
            try:
                with of_row(f"{path}:{line}"):
                    made.add(raw, offset, line)
            except DataError as error:
                made.problems += [(line, problem) for problem in error.problems]
                if len(made.problems) >= MAX_PROBLEMS:
                    break
            offset += len(raw)
    return made.finished(path)


def gathered(path: Path, reader: RowReader, where: Filter, unless: Filter) -> Mapping[str, tuple[str, ...]]:
    """Label spaces by data set, of the rows that can be read; the others are left out."""
    made = _Scan(reader, where, unless, gather=True)
    with path.open("rb") as file:
        for line, raw in enumerate(file, start=1):
            with suppress(DataError):
                made.add(raw, 0, line)
    return made.spaces


class _Scan:
    """What the pass gathers."""

    def __init__(self, reader: RowReader, where: Filter, unless: Filter, gather: bool) -> None:
        self.problems: list[tuple[int, Problem]] = []
        self._reader, self._where, self._unless, self._gather = reader, where, unless, gather
        self._offsets, self._lines, self._codes, self._hashes = array("q"), array("q"), array("H"), array("Q")
        self._domains: dict[str, int] = {}
        self._digest = hashlib.blake2b(digest_size=16)
        self._origins: Counter[Origin] = Counter()
        self._spaces: dict[str, set[str]] = {}
        self._met: set[str] = set()  # fields of the file

    def add(self, raw: bytes, offset: int, line: int) -> None:
        """A line of the file. Raises DataError for what is wrong with it, without `where`."""
        if not raw.strip():
            return
        row = parse(raw)
        self._met.update(row)
        if not all(matches(row, *item) for item in self._where.items()):
            return
        if any(matches(row, *item) for item in self._unless.items()):
            return
        given = self._reader.named(row, line)
        case_id, domain = text(given, "id", required=True), text(given, "domain", required=True)
        name = case_id.encode()
        self._digest.update(name + b"\n")
        self._hashes.append(int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little"))
        self._offsets.append(offset)
        self._lines.append(line)
        self._codes.append(self._domains.setdefault(domain, len(self._domains)))
        dataset = text(given, "dataset") or self._reader.source
        self._origins[domain, dataset, licence(row, given)] += 1
        if self._gather and not self._reader.space(given):
            self._spaces.setdefault(dataset, set()).update(_labels(given, self._reader.format))

    def finished(self, path: Path) -> Index:
        """Raises DataError with all that was wrong, in the order of the lines."""
        problems = self.problems + list(self._used_before(path))
        if problems:
            raise DataError([problem for _, problem in sorted(problems, key=lambda pair: pair[0])][:MAX_PROBLEMS])
        for name in sorted({*self._where, *self._unless} - self._met):
            raise wrong(f"no row has the field {name!r}, which picks rows", mend=near(name, sorted(self._met)))
        if not self._codes:
            raise wrong("no row is left", f"where {dict(self._where)}, unless {dict(self._unless)}")
        return Index(
            np.frombuffer(self._offsets, dtype=np.int64),
            np.frombuffer(self._lines, dtype=np.int64),
            np.frombuffer(self._codes, dtype=np.uint16),
            tuple(self._domains),
            self._digest.hexdigest(),
            self._origins,
            self.spaces,
        )

    @property
    def spaces(self) -> Mapping[str, tuple[str, ...]]:
        return {name: tuple(sorted(labels)) for name, labels in self._spaces.items()}

    def _used_before(self, path: Path) -> Iterator[tuple[int, Problem]]:
        """The rows whose id an earlier row has."""
        hashes = np.frombuffer(self._hashes, dtype=np.uint64)
        values, counts = np.unique(hashes, return_counts=True)
        first: dict[str, int] = {}
        for place in np.flatnonzero(np.isin(hashes, values[counts > 1])):
            line = self._lines[place]
            case_id = str(self._reader.named(parse(read_line(path, self._offsets[place])), line)["id"])
            if case_id in first:
                what = f"the id {case_id!r} was used before, in line {first[case_id]}"
                yield line, Problem(what, f"{path}:{line}")
            first.setdefault(case_id, line)


def read_line(path: Path, offset: int) -> bytes:
    with path.open("rb") as file:  # opened anew: a dataset travels to loader workers
        file.seek(offset)
        return file.readline()


def _labels(given: Mapping[str, Any], form: str) -> list[str]:
    labels = texts(given, "labels") or ()
    pieces = [piece for label in labels for piece in (label.split(", ") if form in JOINED else [label])]
    return [piece.strip() for piece in pieces if piece.strip()]


def licence(row: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """What a row says of its licence, in either spelling; "" where it says nothing."""
    attributes = given.get("attributes")
    places = [row, attributes if isinstance(attributes, dict) else {}]
    stated = [place[name] for place in places for name in ("licence", "license") if name in place]
    return next((one.strip() for one in stated if isinstance(one, str)), "")


def _no_constant(word: str) -> None:
    raise wrong(f"{word} is not a JSON number", mend="use null for what is not known")


DECODER = json.JSONDecoder(parse_constant=_no_constant)  # made once: `json.loads` would make one a row


def parse(raw: bytes) -> dict[str, Any]:
    """One line -> its object. NaN and infinities are no JSON."""
    try:
        row = DECODER.decode(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, nested too deeply
        raise wrong(f"the line is not valid JSON: {error}", expected="one JSON object a line, in UTF-8") from error
    if not isinstance(row, dict):
        raise wrong("the line is no JSON object", type(row).__name__)
    return row


def matches(row: Mapping[str, Any], name: str, wanted: Any) -> bool:
    """Whether the row's value, or an item of it, is the wanted one or among the wanted ones."""
    value = row.get(name)
    values = value if isinstance(value, list) else [value]
    options = list(wanted) if isinstance(wanted, list | tuple) else [wanted]
    return any(item in options for item in values)
