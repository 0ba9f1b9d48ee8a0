"""Rollouts beside those of their own question, and what is told of them: what every estimator begins and ends with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from qoqmed.advantages.table import Diagnostics, DomainStats, RewardTable
from qoqmed.errors import Problem, UserError

EPS = 1e-6


@dataclass(frozen=True)
class Groups:
    """Rewards within their questions.

    counted [R] bool: valid and of a kept question. kept [Q] bool: has valid rollouts enough. counts [Q] float64: of its
    valid rollouts. means, deviations [Q] float64: of their rewards, deviations unbiased, 0 where there are fewer than
    two. equal [Q] bool: kept, and every reward the same. centred [R] float64: reward minus mean; exactly 0 where equal,
    and 0 where not counted.
    """

    counted: Tensor
    kept: Tensor
    counts: Tensor
    means: Tensor
    deviations: Tensor
    equal: Tensor
    centred: Tensor


def grouped(table: RewardTable, least: int = 2, usable: Tensor | None = None) -> Groups:
    """Questions with `least` valid rollouts or more are kept, of `usable` [Q] bool only where that is given."""
    q = table.question[table.valid]
    r = table.reward[table.valid]
    zeros = r.new_zeros(len(table.questions))
    counts = zeros.index_add(0, q, torch.ones_like(r))
    means = zeros.index_add(0, q, r) / counts.clamp(min=1.0)
    deviations = (zeros.index_add(0, q, (r - means[q]).square()) / (counts - 1).clamp(min=1.0)).sqrt()
    kept = counts >= least if usable is None else (counts >= least) & usable
    equal = kept & (
        zeros.scatter_reduce(0, q, r, "amax", include_self=False)
        == zeros.scatter_reduce(0, q, r, "amin", include_self=False)
    )
    centred = torch.zeros_like(table.reward)
    centred[table.valid] = torch.where(kept[q] & ~equal[q], r - means[q], 0.0)
    return Groups(table.valid & kept[table.question], kept, counts, means, deviations, equal, centred)


def standardised(table: RewardTable, groups: Groups) -> Tensor:
    """(r - mean_q) / (std_q + eps), [R]."""
    return groups.centred / (groups.deviations[table.question] + EPS)


def present(column: Tensor | None, estimator: str, key: str, what: str) -> Tensor:
    """A column of the table that the estimator's `Needs` ask for. Raises UserError where it is missing."""
    if column is None:
        raise UserError(
            Problem(
                f"{estimator} needs {what}",
                got="a table without",
                expected=f"{key!r} in every row, if the table is a file",
                mend="take an estimator over whole responses: grpo, dr_grpo, rloo or drpo",
            )
        )
    return column


def group_scalars(groups: Groups) -> dict[str, float]:
    """The scalars that every estimator reports. frac_reward_zero_std: of the groups kept; a group of one is such."""
    kept = int(groups.kept.sum())
    return {
        "frac_reward_zero_std": float(groups.equal.sum()) / max(kept, 1),
        "dropped_groups": float(len(groups.kept) - kept),
    }


def domain_rows(table: RewardTable, groups: Groups) -> dict[str, Tensor]:
    """Indices of the rollouts that count, by domain, domains in order of first appearance."""
    names = list(dict.fromkeys(table.domains))
    of_question = torch.tensor([names.index(domain) for domain in table.domains], dtype=torch.long)
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


def diagnose(
    table: RewardTable, groups: Groups, values: Tensor, scalars: Mapping[str, float] | None = None
) -> Diagnostics:
    """Of an estimator without temperatures. values [R]: advantages, or the mean |advantage| of each response."""
    domains = {
        name: DomainStats(
            n=len(torch.unique(table.question[rows])),
            mean_reward=float(table.reward[rows].mean()),
            temperature=1.0,
            share=share(values, rows),
        )
        for name, rows in domain_rows(table, groups).items()
    }
    own = group_scalars(groups) | {"top_question_share": top_question_share(values, table)}
    return Diagnostics(domains, scalars=own | dict(scalars or {}))
