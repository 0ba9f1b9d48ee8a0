"""RLOO (Kool et al. 2019; Ahmadian et al. 2024, arXiv:2402.14740): the other rollouts of a question are the baseline.

    A[q,i] = r[q,i] - mean of r[q,j], j != i  =  n / (n - 1) (r[q,i] - mean_q),   n rollouts of q

Deviations: n counts the valid rollouts, which are the baseline alone; the invalid get 0. A group whose rewards are all
equal gets exactly 0, free of rounding; one with fewer than two valid rollouts is dropped. The paper's reward has the KL
taken off: here where the recipe says so.
"""

from __future__ import annotations

from typing import Any

from qoqmed.advantages.groups import diagnose, grouped
from qoqmed.advantages.table import Advantages, RewardTable
from qoqmed.types import Needs


class RLOO:
    """Rewards less the mean of the other rollouts of their question."""

    needs = Needs(group=2)

    def estimate(self, table: RewardTable) -> Advantages:
        """Within every question that has two valid rollouts or more."""
        groups = grouped(table)
        n = groups.counts[table.question]
        values = groups.centred * n / (n - 1).clamp(min=1.0)
        return Advantages(values, diagnose(table, groups, values))

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing is kept from step to step."""
