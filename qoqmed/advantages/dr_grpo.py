"""Dr. GRPO (Liu et al. 2025, arXiv:2503.20783): GRPO without the division by the standard deviation.

    A[q,i] = r[q,i] - mean_q

The paper's other half, no division by a response's length, is the loss's: `aggregate: dr_grpo` of the objective.
Deviations: a group whose rewards are all equal gets exactly 0, free of rounding; invalid rollouts get 0 and do not
count; a group with fewer than two valid rollouts is dropped.
"""

from __future__ import annotations

from typing import Any

from qoqmed.advantages.groups import diagnose, grouped
from qoqmed.advantages.table import Advantages, RewardTable
from qoqmed.types import Needs


class DrGRPO:
    """Rewards less the mean of their question."""

    needs = Needs(group=2)

    def estimate(self, table: RewardTable) -> Advantages:
        """Within every question that has two valid rollouts or more."""
        groups = grouped(table)
        return Advantages(groups.centred, diagnose(table, groups, groups.centred))

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing is kept from step to step."""
