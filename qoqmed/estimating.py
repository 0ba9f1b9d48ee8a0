"""Step 6 of the loop: rewards and KL of all ranks, sorted by global sample index -> this rank's advantages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from qoqmed.advantages.table import Advantages, Diagnostics, RewardTable
from qoqmed.contracts import Advantage
from qoqmed.losses import kl
from qoqmed.parallel import gather
from qoqmed.types import Group, Needs

Member = tuple[int, int]  # (group, rollout) of this rank's groups


@dataclass(frozen=True)
class Row:
    """One question of a step as ranks tell each other. order: its global sample index. difficulty, baseline: as in
    `Group`. lengths: tokens of its responses. penalty, values: of their tokens, put end to end (see `RewardTable`).
    """

    order: int
    question: str
    domain: str
    rewards: tuple[float | None, ...]
    kl: tuple[float, ...] | None
    difficulty: tuple[float | None, ...] = ()
    baseline: float | None = None
    lengths: tuple[int, ...] = ()
    penalty: Tensor | None = None
    values: Tensor | None = None


@dataclass(frozen=True)
class Estimate:
    """advantages: per group of this rank, one float a rollout. tokens, returns: by rollout of this rank, [tokens] of
    float32 each; returns only where values are trained. all_ranks: the estimator's own result."""

    advantages: tuple[tuple[float, ...], ...]
    tokens: Mapping[Member, Tensor]
    returns: Mapping[Member, Tensor]
    all_ranks: Advantages
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Known:
    """What an estimator may ask of this rank's rollouts. kl: nats, one each. penalty, values: [tokens] of each."""

    kl: Sequence[Sequence[float]] | None = None
    penalty: Mapping[Member, Tensor] = field(default_factory=dict)
    values: Mapping[Member, Tensor] = field(default_factory=dict)


def log_ratios(
    groups: Sequence[Group], old: Mapping[Member, Tensor], reference: Mapping[Member, Tensor]
) -> dict[Member, tuple[Tensor, Tensor]]:
    """(old, reference) log-probs of every rollout, [tokens] float64. `old` not recomputed: the behaviour's."""
    out = {}
    for place, theirs in reference.items():
        rollout = groups[place[0]].rollouts[place[1]]
        mine = old[place] if place in old else torch.tensor(rollout.log_probs)
        out[place] = (mine.double().cpu(), theirs.double().cpu())
    return out


def sequence_kl(
    groups: Sequence[Group], old: Mapping[Member, Tensor], reference: Mapping[Member, Tensor]
) -> list[list[float]]:
    """Sum over each response's tokens of k3(pi_old || pi_ref), nats."""
    pairs = log_ratios(groups, old, reference)
    return [[float(kl("k3", *pairs[g, i]).sum()) for i in range(len(group.rollouts))] for g, group in enumerate(groups)]


def penalties(
    groups: Sequence[Group], old: Mapping[Member, Tensor], reference: Mapping[Member, Tensor], weight: float
) -> dict[Member, Tensor]:
    """weight * k1(pi_old || pi_ref) of every token: what the KL takes from its reward."""
    return {place: weight * kl("k1", *pair) for place, pair in log_ratios(groups, old, reference).items()}


def estimate(estimator: Advantage, groups: Sequence[Group], orders: Sequence[int], known: Known) -> Estimate:
    """orders: the groups' global sample indices. Every rank computes the whole table, so that nothing is sent back."""
    mine = tuple(_row(g, group, order, known) for g, (group, order) in enumerate(zip(groups, orders, strict=True)))
    rows = tuple(sorted((row for part in gather(mine) for row in part), key=lambda row: row.order))
    whole = table(rows, estimator.needs)
    result = estimator.estimate(whole) if _finite(whole) else _nothing(whole)
    members = [(row.order, i) for row in rows for i in range(len(row.rewards))]
    lengths = [length for row in rows for length in row.lengths]
    advantages = dict(zip(members, result.values.tolist(), strict=True))
    tokens = result.tokens
    if tokens is None:
        tokens = result.values.repeat_interleave(torch.tensor(lengths))
    by_token = dict(zip(members, torch.split(tokens.float(), lengths), strict=True))
    returns = (
        {} if result.returns is None else dict(zip(members, torch.split(result.returns.float(), lengths), strict=True))
    )
    own = {(order, i): (g, i) for g, order in enumerate(orders) for i in range(len(groups[g].rollouts))}
    return Estimate(
        tuple(tuple(advantages[order, i] for i in range(len(groups[g].rollouts))) for g, order in enumerate(orders)),
        {place: by_token[member] for member, place in own.items()},
        {place: returns[member] for member, place in own.items() if returns},
        result,
        rows,
    )


