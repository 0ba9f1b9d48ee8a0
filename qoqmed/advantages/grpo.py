"""GRPO (Shao et al. 2024; QoQ-Med, Eq. 1): a rollout's reward against those of its own question.

    A[q,i] = (r[q,i] - mean_q) / (std_q + eps)                                                                       (1)

std_q is unbiased, eps is 1e-6. Deviations: `scale: none` leaves the division out (Dr. GRPO, Liu et al. 2025); a group
whose rewards are all equal gets exactly 0, free of rounding; invalid rollouts get 0 and do not count; a group with
fewer than two valid rollouts is dropped.
"""

from __future__ import annotations

from typing import Any

import torch

from qoqmed.advantages.groups import domain_rows, group_scalars, share, standardise, top_question_share
from qoqmed.advantages.table import Advantages, Diagnostics, DomainStats, RewardTable
from qoqmed.registry.arguments import check, one_of
from qoqmed.types import Needs


class GRPO:
    """scale: "std" divides by the question's standard deviation, "none" does not."""

    needs = Needs(group=2)

    def __init__(self, scale: str = "std") -> None:
        check(one_of("scale", scale, ("std", "none")))
        self.scale = scale

    def estimate(self, table: RewardTable) -> Advantages:
        """Equation (1) within every question that has two valid rollouts or more."""
        groups = standardise(table, divide=self.scale == "std")
        domains = {
            name: DomainStats(
                n=len(torch.unique(table.question[rows])),
                mean_reward=float(table.reward[rows].mean()),
                temperature=1.0,
                share=share(groups.values, rows),
            )
            for name, rows in domain_rows(table, groups).items()
        }
        scalars = group_scalars(groups) | {"top_question_share": top_question_share(groups.values, table)}
        return Advantages(groups.values, Diagnostics(domains, scalars=scalars))

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing is kept from step to step."""
