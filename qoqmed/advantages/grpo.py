"""GRPO (Shao et al. 2024, arXiv:2402.03300; QoQ-Med, Eq. 1): a rollout's reward against those of its own question.

    A[q,i] = (r[q,i] - mean_q) / (std_q + eps)                                                                       (1)

std_q is unbiased, eps is 1e-6. Deviations: a group whose rewards are all equal gets exactly 0, free of rounding;
invalid rollouts get 0 and do not count; a group with fewer than two valid rollouts is dropped.
"""

from __future__ import annotations

from typing import Any

from qoqmed.advantages.groups import diagnose, grouped, standardised
from qoqmed.advantages.table import Advantages, RewardTable
from qoqmed.types import Needs


class GRPO:
    """Rewards standardised within each question."""

    needs = Needs(group=2)

    def estimate(self, table: RewardTable) -> Advantages:
        """Equation (1) within every question that has two valid rollouts or more."""
        groups = grouped(table)
        values = standardised(table, groups)
        return Advantages(values, diagnose(table, groups, values))

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing is kept from step to step."""
