"""ReMax (Li et al. 2024, arXiv:2310.10505): the reward of the greedy response is the baseline.

    A[q,i] = r[q,i] - r(q, greedy)

The greedy response is not trained on. Deviations: several rollouts of a question share one greedy response; invalid
rollouts get 0; a question is dropped whose greedy response has no reward (NaN), or that has no valid rollout. A KL in
the reward is taken off the rollouts alone, as in verl.
"""

from __future__ import annotations

from typing import Any

import torch

from qoqmed.advantages.groups import diagnose, grouped, present
from qoqmed.advantages.table import Advantages, RewardTable
from qoqmed.types import Needs


class ReMax:
    """Rewards less that of the greedy response to their question; one rollout a question is enough."""

    needs = Needs(greedy=True)

    def estimate(self, table: RewardTable) -> Advantages:
        """Raises UserError where the table has no `baseline`."""
        baseline = present(table.baseline, "remax", "baseline", "the reward of a greedy response to each question")
        groups = grouped(table, least=1, usable=baseline.isfinite())
        values = torch.where(groups.counted, table.reward - baseline[table.question], 0.0)
        return Advantages(values, diagnose(table, groups, values))

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing is kept from step to step."""
