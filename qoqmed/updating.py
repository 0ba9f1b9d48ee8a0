"""Step 7 of the loop: epochs x minibatches over packs -> loss -> backward -> optimizer step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from qoqmed.config.schema import OptimizerConfig
from qoqmed.contracts import Objective
from qoqmed.estimating import Member
from qoqmed.module import ClinicalPolicyModule, Micro, Scores, Totals
from qoqmed.packing import Pack, pack
from qoqmed.parallel import add_up, full, gather
from qoqmed.types import Group

if TYPE_CHECKING:
    from lightning.fabric import Fabric


@dataclass(frozen=True)
class Scored:
    """Per rollout of this rank: log-probs [tokens] of the policy before the update and of the reference, or nothing."""

    old: Mapping[Member, Tensor]
    reference: Mapping[Member, Tensor]


@dataclass(frozen=True)
class Updated:
    """means: over all tokens and ranks. mismatch: |log-prob of the engine - of the trainer| before any update."""

    means: Mapping[str, float]
    grad_norm: float
    updates: int
    skipped: int
    mismatch_mean: float | None
    mismatch_max: float | None


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
        sums, norms, skipped, gaps = dict[str, float](), list[float](), 0, list[Tensor]()
        for epoch in range(self.objective.epochs):
            for number in range(count):
                members = range(min(number * size, len(groups)), min((number + 1) * size, len(groups)))
                micros, norm, gap = self._minibatch(list(members), groups, scored, advantages)
                for micro in micros:
                    for name, (value, n) in micro.loss.sums.items():
                        sums[f"sum/{name}"] = sums.get(f"sum/{name}", 0.0) + float(value)
                        sums[f"n/{name}"] = sums.get(f"n/{name}", 0.0) + float(n)
                if epoch == 0 and number == 0:
                    gaps = gap
                skipped += norm is None
                norms += [] if norm is None else [norm]
        total = add_up(sums)
        names = [name.removeprefix("sum/") for name in total if name.startswith("sum/")]
        means = {name: total[f"sum/{name}"] / total[f"n/{name}"] for name in names if total[f"n/{name}"]}
        gap_all = [value for part in gather(torch.cat(gaps).tolist() if gaps else []) for value in part]
        return Updated(
            means=means,
            grad_norm=sum(norms) / len(norms) if norms else 0.0,
            updates=len(norms),
            skipped=skipped,
            mismatch_mean=sum(gap_all) / len(gap_all) if gap_all else None,
            mismatch_max=max(gap_all, default=None),
        )

    def _minibatch(
        self,
        members: list[int],
        groups: Sequence[Group],
        scored: Scored,
        advantages: Sequence[Sequence[float]] | None,
    ) -> tuple[list[Micro], float | None, list[Tensor]]:
        batch = [groups[g] for g in members]
        totals = self._totals(batch)
        packs = pack(batch, self.budget)
        forwards = level(packs)
        if totals.sequences == 0:
            return [], None, []
        micros, gaps = list[Micro](), list[Tensor]()
        for number, item in enumerate(forwards):
            real = number < len(packs)
            places = [(members[g], i) for g, i in item.members] if real else []
            weights = None if advantages is None else torch.zeros(len(item.members))
            if advantages is not None and real:
                weights = torch.tensor([advantages[g][i] for g, i in places])
            micro = self.module.training_step(
                item,
                Scores(_gathered(scored.old, places), _gathered(scored.reference, places)),
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
                micros.append(micro)
                gaps += _gap(micro, groups, places)
        return micros, self._step(), gaps

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


def _gap(micro: Micro, groups: Sequence[Group], places: Sequence[Member]) -> list[Tensor]:
    """|behaviour log-prob - trainer's| of every token; none for gold answers, which nobody sampled."""
    behaviour = [value for g, i in places for value in groups[g].rollouts[i].log_probs]
    if not behaviour:
        return []
    return [(micro.log_probs.cpu() - torch.tensor(behaviour)).abs()]
