"""Step 7 of the loop: epochs x minibatches over packs -> loss -> backward -> optimizer step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from qoqmed.config.schema import OptimizerConfig, RolloutConfig
from qoqmed.contracts import Objective, Rollouts
from qoqmed.estimating import Member
from qoqmed.losses import Loss
from qoqmed.module import ClinicalPolicyModule, Scores, Totals
from qoqmed.packing import Pack, pack
from qoqmed.parallel import add_up, full, gather
from qoqmed.tally import Tally
from qoqmed.types import Group

if TYPE_CHECKING:
    from lightning.fabric import Fabric

    from qoqmed.build import Stage


@dataclass(frozen=True)
class Scored:
    """Per rollout of this rank: log-probs [tokens] of the policy before the update and of the reference, or nothing."""

    old: Mapping[Member, Tensor]
    reference: Mapping[Member, Tensor]


@dataclass(frozen=True)
class Updated:
    """numbers: means and extremes over all tokens and ranks, by name."""

    numbers: Mapping[str, float]
    grad_norm: float
    updates: int
    skipped: int


def build_optimizer(module: ClinicalPolicyModule, config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW; weight decay on matrices only, not on biases and norms."""
    trained = list(module.trained().values())
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps
    )


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """lr of step 0, 1, .. of a stage: linear warm-up, then constant, cosine or linear down to floor * lr."""
    warmup = config.warmup * steps if config.warmup < 1 else config.warmup
    if step < warmup:
        return config.lr * (step + 1) / (math.floor(warmup) + 1)
    if config.schedule == "constant":
        return config.lr
    done = (step - warmup) / max(1.0, steps - warmup)
    left = 1 - done if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return config.lr * (config.floor + (1 - config.floor) * left)


def needs_old(stage: Stage, rollout: RolloutConfig, engine: Rollouts) -> bool:
    """Whether the engine's log-probs can't stand in for those of the policy before the update (decision 2).

    Where the ratio moves within a step, where sampling was not from the whole distribution, and where a sequence KL
    would carry the difference of an engine that is not exact.
    """
    several = stage.objective.epochs > 1 or 0 < stage.objective.minibatch < stage.prompts
    cut = rollout.top_p < 1.0 or rollout.top_k > 0
    biased = stage.needs.kl and not getattr(engine, "exact_log_probs", False)
    return stage.needs.rollouts and (several or cut or biased)


def score(
    module: ClinicalPolicyModule,
    groups: Sequence[Group],
    budget: int,
    temperature: float,
    *,
    old: bool,
    reference: bool,
) -> Scored:
    """Step 5: only the log-probs that are needed; every rank runs the same number of forwards."""
    if not (old or reference):
        return Scored({}, {})
    packs = pack(groups, budget)
    filled = level(packs)
    mine, theirs = dict[Member, Tensor](), dict[Member, Tensor]()
    for item, scores in zip(packs, module.score(filled, temperature, old=old, reference=reference), strict=False):
        mine |= _by_member(item, scores.old)
        theirs |= _by_member(item, scores.reference)
    return Scored(mine, theirs)


def level(packs: list[Pack]) -> list[Pack]:
    """This rank's packs, and after them as many idle ones as bring all ranks to the same number of forwards."""
    counts = gather(len(packs))
    if min(counts) == max(counts):
        return packs
    idle = packs[-1:]
    if min(counts) == 0:  # a rank without a case of its own borrows another's
        idle = next(part for part in gather(idle) if part)
    return packs + idle * (max(counts) - len(packs))


def _by_member(item: Pack, values: Tensor | None) -> dict[Member, Tensor]:
    if values is None:
        return {}
    parts = torch.split(values, item.lengths.tolist())
    return dict(zip(item.members, parts, strict=True))


