"""Paths of media, always inside the data root: what leaves it is refused before anything is opened."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from qoqmed.media.refusals import decoding, refused

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:(//|\\\\)|(data|file|http|https|ftp|s3|gs):", re.IGNORECASE)


def resolve(root: str | Path, path: str) -> Path:
    """The existing file, folder or WFDB record (its name without `.hea`) at `path` under the data root.

    Refused: URLs, `..`, absolute paths outside the root, symbolic links that leave it (those inside a folder of
    slices and beside a record's header too), and whatever is neither a file nor a folder.
    """
    if _URL.match(path):
        raise refused("a URL is no medium: nothing is downloaded", path, mend="download it and give its path")
    if not path.strip() or "\0" in path:
        raise refused("this is no path", repr(path))
    if ".." in Path(path).parts:
        raise refused("the path has '..' in it", path, expected=f"a path under {root}")
    with decoding("path", path):
        base = Path(os.path.realpath(root))
        found = base / (path[: -len(".hea")] if path.endswith(".hea") else path)
        for part in _parts(found):
            if not Path(os.path.realpath(part)).is_relative_to(base):
                raise refused(f"the path leaves the data root ({part})", path, expected=f"a path under {base}")
        if not (found.is_file() or found.is_dir() or _header(found).is_file()):
            kind = "is neither a file nor a folder" if found.exists() else "does not exist"
            raise refused(f"the path {kind}", path, expected=f"a file under {base}", mend="check data.root")
    return found


def _header(record: Path) -> Path:
    return record.with_name(record.name + ".hea")


def _parts(found: Path) -> Iterator[Path]:
    """All that reading `found` opens: itself, a folder's files, a record's signal files."""
    yield found
    if found.is_dir():
        yield from found.iterdir()
    elif _header(found).exists():
        yield from (item for item in found.parent.iterdir() if item.name.startswith(found.name + "."))
