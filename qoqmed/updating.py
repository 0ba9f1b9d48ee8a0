"""Step 7 of the loop: epochs x minibatches over packs -> loss -> backward -> optimizer step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from qoqmed.config.schema import OptimizerConfig, RolloutConfig
from qoqmed.contracts import Objective, Rollouts
from qoqmed.estimating import Known, Member, penalties, sequence_kl
from qoqmed.losses import Loss
from qoqmed.module import ClinicalPolicyModule, Scores, Totals
from qoqmed.packing import Pack, pack
from qoqmed.parallel import add_up, full, gather
from qoqmed.tally import Tally
from qoqmed.types import Group

if TYPE_CHECKING:
    from lightning.fabric import Fabric

    from qoqmed.build import Stage

VALUE_LR = "value_lr"  # in a group of parameters: its learning rate as a multiple of the others'


@dataclass(frozen=True)
class Scored:
    """Per rollout of this rank, [tokens] each, or nothing: log-probs of the policy before the update and of the
    reference, values before the update."""

    old: Mapping[Member, Tensor]
    reference: Mapping[Member, Tensor]
    values: Mapping[Member, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Updated:
    """numbers: means and extremes over all tokens and ranks, by name. updates: steps of the optimizer; skipped: those
    left out because the loss or its gradient was not finite; a minibatch without a trained response is neither."""

    numbers: Mapping[str, float]
    grad_norm: float
    updates: int
    skipped: int


@dataclass(frozen=True)
class Targets:
    """What the update learns from, per rollout of this rank: advantages and returns of tokens, [tokens] each."""

    advantages: Mapping[Member, Tensor]
    returns: Mapping[Member, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Broken:
    """A micro-batch of an update that was left out."""

    pack: Pack
    members: Sequence[Member]
    scores: Scores
    log_probs: Tensor
    loss: Tensor


@dataclass(frozen=True)
class Minibatch:
    """norm: of the gradient; None where nothing was updated. log_probs: by rollout, of before the update."""

    losses: Sequence[Loss]
    norm: float | None
    log_probs: Mapping[Member, Tensor]
    empty: bool = False


def build_optimizer(module: ClinicalPolicyModule, config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW; weight decay on matrices only, not on biases, norms and the value head, which has its own `value_lr`."""
    head = module.policy.value_head
    values = [] if head is None else [p for p in head.parameters() if p.requires_grad]
    held = {id(p) for p in values}
    trained = [p for p in module.trained().values() if id(p) not in held]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        {"params": values, "weight_decay": 0.0, VALUE_LR: (config.value_lr or config.lr) / config.lr},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Of every group of parameters; the value head's is in its own proportion to it."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get(VALUE_LR, 1.0)


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

    Where the ratio moves within a step, where sampling was not from the whole distribution, and where a KL in the
    advantages would carry the difference of an engine that is not exact. Values come with them.
    """
    several = stage.objective.epochs > 1 or 0 < stage.objective.minibatch < stage.prompts
    cut = rollout.top_p < 1.0 or rollout.top_k > 0
    by_kl = stage.needs.kl or reward_kl_weight(stage) > 0
    biased = by_kl and not getattr(engine, "exact_log_probs", False)
    asked = stage.needs.rollouts and stage.advantage is not None
    return asked and (several or cut or biased or stage.needs.values)


def reward_kl_weight(stage: Stage) -> float:
    """What the stage's objective takes from rewards for the KL of each token; 0 where it does not."""
    return float(getattr(stage.objective, "reward_kl_weight", 0.0))


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
    mine, theirs, values = dict[Member, Tensor](), dict[Member, Tensor](), dict[Member, Tensor]()
    for item, scores in zip(packs, module.score(filled, temperature, old=old, reference=reference), strict=False):
        mine |= _by_member(item, scores.old)
        theirs |= _by_member(item, scores.reference)
        values |= _by_member(item, scores.values)
    return Scored(mine, theirs, values)


