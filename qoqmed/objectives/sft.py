"""Supervised fine-tuning: the negative log-likelihood of each case's gold response."""

from __future__ import annotations

from collections.abc import Sequence

from qoqmed.contracts import Actor
from qoqmed.losses import AGGREGATES, Loss, TokenTable, aggregate, token_mean, whole
from qoqmed.registry.arguments import check, one_of, within
from qoqmed.types import Case, Group, Needs


class SFT:
    """The gold answer is a group's only response.

    aggregate: "token" (mean over all tokens of the minibatch), "sequence" or "dr_grpo". epochs: passes over a step's
    cases. minibatch: cases per update, 0 for all of a step's.
    """

    needs = Needs(gold=True)

    def __init__(self, aggregate: str = "token", epochs: int = 1, minibatch: int = 0) -> None:
        check(
            one_of("aggregate", aggregate, AGGREGATES),
            within("epochs", epochs, low=1),
            within("minibatch", minibatch, low=0),
        )
        self.aggregate, self.epochs, self.minibatch = aggregate, epochs, minibatch

    def collect(self, cases: Sequence[Case], actor: Actor) -> list[Group]:
        prompts = actor.prompts(cases)
        return [
            Group(case, prompt, (actor.gold(case, prompt),), trainable=(True,))
            for case, prompt in zip(cases, prompts, strict=True)
        ]

    def loss(self, tokens: TokenTable) -> Loss:
        value = aggregate(-tokens.log_probs, tokens, self.aggregate)
        sums = {"loss": whole(value, tokens)}
        if tokens.entropies is not None:
            sums["entropy"] = token_mean(tokens.entropies)
        return Loss(value, sums)
