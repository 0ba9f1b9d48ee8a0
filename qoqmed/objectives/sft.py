"""Supervised fine-tuning: the negative log-likelihood of each case's gold response.

With `focal` a token of probability p has the focal loss (Lin et al. 2017, eq. 4), -(1 - p)^focal log p, whose weight
has a gradient, too. Their balancing factor alpha is left out: tokens have no class to balance.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qoqmed.contracts import Actor
from qoqmed.losses import AGGREGATES, Loss, TokenTable, aggregate, token_mean, whole
from qoqmed.registry.arguments import check, one_of, within
from qoqmed.types import Case, Group, Needs


class SFT:
    """The gold answer is a group's only response.

    aggregate: "token" (mean over all tokens of the minibatch), "sequence" or "dr_grpo". epochs: passes over a step's
    cases. minibatch: cases per update, 0 for all of a step's. focal: the exponent, 0 for the plain likelihood; the
    larger it is, the less the tokens count that the policy is sure of already.
    """

    needs = Needs(gold=True)

    def __init__(self, aggregate: str = "token", epochs: int = 1, minibatch: int = 0, focal: float = 0.0) -> None:
        check(
            one_of("aggregate", aggregate, AGGREGATES),
            within("epochs", epochs, low=1),
            within("minibatch", minibatch, low=0),
            within("focal", focal, low=0),
        )
        self.focal = focal
        self.aggregate, self.epochs, self.minibatch = aggregate, epochs, minibatch

    def collect(self, cases: Sequence[Case], actor: Actor) -> list[Group]:
        prompts = actor.prompts(cases)
        return [
            Group(case, prompt, (actor.gold(case, prompt),), trainable=(True,))
            for case, prompt in zip(cases, prompts, strict=True)
        ]

    def loss(self, tokens: TokenTable) -> Loss:
        value = aggregate(focal_loss(tokens.log_probs, self.focal), tokens, self.aggregate)
        sums = {"loss": whole(value, tokens)}
        if tokens.entropies is not None:
            sums["entropy"] = token_mean(tokens.entropies)
        return Loss(value, sums)


def focal_loss(log_probs: Tensor, gamma: float) -> Tensor:
    """-(1 - p)^gamma log p of each token, log_probs [N] nats -> [N]; differentiable, also where p rounds to 1."""
    if gamma == 0:
        return -log_probs
    rest = -torch.expm1(log_probs)
    return -rest.clamp(min=torch.finfo(rest.dtype).tiny).pow(gamma) * log_probs