def _finite(given: RewardTable) -> bool:
    """Whether log-probs and values are; rewards have been looked at where they were given."""
    parts = (given.reward, given.kl, given.penalty, given.values)
    return all(bool(part.isfinite().all()) for part in parts if part is not None)


def _nothing(given: RewardTable) -> Advantages:
    """Advantages that are no numbers: the update is left out, counted, and its packs are kept."""
    told = "log-probs or values are not finite: this step teaches nothing"
    return Advantages(torch.full_like(given.reward, torch.nan), Diagnostics({}), (told,))


def _row(g: int, group: Group, order: int, known: Known) -> Row:
    places = [(g, i) for i in range(len(group.rollouts))]
    return Row(
        order,
        group.case.id,
        group.case.domain,
        group.rewards,
        None if known.kl is None else tuple(known.kl[g]),
        group.difficulty,
        group.baseline,
        tuple(len(rollout.token_ids) for rollout in group.rollouts),
        torch.cat([known.penalty[place] for place in places]) if known.penalty else None,
        torch.cat([known.values[place] for place in places]).cpu() if known.values else None,
    )


def table(rows: Sequence[Row], needs: Needs = Needs()) -> RewardTable:  # noqa: B008
    """Invalid rollouts (reward None) are marked, their number is of no meaning.

    Where the estimator does not work on tokens, a penalty is taken from the whole response's reward; rewards without it
    are the difficulty then.
    """
    flat = [reward for row in rows for reward in row.rewards]
    has_kl = bool(rows) and rows[0].kl is not None
    lengths = torch.tensor([length for row in rows for length in row.lengths])
    reward = torch.tensor([0.0 if value is None else value for value in flat], dtype=torch.float64)
    difficulty = _difficulty(rows)
    penalty = _whole([row.penalty for row in rows])
    if penalty is not None and not needs.tokens:
        of_rollout = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
        difficulty = reward.clamp(min=0) if difficulty is None else difficulty
        reward = reward.index_add(0, of_rollout, -penalty)
    baselines = [float("nan") if row.baseline is None else row.baseline for row in rows]
    return RewardTable(
        questions=tuple(row.question for row in rows),
        domains=tuple(row.domain for row in rows),
        question=torch.repeat_interleave(torch.arange(len(rows)), torch.tensor([len(row.rewards) for row in rows])),
        reward=reward,
        valid=torch.tensor([reward is not None for reward in flat]),
        kl=torch.tensor([value for row in rows for value in row.kl or ()], dtype=torch.float64) if has_kl else None,
        difficulty=difficulty,
        baseline=torch.tensor(baselines, dtype=torch.float64) if needs.greedy else None,
        lengths=lengths if needs.tokens else None,
        penalty=penalty if needs.tokens else None,
        values=_whole([row.values for row in rows]) if needs.values else None,
    )


def _difficulty(rows: Sequence[Row]) -> Tensor | None:
    pairs = [pair for row in rows for pair in zip(row.difficulty, row.rewards, strict=bool(row.difficulty))]
    values = [max(reward or 0.0, 0.0) if value is None else value for value, reward in pairs]
    return torch.tensor(values, dtype=torch.float64) if values else None


def _whole(parts: Sequence[Tensor | None]) -> Tensor | None:
    """Put end to end, float64."""
    given = [part.double() for part in parts if part is not None]
    return torch.cat(given) if given else None
