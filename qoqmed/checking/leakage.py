"""What several splits share: ids, patients, files, and files of the same content under other names.

Contents are compared where sizes agree, first by three pieces of a file, then whole. Beside that, a medium that two
rows of one split have under two names is told as a duplicate.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path

from qoqmed.checking.findings import ERROR, WARNING, Findings
from qoqmed.checking.places import Places
from qoqmed.checking.rows import Row
from qoqmed.errors import Problem

PIECE = 4096  # bytes
BLOCK = 2**20


def leakage(rows: Sequence[Row], places: Places, findings: Findings) -> None:
    """A patient is one within a data set: numbers of two sets are other people."""
    _shared("id", ((row, row.case.id) for row in rows), findings)
    _shared("patient", ((row, (row.case.dataset, row.case.patient)) for row in rows if row.case.patient), findings)
    _shared("file", ((row, medium.path) for row in rows for medium in row.case.media), findings)
    _contents(rows, places, findings)


def _shared(what: str, pairs: Iterator[tuple[Row, Hashable]], findings: Findings) -> None:
    first: dict[Hashable, dict[str, str]] = {}
    for row, key in pairs:
        splits = first.setdefault(key, {})
        others = [where for split, where in splits.items() if split != row.split]
        if others and row.split not in splits:
            got = key if isinstance(key, str) else ": ".join(map(str, key)) if isinstance(key, tuple) else str(key)
            findings.add("leakage", ERROR, Problem(f"the {what} is in another split, too: {others[0]}", row.where, got))
        splits.setdefault(row.split, row.where)


def _contents(rows: Sequence[Row], places: Places, findings: Findings) -> None:
    """Of media under several names. The size of a medium is that of all its files."""
    users: dict[str, Row] = {}
    for row in rows:
        for medium in row.case.media:
            if medium.path is not None and isinstance(places.find(medium.path), Path):
                users.setdefault(medium.path, row)
    sizes: dict[Hashable, list[str]] = {}
    for path in users:
        files = places.files(path)
        sizes.setdefault(tuple(sorted(file.stat().st_size for file in files)), []).append(path)
    for alike in (paths for size, paths in sizes.items() if size and len(paths) > 1):
        for near in _groups(alike, places, whole=False):
            for same in _groups(near, places, whole=True):
                _tell(same, users, findings)


def _groups(paths: Sequence[str], places: Places, whole: bool) -> Iterator[list[str]]:
    """Those of the same digest, where several have it."""
    found: dict[Hashable, list[str]] = {}
    for path in paths:
        found.setdefault(tuple(sorted(_digest(file, whole) for file in places.files(path))), []).append(path)
    yield from (group for group in found.values() if len(group) > 1)


def _digest(file: Path, whole: bool) -> bytes:
    """whole: of all its bytes; else of its start, middle and end."""
    digest = hashlib.blake2b(digest_size=16)
    with file.open("rb", buffering=0) as opened:
        size = os.fstat(opened.fileno()).st_size
        if whole or size <= 3 * PIECE:
            while block := opened.read(BLOCK):
                digest.update(block)
        else:
            for start in (0, size // 2, size - PIECE):
                opened.seek(start)
                digest.update(opened.read(PIECE))
    return digest.digest()


def _tell(paths: Sequence[str], users: dict[str, Row], findings: Findings) -> None:
    first = paths[0]
    for path in paths[1:]:
        row, other = users[path], next((p for p in paths if users[p].split != users[path].split), first)
        leaks = users[other].split != row.split
        where = "in another split" if leaks else "in this split"
        what = f"a medium has the same content as one {where}: {other}, of {users[other].where}"
        findings.add("leakage" if leaks else "duplicate", ERROR if leaks else WARNING, Problem(what, row.where, path))
