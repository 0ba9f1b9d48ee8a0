"""Data sets mixed by weight, as an endless chain of rounds.

Weight 1 brings each case of a source once a round, 2 twice, 0.5 every other round: rounds are stretches of length
weight * size, cut from an endless chain of the source's permutations. A limit ends a source's chain. Within a round the
sources are shuffled together. All follows from the key of its random numbers; no global random state is read.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]

PERMUTE, SHUFFLE = 1, 2  # streams of random numbers that never meet


class Mixture:
    """sources: the indices of each source's cases. weights: one a source. limits: draws of each source in all rounds
    together, math.inf for no end."""

    def __init__(
        self,
        sources: Sequence[Indices],
        weights: Sequence[Fraction],
        *key: int,
        limits: Sequence[float] | None = None,
    ) -> None:
        self._sources, self._key = sources, key
        self._lengths = [weight * len(source) for weight, source in zip(weights, sources, strict=True)]
        self._ends = [math.inf] * len(sources) if limits is None else list(limits)

    @property
    def empty(self) -> bool:
        return self.rate == 0

    @property
    def rate(self) -> Fraction:
        """Cases of a round, as long as no source has ended."""
        return sum(self._lengths, Fraction())

    @property
    def end(self) -> float:
        """Cases of all rounds; math.inf where a source goes on for ever."""
        return sum(end for end, length in zip(self._ends, self._lengths, strict=True) if length)

    def total(self, rounds: int) -> int:
        """Cases of the first so many rounds."""
        return sum(self._drawn(source, rounds) for source in range(len(self._sources)))

    def order(self, number: int) -> Indices:
        """A whole round: [E, 2], source and index."""
        parts = [np.zeros((0, 2), dtype=np.int64)]
        for source in range(len(self._sources)):
            indices = self._chain(source, self._drawn(source, number), self._drawn(source, number + 1))
            parts.append(np.stack([np.full(len(indices), source), indices], axis=1))
        return self.shuffled(np.concatenate(parts), number)

    def shuffled(self, order: Indices, number: int) -> Indices:
        """Rows in the random order of round `number`."""
        out: Indices = order[self._rng(SHUFFLE, number).permutation(len(order))]
        return out

    def stretch(self, start: int, stop: int) -> Indices:
        """Positions start..stop of the rounds put end to end: [stop - start, 2], fewer where they end before."""
        parts = [np.zeros((0, 2), dtype=np.int64)]
        stop = int(min(stop, self.end))
        if start >= stop:
            return parts[0]
        enough = 1
        while self.total(enough) <= start:
            enough *= 2
        number = bisect_right(range(enough + 1), start, key=self.total) - 1
        at = self.total(number)
        while at < stop:
            order = self.order(number)
            parts.append(order[max(start - at, 0) : stop - at])
            number, at = number + 1, at + len(order)
        return np.concatenate(parts)

    def _drawn(self, source: int, rounds: int) -> int:
        return int(min(math.floor(rounds * self._lengths[source]), self._ends[source]))

    def _chain(self, source: int, start: int, stop: int) -> Indices:
        """Positions start..stop of the endless chain of a source's permutations."""
        cases = self._sources[source]
        links = range(start // len(cases), math.ceil(stop / len(cases))) if stop > start else range(0)
        pieces = [np.zeros(0, dtype=np.int64)]
        for link in links:
            permuted = cases[self._rng(PERMUTE, source, link).permutation(len(cases))]
            first = link * len(cases)
            pieces.append(permuted[max(start - first, 0) : stop - first])
        return np.concatenate(pieces)

    def _rng(self, *key: int) -> np.random.Generator:
        return np.random.default_rng([*self._key, *key])
