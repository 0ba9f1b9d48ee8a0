"""Which cases come when: a mixture of data sets in a deterministic order whose position is part of the checkpoint.

Weight 1 brings each case of a data set once an epoch, 2 twice, 0.5 every other epoch (see `mixture`); a cap bounds the
cases of a data set in an epoch, a number of epochs how often its cases come in all. All follows from (seed, epoch); no
global random state is read.

Balanced (QoQ-Med v1, Figure 5, where data sets have equal parts; here domains have): an epoch is as long as without it,
and every domain fills an equal part of it, the same to within one case and exactly so in the long run. A domain's part
is cut from the endless chain of its own rounds, in which weights act as in a plain epoch of that domain alone: cases of
a rare domain come several times an epoch, those of a common one are spread over several epochs.
So it is with the parts that a temperature, weights and caps of domains make (see `shares`). Where these draw a domain
more often than its data sets would bring it, a capped data set comes more often, too: `beyond_caps`.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from qoqmed.contracts import Dataset
from qoqmed.datasets import shares
from qoqmed.datasets.mixture import Indices, Mixture
from qoqmed.errors import DataError, Problem, RunError

BALANCE = 3  # the domains' streams of random numbers: beside those of `mixture`
FAR = 2 * shares.FINE  # epochs in which the smallest weight brings its case
LATER: dict[str, Any] = {  # what states of earlier versions do not tell
    "balanced": False,
    "caps": None,
    "epochs": None,
    "temperature": 1.0,
    "domain_weights": {},
    "domain_caps": {},
}


class Sampler:
    """Draws (source, index) pairs: `datasets[source][index]`.

    weights: one a data set, 1 where none are given. caps: cases of each data set an epoch, at most, before domains'
    parts multiply them; None: no cap.
    epochs: how often the cases of each data set come in all; None: for ever. balanced: every domain equally often.
    temperature: between sizes as they are (1) and equal parts. domain_weights, domain_caps: of domains' parts.
    """

    def __init__(
        self,
        datasets: Sequence[Dataset],
        weights: Sequence[float] | None = None,
        seed: int = 0,
        domains: str | Sequence[str] = "all",
        balanced: bool = False,
        caps: Sequence[int | None] | None = None,
        epochs: Sequence[float | None] | None = None,
        temperature: float = 1.0,
        domain_weights: Mapping[str, float] | None = None,
        domain_caps: Mapping[str, int] | None = None,
    ) -> None:
        given = [1.0] * len(datasets) if weights is None else [float(weight) for weight in weights]
        caps, epochs = list(caps or [None] * len(datasets)), list(epochs or [None] * len(datasets))
        scales, ceilings = dict(domain_weights or {}), dict(domain_caps or {})
        wanted = None if domains == "all" else {domains} if isinstance(domains, str) else set(domains)
        coded = [_Coded(dataset) for dataset in datasets]
        present = {name for one in coded for name in one.names}
        shares.check_weights(given, len(datasets))
        shares.check_bounds(caps, epochs, len(datasets))
        shares.check_domains(wanted, present)
        if balanced and (temperature != 1 or scales or ceilings):
            mend = "a large temperature, such as 1000, makes them nearly equal beside weights and caps of domains"
            raise DataError(Problem("balanced makes the domains' parts equal, and they are given otherwise", mend=mend))
        names = sorted(present if wanted is None else wanted)
        shares.check_parts(temperature, scales, ceilings, names)
        sources = [one.within(wanted) for one in coded]
        exact = shares.capped([shares.exact(w) for w in given], [len(source) for source in sources], caps)
        self._whole = Mixture(sources, exact, seed, limits=_limits(epochs, sources))
        self._fingerprint: dict[str, Any] = {
            "seed": seed,
            "domains": "all" if wanted is None else sorted(wanted),
            "weights": given,
            "sizes": [len(dataset) for dataset in datasets],
            "cases": [len(source) for source in sources],
            "contents": [str(getattr(dataset, "fingerprint", "")) for dataset in datasets],
            "balanced": balanced,
            "caps": caps if any(cap is not None for cap in caps) else None,
            "epochs": epochs if any(one is not None for one in epochs) else None,
            "temperature": temperature if math.isfinite(temperature) else "inf",  # JSON has none
            "domain_weights": scales,
            "domain_caps": ceilings,
        }
        self._caps, self._balanced, self._domains = caps, balanced, dict[str, Mixture]()
        if balanced or temperature != 1 or scales or ceilings:
            for place, name in enumerate(names):
                inside = [one.within({name}) for one in coded]
                part = Mixture(inside, exact, seed, BALANCE, place, limits=_limits(epochs, inside))
                self._domains |= {} if part.empty else {name: part}
        natural = {name: part.rate for name, part in self._domains.items()}
        self._rates = shares.rates(natural, temperature, scales, ceilings) if natural and not balanced else {}
        self.epoch = 0  # of the next draw
        self.position = 0  # cases of that epoch already drawn
        self._order = self._order_of(0)
        if not len(self._order):
            raise DataError(Problem("no case is left to draw", got=str(self._fingerprint)))

    def draw(self, count: int) -> list[tuple[int, int]]:
        """The next `count` cases; fewer at the end of an epoch, which is never mixed with the next one. Raises
        DataError where nothing is left."""
        if self.exhausted:
            what, mend = "every data set has had all its epochs", "fewer steps, or more epochs for a data set"
            raise DataError(Problem(what, got=f"epoch {self.epoch}", mend=mend))
        if not len(self._order):
            before = self._drawn(self.epoch)
            self._turn_to(bisect_right(range(self.epoch + FAR), before, lo=self.epoch, key=self._drawn) - 1, 0)
        taken = self._order[self.position : self.position + count]
        self.position += len(taken)
        if self.position == len(self._order):
            self._turn_to(self.epoch + 1, 0)
        return [(int(source), int(index)) for source, index in taken]

    @property
    def exhausted(self) -> bool:
        """Whether nothing is left: every data set has come as often as its `epochs` allow."""
        return not len(self._order) and self.over(self.epoch)

    def over(self, epoch: int) -> bool:
        """Whether no case comes in this epoch or a later one."""
        return self._drawn(epoch + FAR) == self._drawn(epoch)

    def size(self, epoch: int = 0) -> int:
        """Cases of an epoch; with weights that are not whole it may differ by one a domain between epochs."""
        return self._drawn(epoch + 1) - self._drawn(epoch)

    def steps_per_epoch(self, count: int, epoch: int = 0) -> int:
        """Draws of `count` that an epoch takes, the short last one among them."""
        return math.ceil(self.size(epoch) / count)

    @property
    def beyond_caps(self) -> dict[int, tuple[int, int]]:
        """Data sets of which this epoch has more cases than their cap, by place: these cases, and the cap."""
        cases = np.bincount(self._order[:, 0], minlength=len(self._caps)).tolist()
        pairs = enumerate(zip(cases, self._caps, strict=True))
        return {place: (drawn, cap) for place, (drawn, cap) in pairs if cap is not None and drawn > cap}

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "position": self.position, "fingerprint": dict(self._fingerprint)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where the state was taken. Refuses a state of other data, weights, seed, domains or parts."""
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
        before, after = self._parts(epoch), self._parts(epoch + 1)
        parts = [part.stretch(before[name], after[name]) for name, part in self._domains.items()]
        return self._whole.shuffled(np.concatenate(parts), epoch)

    def _parts(self, epochs: int) -> dict[str, int]:
        """Cases of each domain in the first so many epochs."""
        if self._balanced:
            # floor((n + k) / count) over all k adds up to n: the parts of all epochs so far fill them exactly.
            total, count = self._whole.total(epochs), len(self._domains)
            drawn = {name: (total + place) // count for place, name in enumerate(self._domains)}
        else:
            drawn = {name: math.floor(epochs * self._rates[name]) for name in self._domains}
        return {name: int(min(drawn[name], part.end)) for name, part in self._domains.items()}

    def _drawn(self, epochs: int) -> int:
        return sum(self._parts(epochs).values()) if self._domains else self._whole.total(epochs)


class _Coded:
    """The domains of a data set's cases as numbers, read once."""

    def __init__(self, dataset: Dataset) -> None:
        numbers: dict[str, int] = {}
        codes = (numbers.setdefault(name, len(numbers)) for name in dataset.domains)
        self._codes: npt.NDArray[np.uint16] = np.fromiter(codes, dtype=np.uint16, count=len(dataset))
        self.names = list(numbers)

    def within(self, wanted: set[str] | None) -> Indices:
        """Indices of the cases of these domains; None: of all."""
        if wanted is None:
            return np.arange(len(self._codes), dtype=np.int64)
        chosen = [number for number, name in enumerate(self.names) if name in wanted]
        return np.flatnonzero(np.isin(self._codes, chosen)).astype(np.int64, copy=False)


def _limits(epochs: Sequence[float | None], sources: Sequence[Indices]) -> list[float]:
    return [
        math.inf if often is None else math.floor(shares.exact(often) * len(source))
        for often, source in zip(epochs, sources, strict=True)
    ]
