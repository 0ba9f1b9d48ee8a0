"""Responses' tokens end to end: rewards of each, discounted sums, whitening. What estimators over tokens begin with."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from qoqmed.advantages.groups import Groups, present
from qoqmed.advantages.table import RewardTable

WHITEN_EPS = 1e-8  # added to the variance, as verl does


@dataclass(frozen=True)
class Tokens:
    """Where the N tokens of R responses lie, at least one each.

    lengths [R] long. last [R] long: index of each response's last token. rollout [N] long: the response of each token.
    counted [N] bool: its response counts.
    """

    lengths: Tensor
    last: Tensor
    rollout: Tensor
    counted: Tensor

    @classmethod
    def of(cls, table: RewardTable, groups: Groups, estimator: str) -> Tokens:
        lengths = present(table.lengths, estimator, "tokens", "the number of tokens of each response")
        rollout = torch.arange(len(lengths)).repeat_interleave(lengths)
        return cls(lengths, lengths.cumsum(0) - 1, rollout, groups.counted[rollout])

    def rewards(self, reward: Tensor, penalty: Tensor | None) -> Tensor:
        """[N]: each token's penalty off, reward [R] on a response's last; 0 in responses that do not count."""
        out = reward.new_zeros(len(self.rollout)) if penalty is None else -penalty
        return torch.where(self.counted, out.index_add(0, self.last, reward), 0.0)

    def discounted(self, terms: Tensor, factor: float) -> Tensor:
        """y[t] = terms[t] + factor y[t + 1] within each response, y being 0 behind its last token; [N]."""
        longer = len(self.lengths) - self.lengths.bincount().cumsum(0)[:-1]  # responses of more than 0, 1, .. tokens
        rank = self.lengths.argsort(descending=True, stable=True).argsort()
        back = self.last[self.rollout] - torch.arange(len(terms))
        # tokens as far from their end lie together, the longest response first: a step is then one addition
        place = (longer.cumsum(0) - longer)[back] + rank[self.rollout]
        out = torch.empty_like(terms).index_copy_(0, place, terms)
        for after, here in pairwise(out.split_with_sizes(longer.tolist())):
            here += factor * after[: len(here)]
        return out[place]

    def whitened(self, values: Tensor) -> Tensor:
        """Mean 0, unbiased variance 1 over all tokens that count, 0 elsewhere; exactly 0 where they are all equal."""
        own, out = values[self.counted], torch.zeros_like(values)
        if len(own) and own.min() < own.max():
            out[self.counted] = (own - own.mean()) * (own.var() + WHITEN_EPS).rsqrt()
        return out

    def means(self, values: Tensor) -> Tensor:
        """[N] -> [R], over the tokens of each response."""
        return values.new_zeros(len(self.lengths)).index_add_(0, self.rollout, values) / self.lengths
