"""Data sets mixed by weight, as an endless chain of rounds.

Weight 1 brings each case of a source once a round, 2 twice, 0.5 every other round: rounds are stretches of length
weight * size, cut from an endless chain of the source's permutations. Within a round the sources are shuffled together.
All follows from the key of its random numbers; no global random state is read.
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
    """sources: the indices of each source's cases. weights: one a source."""

    def __init__(self, sources: Sequence[Indices], weights: Sequence[Fraction], *key: int) -> None:
        self._sources, self._key = sources, key
        self._lengths = [weight * len(source) for weight, source in zip(weights, sources, strict=True)]

    @property
    def empty(self) -> bool:
        return sum(self._lengths) == 0

    def total(self, rounds: int) -> int:
        """Cases of the first so many rounds."""
        return sum(math.floor(rounds * length) for length in self._lengths)

    def order(self, number: int) -> Indices:
        """A whole round: [E, 2], source and index."""
        parts = [np.zeros((0, 2), dtype=np.int64)]
        for source, length in enumerate(self._lengths):
            indices = self._chain(source, math.floor(number * length), math.floor((number + 1) * length))
            parts.append(np.stack([np.full(len(indices), source), indices], axis=1))
        return self.shuffled(np.concatenate(parts), number)

    def shuffled(self, order: Indices, number: int) -> Indices:
        """Rows in the random order of round `number`."""
        out: Indices = order[self._rng(SHUFFLE, number).permutation(len(order))]
        return out

    def stretch(self, start: int, stop: int) -> Indices:
        """Positions start..stop of the rounds put end to end: [stop - start, 2]. Not of an empty mixture."""
        enough = math.ceil((start + len(self._lengths)) / sum(self._lengths)) + 1
        number = bisect_right(range(enough + 1), start, key=self.total) - 1
        parts, at = [np.zeros((0, 2), dtype=np.int64)], self.total(number)
        while at < stop:
            order = self.order(number)
            parts.append(order[max(start - at, 0) : stop - at])
            number, at = number + 1, at + len(order)
        return np.concatenate(parts)

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
