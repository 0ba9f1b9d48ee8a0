"""Which cases come when: a mixture of data sets in a deterministic order whose position is part of the checkpoint.

Weight 1 brings each case of a data set once an epoch, 2 twice, 0.5 every other epoch: epochs are stretches of length
weight * size, cut from an endless chain of permutations. Within an epoch the data sets are shuffled together. All
follows from (seed, epoch); no global random state is read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from qoqmed.contracts import Dataset
from qoqmed.errors import DataError, Problem, RunError, near

Indices = npt.NDArray[np.int64]

PERMUTE, SHUFFLE = 1, 2  # streams of random numbers that never meet


class Sampler:
    """Draws (source, index) pairs: `datasets[source][index]`. `weights`: one a data set, 1 where none are given."""

    def __init__(
        self,
        datasets: Sequence[Dataset],
        weights: Sequence[float] | None = None,
        seed: int = 0,
        domains: str | Sequence[str] = "all",
    ) -> None:
        given = [1.0] * len(datasets) if weights is None else [float(weight) for weight in weights]
        _check_weights(given, len(datasets))
        wanted = None if domains == "all" else {domains} if isinstance(domains, str) else set(domains)
        _check_domains(wanted, {name for dataset in datasets for name in dataset.domains})
        self._seed = seed
        self._weights = [Fraction(weight).limit_denominator(1_000_000) for weight in given]
        self._sources = [_indices(dataset, wanted) for dataset in datasets]
        self._fingerprint: dict[str, Any] = {
            "seed": seed,
            "domains": "all" if wanted is None else sorted(wanted),
            "weights": given,
            "sizes": [len(dataset) for dataset in datasets],
            "cases": [len(source) for source in self._sources],
            "contents": [str(getattr(dataset, "fingerprint", "")) for dataset in datasets],
        }
        self.epoch = 0  # of the next draw
        self.position = 0  # cases of that epoch already drawn
        self._order = self._order_of(0)
        if not len(self._order):
            raise DataError(Problem("no case is left to draw", got=str(self._fingerprint)))

    def draw(self, count: int) -> list[tuple[int, int]]:
        """The next `count` cases; fewer at the end of an epoch, which is never mixed with the next one."""
        taken = self._order[self.position : self.position + count]
        self.position += len(taken)
        if self.position == len(self._order):
            self._turn_to(self.epoch + 1, 0)
        return [(int(source), int(index)) for source, index in taken]

    def size(self, epoch: int = 0) -> int:
        """Cases of an epoch; with weights that are not whole it may differ by one between epochs."""
        return sum(stop - start for start, stop in self._stretches(epoch))

    def steps_per_epoch(self, count: int, epoch: int = 0) -> int:
        """Draws of `count` that an epoch takes, the short last one among them."""
        return math.ceil(self.size(epoch) / count)

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "position": self.position, "fingerprint": dict(self._fingerprint)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where the state was taken. Refuses a state of other data, weights, seed or domains."""
        saved, mend = state["fingerprint"], "resume with the recipe and the data that the run began with"
        problems = [
            Problem(f"the data's {name} are not those of the checkpoint", "", str(now), str(saved.get(name)), mend)
            for name, now in self._fingerprint.items()
            if saved.get(name) != now
        ]
        if problems:
            raise RunError(problems)
        self._turn_to(state["epoch"], state["position"])

    def _turn_to(self, epoch: int, position: int) -> None:
        self.epoch, self.position = epoch, position
        self._order = self._order_of(epoch)

    def _stretches(self, epoch: int) -> list[tuple[int, int]]:
        """From where to where each source's chain of permutations is cut for this epoch."""
        lengths = [weight * len(source) for weight, source in zip(self._weights, self._sources, strict=True)]
        return [(math.floor(epoch * length), math.floor((epoch + 1) * length)) for length in lengths]

    def _order_of(self, epoch: int) -> Indices:
        """The whole epoch: [E, 2], source and index."""
        parts = []
        for source, (start, stop) in enumerate(self._stretches(epoch)):
            indices = self._chain(source, start, stop)
            parts.append(np.stack([np.full(len(indices), source), indices], axis=1))
        order = np.concatenate(parts)
        shuffled: Indices = order[self._rng(SHUFFLE, epoch).permutation(len(order))]
        return shuffled

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
        return np.random.default_rng([self._seed, *key])


def _indices(dataset: Dataset, wanted: set[str] | None) -> Indices:
    if wanted is None:
        return np.arange(len(dataset), dtype=np.int64)
    return np.array([i for i, domain in enumerate(dataset.domains) if domain in wanted], dtype=np.int64)


def _check_weights(weights: Sequence[float], datasets: int) -> None:
    if len(weights) != datasets:
        raise DataError(Problem(f"{len(weights)} weights for {datasets} data sets"))
    for weight in weights:
        if not math.isfinite(weight) or weight < 0:
            raise DataError(Problem("a data set's weight is out of range", got=str(weight), expected="0 or more"))


def _check_domains(wanted: set[str] | None, present: set[str]) -> None:
    for name in sorted((wanted or set()) - present):
        known = sorted(present)
        raise DataError(Problem(f"no data set has the domain {name!r}", expected=f"of {known}", mend=near(name, known)))
