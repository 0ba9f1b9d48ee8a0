"""Whether media are there, by the rules of `media.paths`, for very many of them: each folder is listed once."""

from __future__ import annotations

import os
from pathlib import Path

from qoqmed.errors import MediaError, Problem
from qoqmed.media.paths import resolve


class Places:
    """Of media under a data root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._base = Path(os.path.realpath(root))
        self._listed: dict[str, dict[str, bool] | None] = {}  # folder -> name -> whether it is a plain file
        self._known: dict[str, Path | Problem] = {}
        self._plain: set[str] = set()  # of these, the files that a listing has shown

    def find(self, path: str) -> Path | Problem:
        """Where the medium is, or what is wrong with it, without `where`."""
        if path not in self._known:
            self._known[path] = self._find(path)
        return self._known[path]

    def files(self, path: str) -> list[Path]:
        """All files of a medium that was found: itself, a folder's, a record's signals."""
        found = self._known[path]
        assert isinstance(found, Path)
        if path in self._plain or found.is_file():
            return [found]
        if found.is_dir():
            return sorted(item for item in found.iterdir() if item.is_file())
        names = self._names(found.parent.as_posix()) or {}
        beside = (name for name in names if name.startswith(f"{found.name}.") and not name.endswith(".hea"))
        return [found.with_name(name) for name in sorted(beside)]

    def _find(self, path: str) -> Path | Problem:
        plain = not path.startswith("/") and ".." not in path and ":" not in path and "\0" not in path and path.strip()
        if plain:
            folder, _, name = path.rpartition("/")
            name = name.removesuffix(".hea")
            names = self._names(folder)
            if names and names.get(name if name in names else f"{name}.hea"):
                if name in names:
                    self._plain.add(path)
                return Path(f"{self._base}/{folder}/{name}")
        try:
            return resolve(self.root, path)
        except MediaError as error:
            return error.problems[0]

    def _names(self, folder: str) -> dict[str, bool] | None:
        """What lies in a folder under the root; None where it is none, or a link is on the way to it."""
        if folder not in self._listed:
            full = Path(os.path.normpath(self._base / folder))
            straight = Path(os.path.realpath(full)) == full and full.is_relative_to(self._base) and full.is_dir()
            listed = None
            if straight:
                with os.scandir(full) as entries:
                    listed = {entry.name: entry.is_file(follow_symlinks=False) for entry in entries}
            self._listed[folder] = listed
        return self._listed[folder]