def known(stage: Stage, groups: Sequence[Group], scored: Scored) -> Known:
    """What the stage's estimator and objective ask of the rollouts beside their rewards."""
    pair, weight = (scored.old, scored.reference), reward_kl_weight(stage)
    by_kl = stage.needs.kl and scored.reference
    return Known(
        sequence_kl(groups, *pair) if by_kl else None,
        penalties(groups, *pair, weight) if weight else {},
        scored.values if stage.needs.values else {},
    )


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
    on_broken: Callable[[Sequence[Broken]], None] = lambda broken: None

    def __call__(
        self, groups: Sequence[Group], scored: Scored, targets: Targets | None, orders: Sequence[int] | None = None
    ) -> Updated:
        """Minibatches are cut from the groups of all ranks in their order, as their denominators are of all ranks.

        orders: the groups' places in the step, in which they are sorted; not given, they are those of one process.
        """
        mine = range(len(groups)) if orders is None else orders
        everyone = sorted(order for part in gather(list(mine)) for order in part)
        size = self.objective.minibatch or max(len(everyone), 1)
        number_of = {order: place // size for place, order in enumerate(everyone)}
        count = math.ceil(len(everyone) / size)
        tally, norms, skipped, before = Tally(), list[float](), 0, scored.old
        for epoch in range(self.objective.epochs):
            for number in range(count):
                members = [g for g, order in enumerate(mine) if number_of[order] == number]
                done = self._minibatch(members, groups, scored, targets)
                for loss in done.losses:
                    tally.add(loss)
                if epoch == 0 and number == 0:
                    before = before or done.log_probs
                skipped += done.norm is None and not done.empty
                norms += [] if done.norm is None else [done.norm]
        tally.difference(groups, before)
        return Updated(
            numbers=tally.all_ranks(),
            grad_norm=sum(norms) / len(norms) if norms else 0.0,
            updates=len(norms),
            skipped=skipped,
        )

    def _minibatch(
        self, members: list[int], groups: Sequence[Group], scored: Scored, targets: Targets | None
    ) -> Minibatch:
        members = [g for g in members if any(groups[g].trained)]
        batch = [groups[g] for g in members]
        totals = self._totals(batch)
        packs = pack(batch, self.budget, whole=getattr(self.objective, "whole_groups", False))
        forwards = level(packs)
        if totals.sequences == 0:
            return Minibatch([], None, {}, empty=True)
        losses, log_probs, done = list[Loss](), dict[Member, Tensor](), list[Broken]()
        for number, item in enumerate(forwards):
            real = number < len(packs)
            places = [(members[g], i) for g, i in item.members] if real else []
            scores = _scores(groups, scored, targets, places)
            if targets is not None and not real:
                scores = replace(scores, advantages=torch.zeros(len(item.targets)))
            micro = self.module.training_step(item, scores, self.objective, totals, self.temperature, self.max_length)
            self._sync(number == len(forwards) - 1)
            scale = float(self.fabric.world_size) if real else 0.0  # gradients are averaged over ranks
            self.fabric.backward(micro.loss.value * scale)
            if real:
                losses.append(micro.loss)
                log_probs |= zip(places, torch.split(micro.log_probs, item.lengths.tolist()), strict=True)
                done.append(Broken(item, places, scores, micro.log_probs, micro.loss.value.detach()))
        norm = self._step()
        if norm is None:
            bad = [one for one in done if not one.loss.isfinite()]
            self.on_broken(bad if any(gather(bool(bad))) else done)
        return Minibatch(losses, norm, log_probs)

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


def _scores(groups: Sequence[Group], scored: Scored, targets: Targets | None, places: Sequence[Member]) -> Scores:
    """What is known of a pack's tokens."""
    return Scores(
        _gathered(scored.old, places),
        _gathered(scored.reference, places),
        _behaviour(groups, places),
        _gathered(scored.values, places),
        None if targets is None else _gathered(targets.advantages, places),
        None if targets is None else _gathered(targets.returns, places),
    )


def _behaviour(groups: Sequence[Group], places: Sequence[Member]) -> Tensor | None:
    """The engine's log-probs of every token; none for gold answers, which nobody sampled."""
    values = [value for g, i in places for value in groups[g].rollouts[i].log_probs]
    return torch.tensor(values) if values else None
