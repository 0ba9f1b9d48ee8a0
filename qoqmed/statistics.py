"""The numbers of one step: the names that TRL users know, DRPO's diagnostics, and the same per domain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from qoqmed.advantages.table import Advantages
from qoqmed.alarms import lost
from qoqmed.estimating import Estimate
from qoqmed.parallel import gather
from qoqmed.types import DomainStep, Group, Verdict
from qoqmed.updating import Updated


@dataclass(frozen=True)
class GroupFacts:
    """What the statistics need of one group, light enough to be sent between ranks."""

    domain: str
    rewards: tuple[float | None, ...]
    values: Mapping[str, tuple[float, ...]]  # reward name -> its applicable values
    pseudo: Mapping[str, tuple[float, ...]]  # of these, those against what no person drew (`Verdict.source`)
    lengths: tuple[int, ...]
    cut: int  # responses that hit the length limit
    flawed: int  # responses with a flaw in their reading
    invalid: int  # responses whose reward an invalid verdict took
    trained: int  # responses that the loss is over


def facts(groups: Sequence[Group]) -> list[GroupFacts]:
    """Facts of all ranks' groups."""
    mine = []
    for group in groups:
        names = list(group.verdicts[0]) if group.verdicts else []
        columns = {name: [row[name] for row in group.verdicts] for name in names}
        mine.append(
            GroupFacts(
                group.case.domain,
                group.rewards,
                {name: _values(column) for name, column in columns.items()},
                {name: _values([one for one in column if one.source]) for name, column in columns.items()},
                tuple(len(rollout.token_ids) for rollout in group.rollouts),
                sum(rollout.finish_reason == "length" for rollout in group.rollouts),
                sum(bool(reading.flaws) for reading in group.readings),
                len(lost(group)),
                sum(group.trained),
            )
        )
    return [fact for part in gather(mine) for fact in part]


def metrics(
    everyone: Sequence[GroupFacts], updated: Updated, estimate: Estimate | None, lr: float, seconds: Mapping[str, float]
) -> dict[str, float]:
    """One step's scalars."""
    out = dict(updated.numbers)
    out |= {
        "grad_norm": updated.grad_norm,
        "lr": lr,
        "updates": float(updated.updates),
        "updates_skipped": float(updated.skipped),
    }
    lengths = [length for fact in everyone for length in fact.lengths]
    out["completions/mean_length"] = _mean(lengths)
    if any(fact.rewards for fact in everyone):
        out |= _reward_metrics(everyone)
        out["completions/clipped_ratio"] = sum(fact.cut for fact in everyone) / max(len(lengths), 1)
        out["completions/flawed_ratio"] = sum(fact.flawed for fact in everyone) / max(len(lengths), 1)
    if estimate is not None:
        out |= {f"advantage/{name}": value for name, value in estimate.all_ranks.diagnostics.scalars.items()}
        if estimate.all_ranks.diagnostics.kl_threshold is not None:
            out["advantage/kl_threshold"] = estimate.all_ranks.diagnostics.kl_threshold
    out |= {f"time/{phase}": value for phase, value in seconds.items()}
    out["tokens_per_second"] = sum(lengths) / max(sum(seconds.values()), 1e-9)
    return out


def _reward_metrics(everyone: Sequence[GroupFacts]) -> dict[str, float]:
    flat = [reward for fact in everyone for reward in fact.rewards if reward is not None]
    groups = [[reward for reward in fact.rewards if reward is not None] for fact in everyone]
    spread = [torch.tensor(group).std().item() for group in groups if len(group) > 1]
    out = {
        "reward": _mean(flat),
        "reward_std": _mean(spread),
        "frac_reward_zero_std": _mean([float(max(group) == min(group)) for group in groups if group]),
        "rollouts/invalid": float(sum(fact.invalid for fact in everyone)),
        "rollouts/not_applicable": float(sum(fact.rewards.count(None) - fact.invalid for fact in everyone)),
        "rollouts/trained": float(sum(fact.trained for fact in everyone)),
    }
    for name in {name for fact in everyone for name in fact.values}:
        values = [value for fact in everyone for value in fact.values.get(name, ())]
        if values:
            out[f"rewards/{name}/mean"] = _mean(values)
            out[f"rewards/{name}/std"] = torch.tensor(values).std(correction=0).item()
        pseudo = [value for fact in everyone for value in fact.pseudo.get(name, ())]
        if pseudo:
            out[f"rewards/{name}/pseudo_masks"] = _mean(pseudo)
            out[f"rewards/{name}/pseudo_masks_share"] = len(pseudo) / len(values)
    return out


def _values(verdicts: Sequence[Verdict]) -> tuple[float, ...]:
    return tuple(verdict.value for verdict in verdicts if verdict.value is not None)


def domain_steps(everyone: Sequence[GroupFacts], advantages: Advantages | None) -> dict[str, DomainStep]:
    """Per domain, by name: from the estimator's diagnostics where it has them, else counts and mean rewards."""
    out = {}
    known = advantages.diagnostics.domains if advantages else {}
    for domain in sorted({fact.domain for fact in everyone}):
        mine = [fact for fact in everyone if fact.domain == domain]
        rewards = [reward for fact in mine for reward in fact.rewards if reward is not None]
        stats = known.get(domain)
        if stats is None:
            out[domain] = DomainStep(len(mine), _mean(rewards))
        else:
            clusters = len(stats.clusters) or None
            out[domain] = DomainStep(stats.n, stats.mean_reward, stats.temperature, clusters, stats.share)
    return out


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
