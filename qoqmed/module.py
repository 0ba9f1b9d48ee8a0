"""The LightningModule that hosts the trained policy and the frozen reference, and what one pack costs and teaches.

`lightning.Trainer.fit` is not supported: rollouts, rewards and advantages come between batches (docs/architecture.md).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qoqmed.contracts import Objective
from qoqmed.losses import Loss, TokenTable
from qoqmed.media.torchvision_ops import repair
from qoqmed.packing import Pack
from qoqmed.policy import lora
from qoqmed.policy.policy import ClinicalPolicy, TokenScores

repair()  # before lightning is imported: a torchvision built for another torch breaks that import

from lightning.pytorch import LightningModule  # noqa: E402


@dataclass(frozen=True)
class Scores:
    """Of one pack's response tokens, [N] float32 each, or None where nothing needs them.

    old, reference: no-grad log-probs. behaviour: those of the engine that sampled them. values: of the value head
    before the update. advantages, returns: what the estimator gave.
    """

    old: Tensor | None
    reference: Tensor | None
    behaviour: Tensor | None = None
    values: Tensor | None = None
    advantages: Tensor | None = None
    returns: Tensor | None = None


@dataclass(frozen=True)
class Totals:
    """Trainable responses and their tokens in a whole minibatch, over all micro-batches and ranks."""

    sequences: float
    tokens: float


@dataclass(frozen=True)
class Micro:
    """What one micro-batch gives: its loss, its detached log-probs [N] and (for statistics) its entropies."""

    loss: Loss
    log_probs: Tensor
    entropies: Tensor | None


class AdapterOff:
    """The reference of a policy with LoRA: its base, and what else trains as it was when this was made. The rest is not
    copied."""

    def __init__(self, policy: ClinicalPolicy) -> None:
        self.policy = policy
        self.kept = {
            name: parameter.detach().clone()
            for name, parameter in policy.named_parameters()
            if parameter.requires_grad and lora.MARK not in name
        }

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.kept)

    @torch.no_grad()
    def __call__(self, pack: Pack, temperature: float) -> TokenScores:
        """See `ClinicalPolicy.forward`. The policy is as before afterwards."""
        now = dict(self.policy.named_parameters())
        trained = {name: now[name].detach().clone() for name in self.kept}
        with lora.off(self.policy):
            _put(now, self.kept)
            try:
                scores: TokenScores = self.policy(pack, temperature)
            finally:
                _put(now, trained)
        return scores


def _put(parameters: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        parameters[name].copy_(value)


class ClinicalPolicyModule(LightningModule):
    """Hosts the policy, and the reference where a stage needs one."""

    def __init__(self, policy: ClinicalPolicy) -> None:
        super().__init__()
        self.policy = policy
        self.reference: ClinicalPolicy | AdapterOff | None = None

    def train(self, mode: bool = True) -> ClinicalPolicyModule:
        """Training mode for the policy; the reference stays in evaluation mode."""
        super().train(mode)
        if isinstance(self.reference, ClinicalPolicy):
            self.reference.eval()
        return self

    @torch.no_grad()
    def freeze_reference(self) -> None:
        """Keep the policy as it is now as the reference. One that is there, sharded or not, takes the new weights.

        With LoRA the reference is the policy's base, its adapters off.
        """
        if self.adapted:
            self.reference = AdapterOff(self.policy)
            return
        if self.reference is None:
            self.reference = copy.deepcopy(self.policy).requires_grad_(False).eval()
            return
        now = self.policy.state_dict()
        for name, tensor in self.reference.state_dict().items():
            tensor.copy_(now[name])

    def drop_reference(self) -> None:
        self.reference = None

    @property
    def adapted(self) -> bool:
        """Whether the policy has LoRA adapters."""
        return bool(lora.layers(self.policy))

    def forward(
        self, pack: Pack, temperature: float = 1.0, entropy: bool = False, entropy_grad: bool = False
    ) -> TokenScores:
        """Log-probs and entropies of the pack's response tokens (see `ClinicalPolicy.forward`)."""
        scores: TokenScores = self.policy(pack, temperature, entropy, entropy_grad)
        return scores

    @torch.no_grad()
    def score(self, packs: Sequence[Pack], temperature: float, *, old: bool, reference: bool) -> list[Scores]:
        """Only what is needed: log-probs of the policy as it is (`old`, with its values) and of the reference."""
        out = []
        for pack in packs:
            mine = self(pack, temperature) if old else None
            theirs = None
            if reference:
                assert self.reference is not None
                theirs = self.reference(pack, temperature).log_probs
            out.append(Scores(mine and mine.log_probs, theirs, values=mine and mine.values))
        return out

    def training_step(
        self,
        pack: Pack,
        scores: Scores,
        objective: Objective,
        totals: Totals,
        temperature: float,
        max_length: int,
    ) -> Micro:
        """One micro-batch."""
        entropy_grad = getattr(objective, "entropy_weight", 0.0) != 0
        out = self(pack, temperature, entropy=scores.advantages is not None, entropy_grad=entropy_grad)
        device = out.log_probs.device
        response, keep = pack.response.to(device), pack.trainable.to(device)
        chosen = keep[response]  # [N]
        renumbered = (keep.long().cumsum(0) - 1)[response][chosen]

        def pick(values: Tensor | None) -> Tensor | None:
            return None if values is None else values.to(device)[chosen]

        table = TokenTable(
            log_probs=out.log_probs[chosen],
            response=renumbered,
            lengths=pack.lengths.to(device)[keep],
            sequences_total=totals.sequences,
            tokens_total=totals.tokens,
            max_length=max_length,
            entropies=pick(out.entropies),
            old_log_probs=pick(scores.old),
            reference_log_probs=pick(scores.reference),
            advantages=pick(scores.advantages),
            behaviour_log_probs=pick(scores.behaviour),
            values=pick(out.values),
            old_values=pick(scores.values),
            returns=pick(scores.returns),
            group=torch.tensor([group for group, _ in pack.members], device=device)[keep],
        )
        entropies = None if out.entropies is None else out.entropies.detach()
        return Micro(objective.loss(table), out.log_probs.detach(), entropies)

    def choose(self, parts: Sequence[str], values: bool = False) -> None:
        """Only the named parts train, with `values` the value head too; the rest is frozen, without optimizer state."""
        self.policy.requires_grad_(False)
        if values and self.policy.value_head is not None:
            self.policy.value_head.requires_grad_(True)
        for part in parts:
            for parameter in self.policy.part(part):
                parameter.requires_grad_(True)

    def trained(self) -> dict[str, torch.nn.Parameter]:
        """Parameters that train, by name."""
        return {name: p for name, p in self.policy.named_parameters() if p.requires_grad}

    @property
    def trained_dtype(self) -> torch.dtype:
        """Of the first parameter that trains."""
        return next(iter(self.trained().values())).dtype

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """(name, whole tensor) of the policy's model, one at a time, adapters added; a collective where sharded."""
        return lora.plain_weights(self.policy)
