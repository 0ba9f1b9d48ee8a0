"""Tables as rows of texts: CSV and TSV (also gzipped), Parquet, JSON (a list of objects) and JSON Lines.

Every value becomes text as CSV would hold it: null is "", true is "true", 1.0 is "1". Nothing is guessed beyond that.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qoqmed.errors import DataError, Problem
from qoqmed.media.refusals import need

Row = Mapping[str, str]
WHOLE = re.compile(r"-?\d+\.0+")


def plain(value: Any) -> str:
    """A cell as text: numbers without a needless fraction, truth values in lower case."""
    if value is None or value != value:  # NaN, as Parquet has it
        return ""
    text = str(value).lower() if isinstance(value, bool) else str(value).strip()
    return text.split(".")[0] if WHOLE.fullmatch(text) else text


def read(path: Path, delimiter: str = ",") -> Iterator[dict[str, str]]:
    """The rows of a table. Raises DataError, naming the file, where it cannot be read as what its ending says."""
    kind = "".join(path.suffixes[-2:] if path.suffix == ".gz" else path.suffixes[-1:]).lower()
    if kind == ".parquet":
        yield from ({key: plain(value) for key, value in row.items()} for row in _parquet(path))
    elif kind in (".json", ".jsonl"):
        for row in _json(path, kind):
            if not isinstance(row, dict):
                raise DataError(Problem("an item of the table is no object", str(path), repr(row)[:80]))
            yield {str(key): plain(value) for key, value in row.items() if not isinstance(value, (list, dict))}
    else:
        yield from _csv(path, "\t" if ".tsv" in kind else delimiter)


def _csv(path: Path, delimiter: str) -> Iterator[dict[str, str]]:
    door: Any = gzip.open if path.suffix == ".gz" else open
    try:  # bytes that are no UTF-8, a broken gzip member and a field beyond csv's limit show only while reading
        with door(path, "rt", encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter)
            header = [name.strip() for name in next(reader, [])]
            for cells in reader:
                if len(cells) > len(header):
                    raise DataError(
                        Problem(
                            "a row has more cells than the header",
                            f"{path}:{reader.line_num}",
                            f"{len(cells)} cells",
                            f"{len(header)}",
                        )
                    )
                if cells:
                    padded = [*cells, *[""] * (len(header) - len(cells))]
                    yield {name: plain(cell) for name, cell in zip(header, padded, strict=True)}
    except (UnicodeDecodeError, OSError, EOFError, zlib.error, csv.Error) as error:
        raise DataError(Problem("the table cannot be read", str(path), str(error)[:200])) from error


def _json(path: Path, kind: str) -> list[Any]:
    try:  # json has no way to ask whether a text is valid, nor bytes whether they are UTF-8
        text = path.read_text(encoding="utf-8-sig")
        content = [json.loads(line) for line in text.splitlines() if line.strip()] if kind == ".jsonl" else None
        content = json.loads(text) if content is None else content
    except (ValueError, RecursionError) as error:
        raise DataError(Problem("the table is no valid JSON", str(path), str(error)[:200])) from error
    if not isinstance(content, list):
        raise DataError(Problem("the table is no list of objects", str(path), type(content).__name__))
    return content


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    """With pyarrow, batch by batch. Raises UserError without it, and DataError for a file that is no Parquet."""
    parquet = need("pyarrow.parquet", "parquet")
    try:  # only opening and reading tell
        for batch in parquet.ParquetFile(path).iter_batches():
            yield from batch.to_pylist()
    except (OSError, ValueError) as error:  # pyarrow's own errors are among these
        raise DataError(Problem("the table cannot be read", str(path), str(error)[:200])) from error