@dataclass(frozen=True)
class Updater:
    """Everything an update needs beside the step's own values."""

    fabric: Fabric
    module: ClinicalPolicyModule
    optimizer: Any  # Fabric's wrapper of the optimizer
    objective: Objective
    budget: int
    temperature: float
    max_length: int
    max_grad_norm: float

    def __call__(
        self, groups: Sequence[Group], scored: Scored, advantages: Sequence[Sequence[float]] | None
    ) -> Updated:
        """Minibatches are cut from the groups in their order; denominators are those of all ranks."""
        world = self.fabric.world_size
        size = math.ceil(self.objective.minibatch / world) if self.objective.minibatch else len(groups)
        count = max(gather(math.ceil(len(groups) / max(size, 1))))
        tally, norms, skipped, before = Tally(), list[float](), 0, scored.old
        for epoch in range(self.objective.epochs):
            for number in range(count):
                members = range(min(number * size, len(groups)), min((number + 1) * size, len(groups)))
                losses, norm, log_probs = self._minibatch(list(members), groups, scored, advantages)
                for loss in losses:
                    tally.add(loss)
                if epoch == 0 and number == 0:
                    before = before or log_probs
                skipped += norm is None
                norms += [] if norm is None else [norm]
        tally.difference(groups, before)
        return Updated(
            numbers=tally.all_ranks(),
            grad_norm=sum(norms) / len(norms) if norms else 0.0,
            updates=len(norms),
            skipped=skipped,
        )

    def _minibatch(
        self,
        members: list[int],
        groups: Sequence[Group],
        scored: Scored,
        advantages: Sequence[Sequence[float]] | None,
    ) -> tuple[list[Loss], float | None, dict[Member, Tensor]]:
        """The micro-batches' losses, the gradient's norm where it was finite, log-probs of before the update."""
        batch = [groups[g] for g in members]
        totals = self._totals(batch)
        packs = pack(batch, self.budget)
        forwards = level(packs)
        if totals.sequences == 0:
            return [], None, {}
        losses, log_probs = list[Loss](), dict[Member, Tensor]()
        for number, item in enumerate(forwards):
            real = number < len(packs)
            places = [(members[g], i) for g, i in item.members] if real else []
            weights = None if advantages is None else torch.zeros(len(item.members))
            if advantages is not None and real:
                weights = torch.tensor([advantages[g][i] for g, i in places])
            micro = self.module.training_step(
                item,
                Scores(_gathered(scored.old, places), _gathered(scored.reference, places), _behaviour(groups, places)),
                weights,
                self.objective,
                totals,
                self.temperature,
                self.max_length,
            )
            self._sync(number == len(forwards) - 1)
            scale = float(self.fabric.world_size) if real else 0.0  # gradients are averaged over ranks
            self.fabric.backward(micro.loss.value * scale)
            if real:
                losses.append(micro.loss)
                log_probs |= zip(places, torch.split(micro.log_probs, item.lengths.tolist()), strict=True)
        return losses, self._step(), log_probs

    def _step(self) -> float | None:
        """Clip and step; gradients that are not finite leave the weights as they are (None)."""
        parameters = list(self.module.trained().values())
        for parameter in parameters:  # an encoder that no case of this minibatch has: as in FSDP, its gradient is 0
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        norm = full(torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm))
        finite = bool(torch.isfinite(norm))
        if finite:
            self.optimizer.step()
        self.optimizer.zero_grad()
        return float(norm) if finite else None

    def _sync(self, last: bool) -> None:
        if isinstance(self.module.policy, FSDPModule):
            self.module.policy.set_requires_gradient_sync(last)

    def _totals(self, batch: Sequence[Group]) -> Totals:
        kept = [
            len(rollout.token_ids)
            for group in batch
            for rollout, trainable in zip(group.rollouts, group.trained, strict=True)
            if trainable
        ]
        sums = add_up({"sequences": float(len(kept)), "tokens": float(sum(kept))})
        return Totals(sums["sequences"], sums["tokens"])


def _gathered(values: Mapping[Member, Tensor], places: Sequence[Member]) -> Tensor | None:
    return torch.cat([values[place] for place in places]) if values and places else None


def _behaviour(groups: Sequence[Group], places: Sequence[Member]) -> Tensor | None:
    """The engine's log-probs of every token; none for gold answers, which nobody sampled."""
    values = [value for g, i in places for value in groups[g].rollouts[i].log_probs]
    return torch.tensor(values) if values else None
