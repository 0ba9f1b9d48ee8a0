"""Numbers of a step's micro-batches, put together over them and over all ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from qoqmed.estimating import Member
from qoqmed.losses import Loss
from qoqmed.parallel import gather
from qoqmed.types import Group

DIFFERENCE = "sampling/logp_difference"


class Tally:
    """Sums with their counts, and extremes, by name."""

    def __init__(self) -> None:
        self.sums: dict[str, tuple[float, float]] = {}
        self.smallest: dict[str, float] = {}
        self.largest: dict[str, float] = {}

    def add(self, loss: Loss) -> None:
        """One micro-batch."""
        self._merge(
            {name: (float(total), float(count)) for name, (total, count) in loss.sums.items()},
            {name: float(value) for name, value in loss.smallest.items()},
            {name: float(value) for name, value in loss.largest.items()},
        )

    def difference(self, groups: Sequence[Group], trainer: Mapping[Member, Tensor]) -> None:
        """|log-prob of the engine - of the trainer| of every response token, trained on or not.

        trainer: log-probs of before any update, by rollout. Gold answers, which nobody sampled, have no difference.
        """
        gaps = [
            (log_probs.double().cpu() - torch.tensor(groups[g].rollouts[i].log_probs, dtype=torch.float64)).abs()
            for (g, i), log_probs in trainer.items()
            if groups[g].rollouts[i].log_probs
        ]
        if gaps:
            all_of_them = torch.cat(gaps)
            mean = (float(all_of_them.sum()), float(len(all_of_them)))
            self._merge({f"{DIFFERENCE}/mean": mean}, {}, {f"{DIFFERENCE}/max": float(all_of_them.max())})

    def all_ranks(self) -> dict[str, float]:
        """A collective: means and extremes by name; a mean of nothing is left out."""
        whole = Tally()
        for part in gather((self.sums, self.smallest, self.largest)):
            whole._merge(*part)
        means = {name: total / count for name, (total, count) in whole.sums.items() if count}
        return means | whole.smallest | whole.largest

    def _merge(
        self,
        sums: Mapping[str, tuple[float, float]],
        smallest: Mapping[str, float],
        largest: Mapping[str, float],
    ) -> None:
        for name, (total, count) in sums.items():
            before = self.sums.get(name, (0.0, 0.0))
            self.sums[name] = (before[0] + total, before[1] + count)
        for name, value in smallest.items():
            self.smallest[name] = min(value, self.smallest.get(name, value))
        for name, value in largest.items():
            self.largest[name] = max(value, self.largest.get(name, value))
