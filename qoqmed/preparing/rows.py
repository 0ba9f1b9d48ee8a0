"""Where rows come from: tables, names of files and folders, and headers of WFDB records.

A source takes the folder and a `LeftOut`, and yields rows of texts. What it passes over, it tells there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from qoqmed.errors import DataError, Problem
from qoqmed.preparing import dicom_fields, finding, tables
from qoqmed.preparing.binding import bound, cell
from qoqmed.preparing.left_out import LeftOut
from qoqmed.preparing.mimic_iv import mimic_iv
from qoqmed.preparing.spec import Join, Spec

Source = Callable[..., Iterator[dict[str, str]]]
COMMENT = re.compile(r"#\s*(Age|Sex|Dx|Rx|Hx|Sx)\s*:\s*(.*)", re.IGNORECASE)
MAX_HEADER_BYTES = 2**20


def _listed(value: Any) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]


def _nothing(kind: str, root: Path, wanted: Sequence[str], what: str = "no {} of the data set is there") -> DataError:
    """Says what is in the folder instead: it is another one, or one above or below the right one."""
    inside = sorted(item.name + "/" * item.is_dir() for item in root.iterdir())
    got = ", ".join(inside[:8]) + (f" and {len(inside) - 8} more" if len(inside) > 8 else "") or "an empty folder"
    mend = "SOURCE is the folder that the spec's layout shows: `qoqmed data specs NAME`"
    return DataError(Problem(what.format(kind), str(root), got, ", ".join(wanted), mend))


def table(root: Path, out: LeftOut, path: Any, delimiter: str = ",") -> Iterator[dict[str, str]]:
    """One table after the other; a column `table` says which, without its ending. At least one must be there.

    path: a name, or several; a list among these holds names of one table, of which the first that is there counts.
    """
    wanted = [_listed(one) for one in path] if isinstance(path, list) else [[str(path)]]
    found = [next((root / name for name in names if (root / name).is_file()), None) for names in wanted]
    if not any(found):
        raise _nothing("table", root, [" or ".join(names) for names in wanted])
    for names, file in zip(wanted, found, strict=True):
        if file is None:
            out.note(f"the table {names[0]} is not there")
    for file in filter(None, found):
        yield from ({"table": file.name.split(".")[0]} | row for row in tables.read(file, delimiter))


def files(
    root: Path, out: LeftOut, glob: Any, pattern: str, skip: str = "", header: Mapping[str, str] | None = None
) -> Iterator[dict[str, str]]:
    """A row a file: `path` under the folder, and the named groups of `pattern`. skip: what is no case (masks).

    header: column -> field of the file's DICOM header (`dicom_fields.FIELDS`).
    """
    wanted, passed = finding.pattern(pattern, "rows.pattern"), finding.pattern(skip, "rows.skip") if skip else None
    dicom_fields.require_listed(header or {}, "rows.header")
    names = sorted({name for one in _listed(glob) for name in finding.found(root, one)})
    if not names:
        raise _nothing("file", root, _listed(glob))
    for name in names:
        if passed and passed.search(name):
            continue
        match = wanted.search(name)
        if match is None:
            out.add(name, "the file's name does not fit the spec's pattern")
            continue
        told = dicom_fields.fields(root / name, header) if header else {}
        yield {"path": name} | {key: value or "" for key, value in match.groupdict().items()} | told


def headers(root: Path, out: LeftOut, glob: Any) -> Iterator[dict[str, str]]:
    """A row a WFDB header: `record` (its path without ending), `name`, `fs`, `samples`, `signals`, and the comments
    `age`, `sex`, `dx`, .. (SNOMED codes, as the PhysioNet challenges of 2020 and 2021 wrote them)."""
    paths = [root / name for name in sorted({name for one in _listed(glob) for name in finding.found(root, one)})]
    if not paths:
        raise _nothing("header", root, _listed(glob))
    for path in paths:
        record = path.relative_to(root).with_suffix("").as_posix()
        if path.stat().st_size > MAX_HEADER_BYTES:
            out.add(record, "the header is no header: too large")
            continue
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        first = next((line.split() for line in lines if line.strip() and not line.startswith("#")), [])
        if len(first) < 4:
            out.add(record, "the header's first line is malformed")
            continue
        comments = {match[1].lower(): match[2].strip() for match in map(COMMENT.match, lines) if match}
        blank = dict.fromkeys(("age", "sex", "dx", "rx", "hx", "sx"), "")
        known = {"record": record, "name": path.stem, "signals": first[1], "fs": first[2], "samples": first[3]}
        yield known | blank | comments


SOURCES: Mapping[str, Source] = {"table": table, "files": files, "headers": headers, "mimic_iv": mimic_iv}


def rows(spec: Spec, root: Path, out: LeftOut) -> Iterator[dict[str, str]]:
    """The spec's rows with joined and derived columns, without those that it does not keep."""
    derived = {name: finding.pattern(one.pattern, f"{spec.name}.derive.{name}") for name, one in spec.derive.items()}
    joins = [(one, _index(one, root, out)) for one in spec.join]
    for row in bound(SOURCES, spec.rows, f"{spec.name}.rows", root, out):
        whole = _joined(row, joins, out)
        if whole is None:
            continue
        for name, derive in spec.derive.items():
            column = next((one for one in derive.column if one in whole), derive.column[0])
            match = derived[name].search(cell(whole, column, f"{spec.name}.derive.{name}"))
            whole[name] = next((part for part in match.groups() if part), "") if match else ""
        refused = next((keep for keep in spec.keep if not _kept(whole, keep, spec)), None)
        if refused is None:
            yield whole
        else:
            out.add(named(whole), refused.reason)


def named(row: Mapping[str, str]) -> str:
    """Something to tell a row by before it has an id: its first texts."""
    return " ".join(value for value in list(row.values())[:3] if value)[:120]


def _kept(row: Mapping[str, str], keep: Any, spec: Spec) -> bool:
    value = cell(row, keep.column, f"{spec.name}.keep")
    return value not in keep.but and (not keep.values or value in keep.values)


def _index(join: Join, root: Path, out: LeftOut) -> dict[tuple[str, ...], dict[str, str]]:
    if not (root / join.table).is_file():
        if join.optional:
            out.note(f"the table {join.table} is not there")
            return {}
        raise _nothing("table", root, [join.table], "a {} of the data set is not there")
    index: dict[tuple[str, ...], dict[str, str]] = {}
    for row in tables.read(root / join.table, join.delimiter):
        key = join.key(cell(row, column, join.table) for column in join.by.values())
        wanted = {new: cell(row, column, join.table) for new, column in join.take.items()} if join.take else row
        index.setdefault(key, wanted)
    return index


def _joined(
    row: dict[str, str], joins: list[tuple[Join, dict[tuple[str, ...], dict[str, str]]]], out: LeftOut
) -> dict[str, str] | None:
    whole = dict(row)
    for join, index in joins:
        found = index.get(join.key(cell(whole, column, "join") for column in join.by))
        if found is None and not join.optional:
            out.add(named(row), f"no row of {join.table} belongs to it")
            return None
        whole = (found or dict.fromkeys(join.take, "")) | whole
    return whole
