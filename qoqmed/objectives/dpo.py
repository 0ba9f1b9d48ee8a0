"""Direct preference optimisation (Rafailov et al. 2023, eq. 7; XMedGPT, eq. 9).

    L = -mean over pairs of log sigmoid(m),   m = beta (log pi(y_w) / pi_ref(y_w) - log pi(y_l) / pi_ref(y_l))

y_w, y_l: the preferred response and the other one; log pi(y): the sum over the tokens of y. XMedGPT samples K responses
a case, scores them and pairs a higher one with a lower one: here the best with the worst by the recipe's rewards.

Deviations, each by an argument: a least difference of the rewards of a pair (margin), smoothed labels (conservative
DPO, Mitchell 2023: -(1 - s) log sigmoid(m) - s log sigmoid(-m)). Two more where pairs are sampled: they come from the
policy as it trains, not once from the policy before it; and log pi is taken at the temperature of the rollouts, as
everywhere that responses are sampled. Pairs of a file are taken at temperature 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from qoqmed.contracts import Actor
from qoqmed.losses import Loss, TokenTable, whole
from qoqmed.packing import Prompt
from qoqmed.registry.arguments import check, one_of, within
from qoqmed.types import Case, Group, Needs

PAIRS = ("sample", "file")
T = TypeVar("T")


class DPO:
    """A group is one pair: the chosen response, then the rejected one. Other samples are not kept.

    beta: how closely the policy is held to the reference, above 0. pairs: "sample" (the best and the worst by reward of
    the responses to a case), or "file" (the fields `chosen` and `rejected` of its row). margin: least difference of the
    rewards of a sampled pair; pairs below it, ties, and those with fewer than two valid rewards are not trained on.
    label_smoothing: share of pairs taken to be labelled wrongly, at most 0.5. epochs: passes over a step's pairs.
    minibatch: pairs per update, those not trained on among them; 0 for all of a step's.
    """

    advantages = False

    def __init__(
        self,
        beta: float = 0.1,
        pairs: str = "sample",
        margin: float = 0.0,
        label_smoothing: float = 0.0,
        epochs: int = 1,
        minibatch: int = 0,
    ) -> None:
        check(
            within("beta", beta, above=0),
            one_of("pairs", pairs, PAIRS),
            within("margin", margin, low=0),
            within("label_smoothing", label_smoothing, low=0, high=0.5),
            within("epochs", epochs, low=1),
            within("minibatch", minibatch, low=0),
        )
        self.beta, self.pairs, self.margin, self.label_smoothing = beta, pairs, margin, label_smoothing
        self.epochs, self.minibatch = epochs, minibatch
        self.whole_groups = True
        sampled = pairs == "sample"
        self.needs = Needs(reference=True, rollouts=sampled, group=2 if sampled else 1, pair=not sampled)

    def collect(self, cases: Sequence[Case], actor: Actor) -> list[Group]:
        prompts = actor.prompts(cases)
        if self.pairs == "file":
            return [_given(case, prompt, actor) for case, prompt in zip(cases, prompts, strict=True)]
        rollouts = actor.generate(cases, prompts)
        groups = [
            Group(case, prompt, tuple(sampled)) for case, prompt, sampled in zip(cases, prompts, rollouts, strict=True)
        ]
        return [self._extremes(group) for group in actor.judge(groups)]

    def _extremes(self, group: Group) -> Group:
        """The best and the worst valid rollout, of equals the first and the last; else two that are not trained on."""
        scored = [(i, reward) for i, reward in enumerate(group.rewards) if reward is not None]
        ranked = sorted(scored, key=lambda pair: -pair[1])
        if len(ranked) < 2:
            return _pair(group, (0, 1), False)
        (best, high), (worst, low) = ranked[0], ranked[-1]
        return _pair(group, (best, worst), high > low and high - low >= self.margin)

    def loss(self, tokens: TokenTable) -> Loss:
        """`tokens` holds whole pairs, chosen first, and the reference's log-probs; an idle pack, without, counts 0."""
        assert tokens.group is not None and torch.equal(tokens.group[0::2], tokens.group[1::2]), "no pair is torn"
        reference = tokens.log_probs.detach() if tokens.reference_log_probs is None else tokens.reference_log_probs
        rewards = self.beta * _of_pairs(tokens.log_probs - reference, tokens)
        margins = rewards[:, 0] - rewards[:, 1]
        smooth = self.label_smoothing
        values = -(1 - smooth) * logsigmoid(margins) - smooth * logsigmoid(-margins)
        value = (2 * values.sum() / tokens.sequences_total).to(tokens.log_probs.dtype)
        log_probs = _of_pairs(tokens.log_probs, tokens)
        means = {
            "dpo/rewards/chosen": rewards[:, 0],
            "dpo/rewards/rejected": rewards[:, 1],
            "dpo/rewards/margins": margins,
            "dpo/rewards/accuracies": margins > 0,
            "dpo/logps/chosen": log_probs[:, 0],
            "dpo/logps/rejected": log_probs[:, 1],
        }
        return Loss(value, {"loss": whole(value, tokens)} | {name: _pair_mean(each) for name, each in means.items()})


def _given(case: Case, prompt: Prompt, actor: Actor) -> Group:
    return Group(case, prompt, actor.pair(case), trainable=(True, True))


def _pair(group: Group, members: tuple[int, int], trainable: bool) -> Group:
    """The group with these two rollouts alone, in this order."""

    def pick(values: tuple[T, ...]) -> tuple[T, ...]:
        return tuple(values[i] for i in members) if values else ()

    return replace(
        group,
        rollouts=pick(group.rollouts),
        readings=pick(group.readings),
        verdicts=pick(group.verdicts),
        rewards=pick(group.rewards),
        difficulty=pick(group.difficulty),
        trainable=(trainable, trainable),
    )


def _of_pairs(values: Tensor, tokens: TokenTable) -> Tensor:
    """Values of tokens [N] -> their sums over each response, [pairs, 2] float64: chosen, rejected."""
    sums = torch.zeros(len(tokens.lengths), dtype=torch.float64, device=values.device)
    return sums.index_add(0, tokens.response, values.double()).view(-1, 2)


def _pair_mean(values: Tensor) -> tuple[Tensor, Tensor]:
    """(sum, count) of a mean over pairs: an entry of `Loss.sums`. values: [pairs], float or bool."""
    return values.detach().double().sum(), torch.tensor(float(len(values)), dtype=torch.float64, device=values.device)
