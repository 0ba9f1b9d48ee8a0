"""Cases in loader threads: the next batch is admitted while the present one trains.

Threads, not processes: nothing is copied, and the cache is shared. benchmarks/media_loading.py compares the two; its
kept result is of a busy machine, on which neither was dependably faster than one thread.
What is fed follows from the places alone, never from the number of workers or from what was begun ahead: a batch that
was begun and is not asked for is dropped. The sampler is not touched here, so a checkpoint knows consumed steps only.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Generic, TypeVar

import torch

from qoqmed.build import Stage
from qoqmed.contracts import Dataset
from qoqmed.datasets.sampler import Sampler
from qoqmed.media.cache import MediaCache

Item = TypeVar("Item")
Place = tuple[Dataset, int]  # dataset[index]

STATM = Path("/proc/self/statm")


class Feeder(Generic[Item]):
    """`with Feeder(admit, workers) as feeder`. The end waits for the decodes that run and cancels the others.

    admit: one place -> what it becomes; runs in `workers` threads, and where these are 0 in the caller's, when it is
    asked for. What it raises is raised where the batch is taken. media: the cache that `admit` reads through.
    """

    def __init__(self, admit: Callable[[Place], Item], workers: int, media: MediaCache) -> None:
        self._admit, self._media, self._counts = admit, media, media.counts
        torch.get_num_threads()  # settles the caller's number before a loader thread sets its own
        self._pool = ThreadPoolExecutor(workers, "qoqmed-loader", torch.set_num_threads, (1,)) if workers else None
        self._begun: tuple[list[Place], list[Future[Item]]] | None = None
        self._hits = 0.0
        self.wait_s = 0.0  # of the last `take`

    def __enter__(self) -> Feeder[Item]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def ahead(self, places: Sequence[Place]) -> None:
        """Begin the batch that will be taken next. Without workers nothing happens."""
        if self._pool is not None:
            self._drop()
            self._begun = list(places), [self._pool.submit(self._admit, place) for place in places]

    def take(self, places: Sequence[Place]) -> list[Item]:
        """The items of a batch, in its order: what was begun ahead, where these are its places, else loaded now."""
        started = time.perf_counter()
        if self._pool is None:
            items = [self._admit(place) for place in places]
        else:
            if self._begun is None or not _same(self._begun[0], places):
                self.ahead(places)
            assert self._begun is not None, "begun above"
            (_, futures), self._begun = self._begun, None
            items = [future.result() for future in futures]
        self.wait_s = time.perf_counter() - started
        return items

    def each(self, batches: Sequence[Sequence[Place]]) -> Iterator[list[Item]]:
        """The items of every batch, each loaded while the caller works on the one before."""
        for number, batch in enumerate(batches):
            items = self.take(batch)
            if number + 1 < len(batches):
                self.ahead(batches[number + 1])
            yield items

    def figures(self) -> dict[str, float]:
        """A step's metrics, of this process: the wait for its batch, the cache's hits of late, the memory."""
        counts = self._media.counts
        if counts.asked > self._counts.asked:  # since the last call
            self._hits, self._counts = counts.hit_share(self._counts), counts
        return {"data/wait_s": self.wait_s, "data/cache_hits": self._hits, "data/rss_mb": resident_mb()}

    def _drop(self) -> None:
        for future in self._begun[1] if self._begun else ():
            future.cancel()
        self._begun = None


def drawn(stage: Stage, sampler: Sampler, rank: int = 0, world: int = 1) -> list[tuple[int, Place]]:
    """This rank's of the step's cases that the sampler draws now, every world-th, with their places in the step."""
    mine = list(enumerate(sampler.draw(stage.prompts)))[rank::world]
    return [(order, (stage.datasets[source], index)) for order, (source, index) in mine]


def _same(first: Sequence[Place], second: Sequence[Place]) -> bool:
    """Of the same data sets, not of equal ones."""
    return [(id(dataset), index) for dataset, index in first] == [(id(dataset), index) for dataset, index in second]


def resident_mb() -> float:
    """Memory of this process, in MB; its peak where the system does not tell (not Linux)."""
    if STATM.exists():
        return int(STATM.read_text().split()[1]) * resource.getpagesize() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
