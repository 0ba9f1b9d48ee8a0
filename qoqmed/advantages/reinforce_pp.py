"""REINFORCE++ (Hu et al. 2025, arXiv:2501.03262): no critic, KL in every token's reward, one normalisation for all.

    r_t = -penalty_t, + r at the last token;   penalty_t = weight * k1_t, of the policy that sampled
    A_t = r_t + discount A_{t+1}
    A   = (A - mean) / sqrt(var + eps)     over all tokens of all valid responses of the step

The variance is unbiased and eps is 1e-8, as verl's (the paper divides by the standard deviation); long responses have
more tokens and weigh more. `baseline: group` is the paper's "w/ Baseline": r less the mean of its question, before all
else; there the paper has the KL (k2) in the loss, here it is where the recipe has it.
Deviations: invalid rollouts get 0 and do not count; where all tokens have one value they get exactly 0. A question
without a valid rollout is dropped; with `baseline: group`, one with fewer than two.
"""

from __future__ import annotations

from typing import Any

from qoqmed.advantages.groups import diagnose, grouped
from qoqmed.advantages.table import Advantages, RewardTable
from qoqmed.advantages.tokens import Tokens
from qoqmed.kmeans import one_thread
from qoqmed.registry.arguments import check, one_of, within
from qoqmed.types import Needs


class ReinforcePP:
    """discount: of later tokens' rewards. baseline: "none", or "group" to take off the mean of the question first."""

    def __init__(self, discount: float = 1.0, baseline: str = "none") -> None:
        check(within("discount", discount, low=0, high=1), one_of("baseline", baseline, ("none", "group")))
        self.discount, self.baseline = discount, baseline
        self.needs = Needs(tokens=True, group=2 if baseline == "group" else 1)

    @one_thread()
    def estimate(self, table: RewardTable) -> Advantages:
        """Advantages of tokens. Raises UserError where the table has no `lengths`."""
        groups = grouped(table, least=self.needs.group)
        tokens = Tokens.of(table, groups, "reinforce_pp")
        rewards = tokens.rewards(groups.centred if self.baseline == "group" else table.reward, table.penalty)
        each = tokens.whitened(tokens.discounted(rewards, self.discount))
        return Advantages(tokens.means(each), diagnose(table, groups, tokens.means(each.abs())), tokens=each)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing is kept from step to step."""
