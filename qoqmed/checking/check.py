"""`qoqmed data check`: a data file and its other splits, read whole before a run meets what is wrong with them."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from qoqmed.checking import decoding, rows
from qoqmed.checking.balance import balance
from qoqmed.checking.findings import ERROR, Findings, Report, Spread
from qoqmed.checking.leakage import leakage
from qoqmed.checking.mending import mend
from qoqmed.checking.places import Places
from qoqmed.datasets import index
from qoqmed.datasets.jsonl import reader_of
from qoqmed.datasets.rows import RowReader
from qoqmed.errors import DataError, Problem, UserError, near

KINDS: Mapping[str, tuple[type, str]] = {  # arguments of the plugin jsonl, and what they are
    "mapping": (Mapping, "our fields' names in the file, as mapping.labels=label"),
    "where": (Mapping, "a field and its value, as where.split=train"),
    "unless": (Mapping, "a field and its value, as unless.split=train"),
    "task": (str, "text"),
    "prefix": (str, "text"),
    "format": (str, "text"),
    "defaults": (Mapping, "a field and its value, as defaults.domain=ct"),
    "gather": (bool, "true or false"),
}
ARGUMENTS = tuple(KINDS)


def check(
    path: str | Path,
    splits: Sequence[str | Path] = (),
    arguments: Mapping[str, Any] | None = None,
    *,
    root: str | Path | None = None,
    by: str | None = None,
    decode: bool = False,
    workers: int | None = None,
    model: str | Path | None = None,
    frames: int = 4,
    max_tokens: int = 16_384,
    fix: str | Path | None = None,
) -> Report:
    """All that is wrong with the rows of a file, and with what it shares with other splits.

    splits: further files, read with the same arguments. arguments: of the data set plugin `jsonl`, also as
    {"mapping.labels": "label"}. root: the data root,
    by default the file's folder. by: a field of the rows whose value is their split, for files that hold several.
    decode: read the media and masks, too, in `workers` processes (default: as many as there are processors). model: a
    folder whose tokenizer counts the prompts' tokens. fix: write a mended copy there and check that. Raises UserError
    for wrong arguments; what is wrong with the data is in the report.
    """
    started = time.perf_counter()
    given = nested(arguments or {})
    for name in given:
        if name not in ARGUMENTS:
            hint = near(name, ARGUMENTS)
            raise UserError(Problem(f"unknown argument {name!r}", "", "", f"one of {', '.join(ARGUMENTS)}", hint))
    _require_kinds(given)
    files = [Path(path), *map(Path, splits)]
    base = Path(root) if root is not None else files[0].parent
    _require(files, base, {"--workers": workers, "--frames": frames, "--max-tokens": max_tokens})
    fixed = None
    if fix is not None:
        fixed = mend(files[0], Path(fix), _reader(files[0], base, given))
        files[0] = Path(fix)
    findings = Findings()
    found: list[rows.Row] = []
    for file, name in zip(files, _names(files), strict=True):
        reader = replace(_reader(file, base, given), source=_reader(files[0], base, given).source)
        found += _rows(file, reader, given, by, findings, name if len(files) > 1 or not by else "")
    places = Places(base)
    there = _missing(found, places, findings)
    rows.twice(found, findings)
    leakage(found, places, findings)
    table = balance(found, findings) if found else {}
    decoded = decoding.decode(there, base, findings, frames, _workers(workers)) if decode else 0
    spreads: dict[str, Spread] = {}
    if model is not None:
        from qoqmed.checking.lengths import lengths  # loads torch

        spreads = lengths(there, Path(model), base, findings, frames=frames, max_tokens=max_tokens)
    counts = {split: sum(row.split == split for row in found) for split in dict.fromkeys(row.split for row in found)}
    return Report(counts, findings, table, decoded, spreads, fixed, time.perf_counter() - started)


def _require(files: Sequence[Path], base: Path, counts: Mapping[str, int | None]) -> None:
    """Raises UserError for files, a data root and numbers that cannot be."""
    for place, file in enumerate(files):
        if not file.is_file():
            kind = "is a folder" if file.is_dir() else "does not exist"
            raise DataError(Problem(f"the data file {kind}", str(file), expected="a file of JSON Lines"))
        if file.resolve() in [other.resolve() for other in files[:place]]:
            raise UserError(Problem("the file is given twice", "--split", str(file), "the file of another split"))
    if not base.is_dir():
        raise UserError(Problem("no such folder", "--root", str(base), "what paths of media are relative to"))
    for option, count in counts.items():
        if count is not None and count < 1:
            raise UserError(Problem("at least 1", option, str(count)))


def _require_kinds(given: Mapping[str, Any]) -> None:
    """Raises UserError for arguments of a wrong type; null is the default."""
    problems = [
        Problem("an argument of another kind", name, repr(value), KINDS[name][1])
        for name, value in given.items()
        if not isinstance(value, KINDS[name][0]) and (value is not None or name == "format")
    ]
    mapping = given.get("mapping")
    problems += [
        Problem("not the name of a field", f"mapping.{name}", repr(theirs), "text, or null")
        for name, theirs in (mapping.items() if isinstance(mapping, Mapping) else ())
        if theirs is not None and not isinstance(theirs, str)
    ]
    if problems:
        raise UserError(problems)


def nested(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """{"mapping.labels": "label"} -> {"mapping": {"labels": "label"}}."""
    out: dict[str, Any] = {}
    for key, value in arguments.items():
        first, dot, rest = key.partition(".")
        if dot:
            own = out.setdefault(first, {})
            if not isinstance(own, dict):
                raise UserError(Problem(f"{first!r} is given whole and in parts", key, str(value)))
            own[rest] = value
        else:
            out[key] = value
    return out


def _names(files: Sequence[Path]) -> list[str]:
    """What the report calls the files' splits: their names without ending where these differ, else their paths."""
    stems = [file.stem for file in files]
    return stems if len(set(stems)) == len(stems) else [str(file) for file in files]


