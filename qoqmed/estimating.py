"""Step 6 of the loop: rewards and KL of all ranks, sorted by global sample index -> this rank's advantages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qoqmed.advantages.table import Advantages, RewardTable
from qoqmed.contracts import Advantage
from qoqmed.losses import sequence_kl_k3
from qoqmed.parallel import gather
from qoqmed.types import Group

Member = tuple[int, int]  # (group, rollout) of this rank's groups


@dataclass(frozen=True)
class Row:
    """One question of a step as ranks tell each other. order: its global sample index. difficulty: see `Group`."""

    order: int
    question: str
    domain: str
    rewards: tuple[float | None, ...]
    kl: tuple[float, ...] | None
    difficulty: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class Estimate:
    """advantages: per group of this rank, one float a rollout. all_ranks: the estimator's own result."""

    advantages: tuple[tuple[float, ...], ...]
    all_ranks: Advantages
    rows: tuple[Row, ...]


def sequence_kl(
    groups: Sequence[Group], old: Mapping[Member, Tensor], reference: Mapping[Member, Tensor]
) -> list[list[float]]:
    """Sum over each response's tokens of k3(pi_old || pi_ref), nats. `old` not recomputed: the behaviour's."""
    out = []
    for g, group in enumerate(groups):
        row = []
        for i, rollout in enumerate(group.rollouts):
            theirs = reference[g, i].double().cpu()
            mine = old[g, i].double().cpu() if (g, i) in old else torch.tensor(rollout.log_probs, dtype=torch.float64)
            row.append(float(sequence_kl_k3(mine, theirs, torch.zeros(len(mine), dtype=torch.long), 1)[0]))
        out.append(row)
    return out


def estimate(
    estimator: Advantage, groups: Sequence[Group], orders: Sequence[int], kl: Sequence[Sequence[float]] | None
) -> Estimate:
    """orders: the groups' global sample indices. Every rank computes the whole table, so that nothing is sent back."""
    mine = tuple(
        Row(
            order,
            group.case.id,
            group.case.domain,
            group.rewards,
            None if kl is None else tuple(kl[g]),
            group.difficulty,
        )
        for g, (group, order) in enumerate(zip(groups, orders, strict=True))
    )
    rows = tuple(sorted((row for part in gather(mine) for row in part), key=lambda row: row.order))
    result = estimator.estimate(table(rows))
    values, at, by_order = result.values.tolist(), 0, dict[int, tuple[float, ...]]()
    for row in rows:
        by_order[row.order] = tuple(values[at : at + len(row.rewards)])
        at += len(row.rewards)
    return Estimate(tuple(by_order[order] for order in orders), result, rows)


def table(rows: Sequence[Row]) -> RewardTable:
    """Invalid rollouts (reward None) are marked, their number is of no meaning."""
    flat = [reward for row in rows for reward in row.rewards]
    has_kl = bool(rows) and rows[0].kl is not None
    pairs = [pair for row in rows for pair in zip(row.difficulty, row.rewards, strict=bool(row.difficulty))]
    difficulty = [max(reward or 0.0, 0.0) if value is None else value for value, reward in pairs]
    return RewardTable(
        questions=tuple(row.question for row in rows),
        domains=tuple(row.domain for row in rows),
        question=torch.repeat_interleave(torch.arange(len(rows)), torch.tensor([len(row.rewards) for row in rows])),
        reward=torch.tensor([0.0 if reward is None else reward for reward in flat], dtype=torch.float64),
        valid=torch.tensor([reward is not None for reward in flat]),
        kl=torch.tensor([value for row in rows for value in row.kl or ()], dtype=torch.float64) if has_kl else None,
        difficulty=torch.tensor(difficulty, dtype=torch.float64) if difficulty else None,
    )
