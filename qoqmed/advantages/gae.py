"""PPO's advantages: generalised advantage estimation (Schulman et al. 2016, arXiv:1506.02438; 2017, arXiv:1707.06347).

    r_t     = -penalty_t, + r at the last token
    delta_t = r_t + discount V_{t+1} - V_t,   V behind the last token is 0
    A_t     = delta_t + discount lam A_{t+1}
    R_t     = A_t + V_t                       what the value head learns
    A       = (A - mean) / sqrt(var + eps)    over all tokens of all valid responses, where `whiten`

V_t is the value of the state before token t is sampled. The variance is unbiased and eps is 1e-8, as verl's. lam is 1
at default, as verl's and as a reward at the end suggests: A_t is then the return less V_t; TRL takes 0.95.
Deviations: a response cut at the limit of tokens ends as any other, with V = 0 behind it. Invalid rollouts get 0, are
in no mean, and have R = V, from which nothing is learned; a question without a valid rollout is dropped.
"""

from __future__ import annotations

from typing import Any

import torch

from qoqmed.advantages.groups import diagnose, grouped, present
from qoqmed.advantages.table import Advantages, RewardTable
from qoqmed.advantages.tokens import Tokens
from qoqmed.kmeans import one_thread
from qoqmed.registry.arguments import check, within
from qoqmed.types import Needs


class GAE:
    """discount: of later rewards and values. lam: 0 trusts the values, 1 the returns. whiten: mean 0, variance 1."""

    needs = Needs(tokens=True, values=True)

    def __init__(self, discount: float = 1.0, lam: float = 1.0, whiten: bool = True) -> None:
        check(within("discount", discount, low=0, high=1), within("lam", lam, low=0, high=1))
        self.discount, self.lam, self.whiten = discount, lam, whiten

    @one_thread()
    def estimate(self, table: RewardTable) -> Advantages:
        """Advantages of tokens, and returns. Raises UserError where the table has no `lengths` or no `values`.

        The scalar explained_variance is 1 - var(R - V) / var(R): 1 where values are right, 0 where they say nothing.
        """
        groups = grouped(table, least=1)
        tokens = Tokens.of(table, groups, "gae")
        values = present(table.values, "gae", "values", "the value of each token")
        following = values.roll(-1).index_fill(0, tokens.last, 0.0)
        deltas = tokens.rewards(table.reward, table.penalty) + self.discount * following - values
        raw = tokens.discounted(torch.where(tokens.counted, deltas, 0.0), self.discount * self.lam)
        returns = raw + values
        each = tokens.whitened(raw) if self.whiten else raw
        spread = float(returns[tokens.counted].var(correction=0)) if groups.counted.any() else 0.0
        explained = 1 - float(raw[tokens.counted].var(correction=0)) / spread if spread > 0 else 0.0
        told = diagnose(table, groups, tokens.means(each.abs()), {"explained_variance": explained})
        return Advantages(tokens.means(each), told, tokens=each, returns=returns)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing is kept from step to step."""
