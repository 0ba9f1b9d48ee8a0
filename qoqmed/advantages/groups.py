"""Rollouts beside those of their own question: what every estimator over groups begins with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qoqmed.advantages.table import RewardTable

EPS = 1e-6


@dataclass(frozen=True)
class Groups:
    """Rollouts standardised within their questions.

    values [R] float64, 0 where not `counted`. counted [R] bool: valid and of a kept question. kept [Q] bool: two valid
    rollouts or more. means [Q] float64. equal [Q] bool: kept, and every reward the same.
    """

    values: Tensor
    counted: Tensor
    kept: Tensor
    means: Tensor
    equal: Tensor


def standardise(table: RewardTable, divide: bool = True) -> Groups:
    """(r - mean_q) / (std_q + eps) of every question at once; `divide` False leaves out the standard deviation."""
    q = table.question[table.valid]
    r = table.reward[table.valid]
    zeros = r.new_zeros(len(table.questions))
    n = zeros.index_add(0, q, torch.ones_like(r))
    means = zeros.index_add(0, q, r) / n.clamp(min=1.0)
    centred = r - means[q]
    kept = n >= 2
    equal = kept & (
        zeros.scatter_reduce(0, q, r, "amax", include_self=False)
        == zeros.scatter_reduce(0, q, r, "amin", include_self=False)
    )
    if divide:
        variances = zeros.index_add(0, q, centred.square()) / (n - 1).clamp(min=1.0)
        centred = centred / (variances.sqrt()[q] + EPS)
    values = torch.zeros_like(table.reward)
    values[table.valid] = torch.where(kept[q] & ~equal[q], centred, 0.0)
    return Groups(values, table.valid & kept[table.question], kept, means, equal)


def group_scalars(groups: Groups) -> dict[str, float]:
    """The scalars that every estimator over groups reports. frac_reward_zero_std: of the groups kept."""
    kept = int(groups.kept.sum())
    return {
        "frac_reward_zero_std": float(groups.equal.sum()) / max(kept, 1),
        "dropped_groups": float(len(groups.kept) - kept),
    }


def domain_rows(table: RewardTable, groups: Groups) -> dict[str, Tensor]:
    """Indices of the rollouts that count, by domain, domains in order of first appearance."""
    names = list(dict.fromkeys(table.domains))
    of_question = torch.tensor([names.index(domain) for domain in table.domains])
    of_rollout = torch.where(groups.counted, of_question[table.question], -1)
    rows = {name: (of_rollout == index).nonzero()[:, 0] for index, name in enumerate(names)}
    return {name: found for name, found in rows.items() if len(found)}


def share(values: Tensor, rows: Tensor) -> float:
    """Of the sum of |advantage|: the part of some rollouts."""
    total = float(values.abs().sum())
    return float(values[rows].abs().sum()) / total if total else 0.0


def top_question_share(values: Tensor, table: RewardTable) -> float:
    """Of the sum of |advantage|: the part of the question that has most of it."""
    per_question = values.new_zeros(len(table.questions)).index_add_(0, table.question, values.abs())
    total = float(per_question.sum())
    return float(per_question.max()) / total if total else 0.0
