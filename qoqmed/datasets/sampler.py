"""Which cases come when: a mixture of data sets in a deterministic order whose position is part of the checkpoint.

Weight 1 brings each case of a data set once an epoch, 2 twice, 0.5 every other epoch (see `mixture`). All follows from
(seed, epoch); no global random state is read.

Balanced (QoQ-Med v1, Figure 5, where data sets have equal parts; here domains have): an epoch is as long as without it,
and every domain fills an equal part of it, the same to within one case and exactly so in the long run. A domain's part
is cut from the endless chain of its own rounds, in which weights act as in a plain epoch of that domain alone: cases of
a rare domain come several times an epoch, those of a common one are spread over several epochs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from qoqmed.contracts import Dataset
from qoqmed.datasets.mixture import Indices, Mixture
from qoqmed.errors import DataError, Problem, RunError, near

BALANCE = 3  # the domains' streams of random numbers: beside those of `mixture`
LATER: dict[str, Any] = {"balanced": False}  # what states of earlier versions do not tell


class Sampler:
    """Draws (source, index) pairs: `datasets[source][index]`. `weights`: one a data set, 1 where none are given.

    balanced: every domain equally often.
    """

    def __init__(
        self,
        datasets: Sequence[Dataset],
        weights: Sequence[float] | None = None,
        seed: int = 0,
        domains: str | Sequence[str] = "all",
        balanced: bool = False,
    ) -> None:
        given = [1.0] * len(datasets) if weights is None else [float(weight) for weight in weights]
        _check_weights(given, len(datasets))
        wanted = None if domains == "all" else {domains} if isinstance(domains, str) else set(domains)
        present = {name for dataset in datasets for name in dataset.domains}
        _check_domains(wanted, present)
        exact = [Fraction(weight).limit_denominator(1_000_000) for weight in given]
        sources = [_indices(dataset, wanted) for dataset in datasets]
        self._whole = Mixture(sources, exact, seed)
        self._fingerprint: dict[str, Any] = {
            "seed": seed,
            "domains": "all" if wanted is None else sorted(wanted),
            "weights": given,
            "sizes": [len(dataset) for dataset in datasets],
            "cases": [len(source) for source in sources],
            "contents": [str(getattr(dataset, "fingerprint", "")) for dataset in datasets],
            "balanced": balanced,
        }
        names = sorted(present if wanted is None else wanted) if balanced else []
        parts = [
            Mixture([_indices(dataset, {name}) for dataset in datasets], exact, seed, BALANCE, place)
            for place, name in enumerate(names)
        ]
        self._domains = [part for part in parts if not part.empty]
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
        return self._whole.total(epoch + 1) - self._whole.total(epoch)

    def steps_per_epoch(self, count: int, epoch: int = 0) -> int:
        """Draws of `count` that an epoch takes, the short last one among them."""
        return math.ceil(self.size(epoch) / count)

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "position": self.position, "fingerprint": dict(self._fingerprint)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where the state was taken. Refuses a state of other data, weights, seed, domains or balance."""
        saved, mend = LATER | state["fingerprint"], "resume with the recipe and the data that the run began with"
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

    def _order_of(self, epoch: int) -> Indices:
        """The whole epoch: [E, 2], source and index."""
        if not self._domains:
            return self._whole.order(epoch)
        before, after, count = self._whole.total(epoch), self._whole.total(epoch + 1), len(self._domains)
        # floor((n + k) / count) over all k adds up to n: the parts of all epochs so far fill them exactly.
        parts = [domain.stretch((before + k) // count, (after + k) // count) for k, domain in enumerate(self._domains)]
        return self._whole.shuffled(np.concatenate(parts), epoch)


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
