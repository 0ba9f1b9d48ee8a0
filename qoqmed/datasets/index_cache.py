"""Indices of large files, kept for the next run in `$XDG_CACHE_HOME/qoqmed/index` (by default under ~/.cache).

An entry counts for one file, of one size and time of change, read with one set of arguments. It holds no id and no
text of a row: offsets, domains, names of data sets, licences, labels. What cannot be read is made anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from qoqmed.datasets.index import Index

VERSION = 1
KEPT_FROM = 2**25  # bytes; smaller files are read anew within two seconds
BROKEN = (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile)  # what a cut off or damaged entry raises
EDGE = 2**16  # bytes at either end of a file that enter its key


def through(path: Path, arguments: Any, make: Callable[[], Index]) -> Index:
    """The file's index: kept from earlier, or made now and kept. arguments: all that the index depends on."""
    if path.stat().st_size < KEPT_FROM:
        return make()
    owner, stamp = _owner(path, arguments), _stamp(path)
    entry = folder() / f"{owner}-{stamp}.npz"
    found = _read(entry) if entry.is_file() else None
    if found is not None:
        return found
    made = make()
    if _stamp(path) == stamp:  # else the file was written to meanwhile
        _keep(entry, owner, made)
    return made


def folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qoqmed" / "index"


def _owner(path: Path, arguments: Any) -> str:
    stated = json.dumps([VERSION, str(path.resolve()), arguments], sort_keys=True, default=str)
    return hashlib.blake2b(stated.encode(), digest_size=16).hexdigest()


def _stamp(path: Path) -> str:
    stat = path.stat()
    digest = hashlib.blake2b(f"{stat.st_size} {stat.st_mtime_ns}".encode(), digest_size=8)
    with path.open("rb") as file:
        digest.update(file.read(EDGE))
        file.seek(-min(EDGE, stat.st_size), os.SEEK_END)
        digest.update(file.read(EDGE))
    return digest.hexdigest()


def _read(entry: Path) -> Index | None:
    try:
        with entry.open("rb") as file, np.load(file, allow_pickle=False) as held:
            told = json.loads(str(held["told"]))
            origins = {(domain, dataset, licence): count for domain, dataset, licence, count in told["origins"]}
            spaces = {name: tuple(labels) for name, labels in told["spaces"].items()}
            arrays = held["offsets"], held["lines"], held["codes"]
            return Index(*arrays, tuple(told["domains"]), told["fingerprint"], origins, spaces)
    except BROKEN:  # the file itself is still there
        return None


def _keep(entry: Path, owner: str, index: Index) -> None:
    """In place of what was kept of the file as it was before. Where nothing can be written, nothing is kept."""
    told = {
        "domains": index.domains,
        "fingerprint": index.fingerprint,
        "origins": [[*origin, count] for origin, count in index.origins.items()],
        "spaces": index.spaces,
    }
    part = entry.with_name(f".{entry.name}.{os.getpid()}")
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            words = np.array(json.dumps(told))
            np.savez(file, told=words, offsets=index.offsets, lines=index.lines, codes=index.codes)
        part.replace(entry)
        for older in entry.parent.glob(f"{owner}-*.npz"):
            if older != entry:
                older.unlink(missing_ok=True)
    except OSError:  # a read-only home, a full disk: the next run makes the index again
        with suppress(OSError):
            part.unlink()
