"""Decoded media that later steps, epochs and evaluations use again, within a bound of bytes.

Rules: the least recently used goes first. An entry is known by the file's resolved path, size and time of change (of
all files of a folder or record), by the medium's options and by how many frames are wanted: a file that was changed is
decoded anew. Several threads that ask for one entry at once wait for one decode, and hear of its failure. What is
larger than the bound is handed out and not kept. Paths are checked at each request, as without a cache.
"""

from __future__ import annotations

import glob
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy.typing as npt

from qoqmed.contracts import Encoder
from qoqmed.media import frames as spatial
from qoqmed.media import masks
from qoqmed.media.paths import resolve
from qoqmed.media.refusals import decoding
from qoqmed.media.window import Pixels
from qoqmed.types import Mask, Medium

Arrays = tuple[npt.NDArray[Any], ...]


@dataclass(frozen=True)
class CacheCounts:
    """Since the cache was made: requests of files that were answered from it, and the others. held: what it has now."""

    hits: int = 0
    misses: int = 0
    held: int = 0
    held_bytes: int = 0

    @property
    def asked(self) -> int:
        return self.hits + self.misses

    def hit_share(self, before: CacheCounts) -> float:
        """Of the requests since `before`, of which there must be one."""
        return (self.hits - before.hits) / (self.asked - before.asked)


class MediaCache:
    """limit_bytes: of all arrays held; 0 holds nothing. Arrays are read-only, those of time series the caller's own."""

    def __init__(self, limit_bytes: int = 0) -> None:
        self.limit_bytes = limit_bytes
        self._lock = Lock()
        self._held: OrderedDict[Hashable, Arrays] = OrderedDict()  # the most recently used last
        self._under_way: dict[Hashable, Future[Arrays]] = {}
        self._hits = self._misses = self._bytes = 0

    @property
    def counts(self) -> CacheCounts:
        """At this moment."""
        with self._lock:
            return CacheCounts(self._hits, self._misses, len(self._held), self._bytes)

    def pictures(self, medium: Medium, root: str | Path, frames: int) -> Sequence[Pixels]:
        """What `media.frames.load` gives, each [H, W, 3] uint8; those of files are read-only. Raises MediaError."""
        if medium.array is not None or medium.path is None:
            return spatial.load(medium, root, frames)
        wanted = (medium.modality, frames, _stated(medium.options))
        return self._through(resolve(root, medium.path), wanted, lambda: spatial.load(medium, root, frames))

    def series(self, encoder: Encoder, path: Path, options: Mapping[str, Any]) -> npt.NDArray[Any]:
        """What `encoder.load` gives for the resolved path; a copy, which the encoder may write into or wrap."""
        (array,) = self._through(path, (encoder, _stated(options)), lambda: [encoder.load(path, options)])
        return array.copy()

    def mask(self, mask: Mask, root: str | Path, medium: Medium | None = None) -> masks.Inside:
        """What `media.masks.load` gives: bool [H, W]; that of a file is read-only. Raises MediaError."""
        if mask.array is not None or mask.path is None:
            return masks.load(mask, root, medium)
        shown = ("mask", medium.modality, medium.path, _stated(medium.options)) if medium else ("mask",)
        (array,) = self._through(resolve(root, mask.path), shown, lambda: [masks.load(mask, root, medium)])
        return array

    def __reduce__(self) -> tuple[type[MediaCache], tuple[int]]:
        """A copy is a cache of its own, empty."""
        return type(self), (self.limit_bytes,)

    def _through(self, path: Path, wanted: Hashable, decode: Callable[[], Sequence[npt.NDArray[Any]]]) -> Arrays:
        """The arrays of one file: from the cache, from a decode under way in another thread, or decoded here."""
        if not self.limit_bytes:
            return _frozen(decode())
        key = (str(path), _stamp(path), wanted)
        with self._lock:
            found = self._held.get(key)
            others = self._under_way.get(key)
            self._hits += found is not None or others is not None
            if found is not None:
                self._held.move_to_end(key)
                return found
            if others is None:
                self._misses += 1
                mine = self._under_way[key] = Future()
        return others.result() if others is not None else self._decoded(key, mine, decode)

    def _decoded(self, key: Hashable, mine: Future[Arrays], decode: Callable[[], Sequence[npt.NDArray[Any]]]) -> Arrays:
        """Decodes for this thread and for those that wait; keeps the result."""
        try:
            arrays = _frozen(decode())
        except BaseException as error:  # boundary: whoever waits for this decode must hear of any failure of it
            with self._lock:
                del self._under_way[key]
            mine.set_exception(error)
            raise
        with self._lock:
            self._keep(key, arrays)
            del self._under_way[key]
        mine.set_result(arrays)
        return arrays

    def _keep(self, key: Hashable, arrays: Arrays) -> None:
        size = _size(arrays)
        if size > self.limit_bytes:
            return
        self._held[key] = arrays
        self._bytes += size
        while self._bytes > self.limit_bytes:
            _, oldest = self._held.popitem(last=False)
            self._bytes -= _size(oldest)


def _size(arrays: Arrays) -> int:
    return sum(array.nbytes for array in arrays)


def _frozen(arrays: Sequence[npt.NDArray[Any]]) -> Arrays:
    """Read-only, each with memory of its own: a view would keep the whole of what it was cut from."""
    own = tuple(array if array.flags.owndata else array.copy() for array in arrays)
    for array in own:
        array.setflags(write=False)
    return own


def _stated(options: Mapping[str, Any]) -> str:
    return repr(sorted(options.items()))


def _stamp(path: Path) -> Hashable:
    """Names, sizes and times of change of all that reading the path opens."""
    with decoding("path", path):
        if path.is_file():
            files = [path]
        else:
            files = sorted(path.iterdir() if path.is_dir() else path.parent.glob(f"{glob.escape(path.name)}.*"))
        stats = [(file.name, file.stat()) for file in files]
        return hash(tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats))