def _reader(file: Path, base: Path, given: Mapping[str, Any]) -> RowReader:
    """As the plugin makes it; the label spaces that it gathers are in `_rows`."""
    own = {name: value for name, value in given.items() if name not in ("where", "unless", "gather")}
    return reader_of(os.path.relpath(file, base), base, **own)


def _rows(
    file: Path, reader: RowReader, given: Mapping[str, Any], by: str | None, findings: Findings, name: str
) -> list[rows.Row]:
    """reader: names the data set of rows that name none by the first file: one set, whose patients are compared."""
    where, unless = given.get("where") or {}, given.get("unless") or {}
    if given.get("gather"):
        reader = replace(reader, spaces=index.gathered(file, reader, where, unless))

    names: dict[str, None] = {}  # of all fields

    def split(row: Mapping[str, Any]) -> str:
        value = row.get(by) if by else None
        names.update(dict.fromkeys(row) if by else {})
        return " ".join(part for part in (name, "" if value is None else str(value)) if part) or "?"

    read = list(rows.read(file, reader, findings, where=where, unless=unless, split=split))
    if by and read and by not in names:
        raise UserError(Problem("no row has this field", "--by", by, ", ".join(names), near(by, list(names))))
    if not read and not findings.of(ERROR):
        mend = "'where' and 'unless' leave none" if where or unless else "the file is empty"
        findings.add("schema", ERROR, Problem("no row is left", str(file), mend=mend))
    return read


def _missing(found: Sequence[rows.Row], places: Places, findings: Findings) -> list[rows.Row]:
    """Rows whose media and mask are all there; the others are told."""
    there = []
    for row in found:
        mask = row.case.target.mask
        paths = [medium.path for medium in row.case.media] + [mask.path if mask else None]
        problems = [one for path in paths if path is not None and isinstance(one := places.find(path), Problem)]
        for one in problems:
            findings.add("media", ERROR, Problem(one.what, row.where, one.got, one.expected, one.mend))
        there += [] if problems else [row]
    return there


def _workers(given: int | None) -> int:
    return len(os.sched_getaffinity(0)) if given is None else given
