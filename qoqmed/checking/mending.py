"""What `--fix` does: only what cannot change the meaning of a row.

Blank lines and a byte-order mark go; NaN and infinities become null; a row that is the same as an earlier one, field by
field, goes; a label that is one of the space but for case, spaces, hyphens and underscores is spelt as there. All else
stays as it is, byte for byte, wrong or not.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from qoqmed.datasets.rows import OURS, RowReader
from qoqmed.errors import DataError, Problem, UserError

BOM = b"\xef\xbb\xbf"
SEEN = "rows the same as an earlier one, left out"
BLANK, CONSTANTS, LABELS = (
    "blank lines, left out",
    "numbers that were none, now null",
    "labels, spelt as in their space",
)


def mend(path: Path, out: Path, reader: RowReader) -> dict[str, int]:
    """Writes the mended file. Returns how often each was done. Raises UserError where `out` is there already."""
    if out.exists() or not out.absolute().parent.is_dir():
        expected = "a file that is not there, in a folder that is"
        raise UserError(Problem("nothing is overwritten", "--fix", str(out), expected))
    done: Counter[str] = Counter({BLANK: 0, SEEN: 0, CONSTANTS: 0, LABELS: 0})
    seen: set[str] = set()
    with path.open("rb") as file, out.open("wb") as written:
        for line, raw in enumerate(file, start=1):
            text = raw.removeprefix(BOM).strip()
            if not text:
                done[BLANK] += 1
                continue
            kept = _mended(text, reader, line, done)
            if kept is None:
                written.write(text + b"\n")
                continue
            row, changed = kept
            whole = json.dumps(row, sort_keys=True)
            if whole in seen:
                done[SEEN] += 1
                continue
            seen.add(whole)
            written.write((json.dumps(row).encode() if changed else text) + b"\n")
    return dict(done)


def _mended(text: bytes, reader: RowReader, line: int, done: Counter[str]) -> tuple[dict[str, Any], bool] | None:
    """The row and whether it was changed; None where the line is no object."""
    constants: list[str] = []
    try:
        row = json.loads(text, parse_constant=constants.append)  # which gives None
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict):
        return None
    done[CONSTANTS] += len(constants)
    spelt = _spelt(row, reader, line)
    done[LABELS] += spelt
    return row, bool(constants) or spelt > 0


def _spelt(row: dict[str, Any], reader: RowReader, line: int) -> int:
    """Labels that were spelt otherwise than their space has them, now as there, in the row itself."""
    field = (reader.mapping or {}).get("labels", "labels") or ""
    labels = row.get(field) if reader.format == OURS else None
    if not isinstance(labels, list):
        return 0
    try:
        space = reader.space(reader.named(row, line))
    except DataError:
        return 0
    by_key: dict[str, list[str]] = {}
    for label in space:
        by_key.setdefault(_key(label), []).append(label)
    new = [_only(by_key.get(_key(label), []), label) if isinstance(label, str) else label for label in labels]
    row[field] = new
    return sum(one is not other and one != other for one, other in zip(labels, new, strict=True))


def _only(found: list[str], label: str) -> str:
    return found[0] if len(found) == 1 and label not in found else label


def _key(label: str) -> str:
    return re.sub(r"[\s_-]+", " ", label).strip().casefold()
