"""Files that survive a kill: replaced whole or not at all, and JSON Lines that a resumed run can rewind."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any


def fsync(path: Path) -> None:
    """Bring a file's bytes, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_text(path: Path, text: str, durable: bool = False) -> None:
    """Write a file so that a reader sees the old or the new text, never a part. durable: also after a power cut."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    if durable:
        fsync(temporary)
    temporary.replace(path)
    if durable:
        fsync(path.parent)


def to_line(row: Mapping[str, Any]) -> str:
    """One JSON line. NaN and infinities are kept (as `NaN`, `Infinity`)."""
    return json.dumps(row, ensure_ascii=False) + "\n"


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Add a row to a JSON Lines file, in place of a last line that a kill cut short. It is in the file on return."""
    with path.open("a+b") as file:
        if file.tell() and not _ends_a_line(file):
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
        file.write(to_line(row).encode())


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a JSON Lines file, none where it does not exist. A last line that a kill cut short is left out."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)


def rewind_rows(path: Path, step: int, key: str = "step") -> None:
    """Drop the rows of later steps: a run that resumes at `step` writes them again."""
    if not path.exists():
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        for row in read_rows(path):
            if row[key] <= step:
                file.write(to_line(row))
    temporary.replace(path)


def _ends_a_line(file: IO[bytes]) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def open_to_umask(path: Path) -> None:
    """Give a file, or a folder's files, the mode of any new one: safetensors lets its own be read by one user only."""
    mask = os.umask(0)
    os.umask(mask)
    for file in path.iterdir() if path.is_dir() else [path]:
        file.chmod(0o666 & ~mask)
