"""JSON Lines on disk as cases: an index of byte offsets in memory, each row read when it is asked for.

`path` is relative to `root`, the recipe's data.root, as are the paths of media (below `prefix`, where it is given).
`where` and `unless` pick rows by the file's own fields: `{split: train}`, `{dataset: [isic2017]}`; a field that holds a
list matches where any of its items does. All keys of `where` must match; one of `unless` is enough. Rows: see `rows`;
those of other tools: `formats`. Indices of large files are kept (`index_cache`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from qoqmed import registry
from qoqmed.datasets import index_cache
from qoqmed.datasets.fields import wrong
from qoqmed.datasets.formats import BESIDE, TASKS
from qoqmed.datasets.index import Filter, parse, read_line, scan
from qoqmed.datasets.rows import OURS, RowReader
from qoqmed.media.refusals import of_row
from qoqmed.types import Case


class JsonLines:
    """Map-style. `fingerprint` changes with the ids of the rows or their order.

    task: of rows that name none; by default `vqa` and `report` for the formats `vqa` and `conversations`, else
    `diagnosis`.
    format: `rows` (ours), `easyr1`, `climb`, `vqa` or `conversations`. defaults: our fields' values for rows that have
    none, as {domain: ct}. gather: the label space of a data set that has none is every label of it in the file.
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
        task: str | None = None,
        prefix: str | None = None,
        format: str = OURS,
        defaults: Mapping[str, Any] | None = None,
        gather: bool = False,
    ) -> None:
        self.path = Path(root) / path
        with of_row(str(self.path)):
            if not self.path.is_file():
                raise wrong("the data file does not exist", self.path, mend="check data.root and path")
            reader = reader_of(path, root, mapping, task, prefix, format, defaults)
            where, unless = where or {}, unless or {}
            made = index_cache.through(
                self.path,
                [mapping, where, unless, format, dict(reader.defaults), gather, registry.available("domains")],
                lambda: scan(self.path, reader, where, unless, gather),
            )
        self._reader = replace(reader, spaces=made.spaces)
        self.domains: Sequence[str] = [made.domains[code] for code in made.codes.tolist()]
        self.fingerprint = made.fingerprint
        self.origins: Mapping[tuple[str, str, str], int] = made.origins
        self._offsets, self._lines = made.offsets, made.lines

    def __len__(self) -> int:
        return len(self.domains)

    def __getitem__(self, index: int) -> Case:
        line = int(self._lines[index])
        raw = read_line(self.path, int(self._offsets[index]))
        with of_row(f"{self.path}:{line}"):
            row = parse(raw)
            case_id = self._reader.named(row, line).get("id")
            with of_row(f"{case_id} ({self.path}:{line})"):
                return self._reader.case(row, line)


def reader_of(
    path: str,
    root: str | Path = ".",
    mapping: Mapping[str, str | None] | None = None,
    task: str | None = None,
    prefix: str | None = None,
    format: str = OURS,
    defaults: Mapping[str, Any] | None = None,
) -> RowReader:
    """How the rows of a file are read. Raises DataError for a wrong format, mapping or default."""
    beside = Path(path).parent.as_posix() if format in BESIDE else "."
    folder = beside if prefix is None else prefix.rstrip("/")
    source = Path(path).parent.name if format == "climb" and Path(path).parent.name else Path(path).stem
    before = "" if folder in ("", ".") else f"{folder}/"
    asked = task or TASKS.get(format, "diagnosis")
    return RowReader(source, mapping, asked, before, format, dict(defaults or {}), str(root))
