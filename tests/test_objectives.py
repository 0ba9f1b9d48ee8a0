"""Objectives with a tiny fake actor, and their losses by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import exp, log
from typing import Any

import pytest
import torch

from qoqmed.contracts import Actor, Objective
from qoqmed.errors import UserError
from qoqmed.losses import TokenTable
from qoqmed.objectives.policy_gradient import PolicyGradient
from qoqmed.objectives.sft import SFT
from qoqmed.packing import Prompt
from qoqmed.types import Case, Group, Rollout, Target

CASES = [Case(id, "ecg", "synthetic", "diagnosis", "?", (), ("a", "b"), Target(labels=("a",))) for id in ("x", "y")]


class FakeActor:
    """Two rollouts a case; the second of case y is invalid."""

    def prompts(self, cases: Sequence[Case]) -> list[Prompt]:
        return [Prompt(case.id, torch.arange(3), torch.zeros(3, 3, dtype=torch.long), 3) for case in cases]

    def gold(self, case: Case, prompt: Prompt) -> Rollout:
        return Rollout(case.id, 0, (5, 2), "gold " + prompt.case_id, finish_reason="gold")

    def generate(self, cases: Sequence[Case], prompts: Sequence[Prompt]) -> list[list[Rollout]]:
        return [[Rollout(prompt.case_id, i, (i, 2), str(i), (-1.0, -1.0)) for i in range(2)] for prompt in prompts]

    def judge(self, groups: Sequence[Group]) -> list[Group]:
        return [replace(group, rewards=(1.0, None if group.case.id == "y" else 0.0)) for group in groups]


def table(**tensors: Any) -> TokenTable:
    """Two responses, of one and two tokens."""
    return TokenTable(
        log_probs=torch.tensor([log(0.5), log(0.5), log(0.25)], requires_grad=True),
        response=torch.tensor([0, 1, 1]),
        lengths=torch.tensor([1, 2]),
        sequences_total=2,
        tokens_total=3,
        max_length=4,
        **tensors,
    )


def test_sft_collects_the_gold_answers() -> None:
    actor: Actor = FakeActor()
    objective: Objective = SFT()
    groups = objective.collect(CASES, actor)
    assert [group.rollouts[0].text for group in groups] == ["gold x", "gold y"]
    assert [group.trainable for group in groups] == [(True,), (True,)]
    assert objective.needs == SFT.needs
    assert not objective.needs.rollouts


@pytest.mark.parametrize(
    ("aggregate", "expected"),
    [("token", 4 * log(2) / 3), ("sequence", (log(2) + 1.5 * log(2)) / 2), ("dr_grpo", 4 * log(2) / 8)],
)
def test_sft_loss_by_hand(aggregate: str, expected: float) -> None:
    loss = SFT(aggregate=aggregate).loss(table(entropies=torch.ones(3)))
    assert loss.value.item() == pytest.approx(expected)
    assert loss.value.requires_grad
    assert loss.means() == {"loss": pytest.approx(expected), "entropy": 1.0}


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
def test_focal_loss_against_the_formula_of_the_paper(gamma: float) -> None:
    """Lin et al. 2017, eq. 4 with alpha 1, and its derivative by the logit x of p = sigmoid(x), appendix B:
    (1 - p)^gamma (gamma p log p + p - 1)."""
    x = torch.linspace(-6, 6, 25, dtype=torch.float64, requires_grad=True)
    tokens = replace(
        table(),
        log_probs=torch.nn.functional.logsigmoid(x),
        response=torch.zeros(25, dtype=torch.long),
        tokens_total=25,
    )
    loss = SFT(focal=gamma).loss(tokens)
    chances = [1 / (1 + exp(-value)) for value in x.tolist()]
    expected = sum(-((1 - p) ** gamma) * log(p) for p in chances) / 25
    assert loss.value.item() == pytest.approx(expected, abs=1e-6)
    assert loss.means()["loss"] == pytest.approx(expected)
    (gradient,) = torch.autograd.grad(loss.value, x)
    slopes = [(1 - p) ** gamma * (gamma * p * log(p) + p - 1) / 25 for p in chances]
    torch.testing.assert_close(gradient, torch.tensor(slopes, dtype=torch.float64), rtol=1e-6, atol=1e-12)


def test_focal_0_is_the_plain_loss_and_sure_tokens_have_finite_gradients() -> None:
    plain, focal = table(), table()
    SFT().loss(plain).value.backward()
    SFT(focal=0.0).loss(focal).value.backward()
    assert torch.equal(plain.log_probs.grad, focal.log_probs.grad)
    for gamma in (0.1, 0.5, 2.0):
        sure = torch.tensor([0.0, -1e-8, -6e-8], requires_grad=True)  # p rounds to 1
        loss = SFT(focal=gamma).loss(replace(table(), log_probs=sure))
        loss.value.backward()
        assert loss.value.item() == pytest.approx(0.0, abs=1e-6) and sure.grad.isfinite().all()


def test_policy_gradient_collects_judged_groups() -> None:
    objective: Objective = PolicyGradient()
    groups = objective.collect(CASES, FakeActor())
    assert [len(group.rollouts) for group in groups] == [2, 2]
    assert [group.rewards for group in groups] == [(1.0, 0.0), (1.0, None)]
    assert [group.trainable for group in groups] == [(True, True), (True, False)]


def test_policy_gradient_needs() -> None:
    assert PolicyGradient().needs.reference
    assert PolicyGradient().needs.rollouts
    assert not PolicyGradient(kl_weight=0.0).needs.reference


def test_policy_gradient_on_policy_is_the_advantage() -> None:
    """Ratio 1: value -(2 + mean(-1, -1)) / 2 and gradient -A / (tokens of the response * responses)."""
    tokens = table(advantages=torch.tensor([2.0, -1.0, -1.0]))
    loss = PolicyGradient(kl_weight=0.0).loss(tokens)
    assert loss.value.item() == pytest.approx(-0.5)
    loss.value.backward()
    torch.testing.assert_close(tokens.log_probs.grad, torch.tensor([-1.0, 0.25, 0.25]))
    assert loss.means() == {"loss": pytest.approx(-0.5), "clip_ratio/low": 0.0, "clip_ratio/high": 0.0}


def test_policy_gradient_loss_by_hand() -> None:
    """Ratios 2, 0.5, 1 with A = 1, -1, 1: clipped high, clipped low, inside. KL k3 against a reference of half the
    probability at the last token: 0.5 - log 0.5 - 1 there, 0 elsewhere. Entropy 1 throughout."""
    tokens = table(
        old_log_probs=torch.tensor([log(0.25), log(1.0), log(0.25)]),
        reference_log_probs=torch.tensor([log(0.5), log(0.5), log(0.125)]),
        advantages=torch.tensor([1.0, -1.0, 1.0]),
        entropies=torch.ones(3),
    )
    loss = PolicyGradient(clip_low=0.2, clip_high=0.3, kl_weight=0.1, aggregate="token", entropy_weight=0.01).loss(
        tokens
    )
    k3 = 0.5 + log(2) - 1
    expected = (-1.3 + 0.8 - 1.0 + 0.1 * k3 - 0.01 * 3) / 3
    assert loss.value.item() == pytest.approx(expected)
    assert loss.means() == pytest.approx(
        {"loss": expected, "clip_ratio/low": 1 / 3, "clip_ratio/high": 1 / 3, "kl": k3 / 3, "entropy": 1.0}
    )


def test_a_reference_without_weight_is_reported_and_not_trained_on() -> None:
    plain = table(advantages=torch.ones(3))
    watched = table(advantages=torch.ones(3), reference_log_probs=torch.full((3,), -3.0))
    objective = PolicyGradient(kl_weight=0.0)
    objective.loss(plain).value.backward()
    loss = objective.loss(watched)
    loss.value.backward()
    torch.testing.assert_close(plain.log_probs.grad, watched.log_probs.grad, rtol=0, atol=0)
    assert loss.means()["kl"] > 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SFT(aggregate="tokens"), "unknown aggregate[\\s\\S]*did you mean 'token'"),
        (lambda: SFT(focal=-1.0), "focal is out of range"),
        (lambda: SFT(epochs=0), "epochs is out of range[\\s\\S]*at least 1"),
        (lambda: PolicyGradient(kl="k4", aggregate="sequences"), "unknown kl[\\s\\S]*unknown aggregate"),
        (lambda: PolicyGradient(clip_low=1.5), "clip_low[\\s\\S]*at least 0, at most 1"),
        (lambda: PolicyGradient(minibatch=-1), "minibatch"),
        (lambda: PolicyGradient(kl_weight=float("nan")), "kl_weight"),
    ],
)
def test_wrong_arguments_are_told(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()
