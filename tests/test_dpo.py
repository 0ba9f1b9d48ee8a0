"""DPO: the loss against a full softmax by hand, the pairs that it collects, and whole steps of the loop."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import RECIPE, metrics, place, read
from torch import Tensor

from qoqmed import config
from qoqmed.contracts import Actor, Objective
from qoqmed.errors import RecipeError, UserError
from qoqmed.fit import fit
from qoqmed.losses import Loss, TokenTable
from qoqmed.objectives.dpo import DPO
from qoqmed.packing import Prompt
from qoqmed.types import Case, Group, Needs, Reading, Rollout, Target, Verdict

V = 5
LENGTHS = (3, 2, 4, 1, 2, 5)  # chosen, rejected of three pairs


def case(name: str, **attributes: str) -> Case:
    space = ("a", "b")
    return Case(name, "ecg", "mine", "diagnosis", "?", (), space, Target(("a",)), attributes=attributes)


# ---- the loss


def example() -> tuple[Tensor, Tensor, Tensor]:
    """Logits of policy and reference [N, V] float64, and the tokens that were written [N]."""
    generator = torch.Generator().manual_seed(7)
    n = sum(LENGTHS)
    logits, reference = (2 * torch.randn(n, V, generator=generator, dtype=torch.float64) for _ in range(2))
    return logits.requires_grad_(), reference, torch.randint(V, (n,), generator=generator)


def table(logits: Tensor, reference: Tensor, tokens: Tensor, pairs: Sequence[int] = (0, 1, 2)) -> TokenTable:
    """Some pairs of the three as one micro-batch."""
    response = torch.repeat_interleave(torch.arange(6), torch.tensor(LENGTHS))
    here = torch.isin(response // 2, torch.tensor(pairs))
    _, renumbered = response[here].unique(return_inverse=True)

    def written(values: Tensor) -> Tensor:
        return values.log_softmax(1)[torch.arange(len(tokens)), tokens][here]

    return TokenTable(
        log_probs=written(logits),
        response=renumbered,
        lengths=torch.tensor([LENGTHS[2 * pair + i] for pair in pairs for i in range(2)]),
        sequences_total=6,
        tokens_total=sum(LENGTHS),
        max_length=8,
        reference_log_probs=written(reference),
        group=torch.tensor([pair for pair in pairs for _ in range(2)]),
    )


def by_hand(
    logits: Tensor, reference: Tensor, tokens: Tensor, beta: float, smoothing: float = 0.0
) -> tuple[float, list[list[float]], list[float], list[list[float]]]:
    """Eq. 7 with exp and sum alone, no tensors: loss, log pi of each pair, margins, gradient by logit."""
    rows = zip(logits.tolist(), reference.tolist(), tokens.tolist(), strict=True)
    chances = [(math.exp(p[t]) / sum(map(math.exp, p)), math.exp(q[t]) / sum(map(math.exp, q))) for p, q, t in rows]
    responses, at = [], 0
    for length in LENGTHS:
        responses.append(chances[at : at + length])
        at += length
    log_pi = [sum(math.log(p) for p, _ in one) for one in responses]
    ratio = [sum(math.log(p / q) for p, q in one) for one in responses]
    margins = [beta * (ratio[i] - ratio[i + 1]) for i in (0, 2, 4)]

    def minus_log_sigmoid(x: float) -> float:
        return math.log(1 + math.exp(-x))

    loss = sum((1 - smoothing) * minus_log_sigmoid(m) + smoothing * minus_log_sigmoid(-m) for m in margins) / 3
    gradient, at = [], 0
    for i, length in enumerate(LENGTHS):
        m = margins[i // 2]
        slope = (1 - smoothing) / (1 + math.exp(m)) - smoothing / (1 + math.exp(-m))  # -dL/dm of the pair
        weight = -beta * slope / 3 * (1 if i % 2 == 0 else -1)
        for row, token in zip(logits.tolist()[at : at + length], tokens.tolist()[at : at + length], strict=True):
            total = sum(map(math.exp, row))
            gradient.append([weight * ((k == token) - math.exp(row[k]) / total) for k in range(V)])
        at += length
    return loss, [[log_pi[i], log_pi[i + 1]] for i in (0, 2, 4)], margins, gradient


@pytest.mark.parametrize(("beta", "smoothing"), [(0.1, 0.0), (0.5, 0.0), (2.0, 0.0), (0.5, 0.2), (0.3, 0.5)])
def test_loss_and_gradient_against_a_softmax_by_hand(beta: float, smoothing: float) -> None:
    logits, reference, tokens = example()
    loss = DPO(beta=beta, label_smoothing=smoothing).loss(table(logits, reference, tokens))
    expected, log_pi, margins, gradient = by_hand(logits, reference, tokens, beta, smoothing)
    assert loss.value.item() == pytest.approx(expected, abs=1e-6)
    loss.value.backward()
    torch.testing.assert_close(logits.grad, torch.tensor(gradient, dtype=torch.float64), rtol=1e-6, atol=1e-9)
    means = loss.means()
    assert means["loss"] == pytest.approx(expected)
    assert means["dpo/logps/chosen"] == pytest.approx(sum(one for one, _ in log_pi) / 3)
    assert means["dpo/logps/rejected"] == pytest.approx(sum(one for _, one in log_pi) / 3)
    assert means["dpo/rewards/margins"] == pytest.approx(sum(margins) / 3)
    assert means["dpo/rewards/chosen"] - means["dpo/rewards/rejected"] == pytest.approx(sum(margins) / 3)
    assert means["dpo/rewards/accuracies"] == pytest.approx(sum(m > 0 for m in margins) / 3)


def test_float32_log_probs_give_a_float32_loss() -> None:
    logits, reference, tokens = example()
    expected = by_hand(logits, reference, tokens, 0.1)[0]
    loss = DPO().loss(table(logits.detach().float().requires_grad_(), reference.float(), tokens))
    assert loss.value.dtype == torch.float32 and loss.value.item() == pytest.approx(expected, abs=1e-6)


def test_a_policy_that_is_its_reference_has_the_loss_log_2() -> None:
    logits, _, tokens = example()
    loss = DPO(beta=0.7).loss(table(logits, logits.detach(), tokens))
    assert loss.value.item() == pytest.approx(math.log(2))
    assert loss.means()["dpo/rewards/accuracies"] == 0.0


@pytest.mark.parametrize("parts", [((0,), (1,), (2,)), ((0, 1), (2,)), ((), (1,), (0, 2))])
def test_micro_batches_add_up_to_the_minibatch(parts: Sequence[Sequence[int]]) -> None:
    logits, reference, tokens = example()
    objective = DPO(label_smoothing=0.1)
    whole = objective.loss(table(logits, reference, tokens))
    (gradient,) = torch.autograd.grad(whole.value, logits)
    micro = [objective.loss(table(logits, reference, tokens, part)) for part in parts]
    assert sum(loss.value for loss in micro).item() == pytest.approx(whole.value.item(), rel=1e-12)
    torch.testing.assert_close(torch.autograd.grad(sum(loss.value for loss in micro), logits)[0], gradient)
    for name, mean in whole.means().items():
        total, count = (sum(float(loss.sums[name][i]) for loss in micro) for i in range(2))
        assert total / count == pytest.approx(mean), name


def test_an_idle_pack_has_no_reference_and_no_gradient_that_is_not_a_number() -> None:
    logits, reference, tokens = example()
    loss: Loss = DPO().loss(replace(table(logits, reference, tokens), reference_log_probs=None))
    (gradient,) = torch.autograd.grad(loss.value * 0.0, logits)
    assert not gradient.any()


@pytest.mark.parametrize(
    "group",
    [
        [0, 0, 1, 1, 2],  # the last one's other half is in the next pack
        [0, 1, 1, 2, 2],
        [0, 1, 1, 2, 2, 3],  # as many as whole pairs would be
        [0, 1],
    ],
)
def test_a_torn_pair_is_told(group: list[int]) -> None:
    n = len(group)
    zeros = torch.zeros(n, requires_grad=True)
    torn = TokenTable(
        *(zeros, torch.arange(n), torch.ones(n, dtype=torch.long), 8, 8, 4),
        reference_log_probs=torch.zeros(n),
        group=torch.tensor(group),
    )
    with pytest.raises(AssertionError, match="torn"):
        DPO().loss(torn)


# ---- the pairs


class FakeActor:
    """As many rollouts a case as it has rewards."""

    def __init__(self, *rewards: tuple[float | None, ...]) -> None:
        self.rewards = rewards

    def prompts(self, cases: Sequence[Case]) -> list[Prompt]:
        return [Prompt(case.id, torch.arange(3), torch.zeros(3, 3, dtype=torch.long), 3) for case in cases]

    def gold(self, case: Case, prompt: Prompt) -> Rollout:
        return Rollout(case.id, 0, (1,), "gold", finish_reason="gold")

    def pair(self, case: Case) -> tuple[Rollout, Rollout]:
        first = Rollout(case.id, 0, (1,), case.attributes["dpo/chosen"], finish_reason="gold")
        return first, replace(first, index=1, text=case.attributes["dpo/rejected"])

    def generate(self, cases: Sequence[Case], prompts: Sequence[Prompt]) -> list[list[Rollout]]:
        return [
            [Rollout(case.id, i, (i, 2), str(i), (-1.0, -1.0)) for i in range(len(rewards))]
            for case, rewards in zip(cases, self.rewards, strict=True)
        ]

    def judge(self, groups: Sequence[Group]) -> list[Group]:
        return [
            replace(
                group,
                rewards=rewards,
                readings=tuple(Reading(str(i)) for i in range(len(rewards))),
                verdicts=tuple({"any": Verdict(reward)} for reward in rewards),
            )
            for group, rewards in zip(groups, self.rewards, strict=True)
        ]


@pytest.mark.parametrize(
    ("rewards", "margin", "pair", "trained"),
    [
        ((0.2, 0.9, 0.0, 0.5), 0.0, ("1", "2"), True),
        ((0.0, 1.0), 0.0, ("1", "0"), True),
        ((0.5, 1.0, 1.0, 0.5), 0.0, ("1", "3"), True),  # of equals the first and the last
        ((None, 0.2, None, 0.4), 0.0, ("3", "1"), True),
        ((0.5, 0.75, 0.5), 0.25, ("1", "2"), True),
        ((0.5, 0.75, 0.5), 0.3, ("1", "2"), False),
        ((0.5, 0.5, 0.5), 0.0, ("0", "2"), False),  # a tie
        ((None, 0.2, None), 0.0, ("0", "1"), False),
        ((None, None), 0.0, ("0", "1"), False),
    ],
)
def test_the_best_against_the_worst(
    rewards: tuple[float | None, ...], margin: float, pair: tuple[str, str], trained: bool
) -> None:
    actor: Actor = FakeActor(rewards)
    objective: Objective = DPO(margin=margin)
    (group,) = objective.collect([case("x")], actor)
    assert tuple(rollout.text for rollout in group.rollouts) == pair
    assert group.trainable == (trained, trained)
    assert tuple(reading.reasoning for reading in group.readings) == pair
    assert group.rewards == tuple(rewards[int(one)] for one in pair) == tuple(v["any"].value for v in group.verdicts)
    assert group.difficulty == ()


def test_pairs_of_a_file() -> None:
    attributes = {"dpo/chosen": "good", "dpo/rejected": "bad"}
    (group,) = DPO(pairs="file").collect([case("x", **attributes)], FakeActor())
    assert [(rollout.text, rollout.index) for rollout in group.rollouts] == [("good", 0), ("bad", 1)]
    assert group.trainable == (True, True) and group.rewards == ()


def test_needs() -> None:
    assert DPO().needs == Needs(reference=True, rollouts=True, group=2)
    assert DPO(pairs="file").needs == Needs(reference=True, pair=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beta": 0.0}, "beta[\\s\\S]*above 0"),
        ({"beta": float("nan")}, "beta"),
        ({"pairs": "files"}, "unknown pairs[\\s\\S]*did you mean 'file'"),
        ({"margin": -0.1, "label_smoothing": 0.6}, "margin[\\s\\S]*label_smoothing[\\s\\S]*at most 0.5"),
        ({"epochs": 0, "minibatch": -1}, "epochs[\\s\\S]*minibatch"),
    ],
)
def test_wrong_arguments_are_told(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        DPO(**arguments)


# ---- recipes and whole runs


def recipe(**objective: Any) -> dict[str, Any]:
    stage = {"name": "dpo", "objective": {"name": "dpo", **objective}, "optimizer": {"lr": 1.0e-3}, "steps": 3}
    return {**RECIPE, "rewards": {"format": {"weight": 1.0}}, "stages": [stage]}


def test_the_deep_check_knows_what_dpo_needs() -> None:
    config.load(recipe(), deep=True)
    config.load(recipe(pairs="file") | {"rewards": {}}, ["rollout.n=1"], deep=True)
    with pytest.raises(RecipeError, match="rollout.n[\\s\\S]*at least 2"):
        config.load(recipe(), ["rollout.n=1"], deep=True)
    with pytest.raises(RecipeError, match="stages.0.advantage[\\s\\S]*compares responses itself"):
        config.load(recipe(), ["stages.0.advantage=grpo"], deep=True)
    with pytest.raises(RecipeError, match="no reward judges them"):
        config.load(recipe() | {"rewards": {}}, deep=True)


@pytest.mark.usefixtures("tiny")
def test_sampled_pairs_train_the_same_in_one_pack_and_in_many(tmp_path: Path) -> None:
    """Six passes over a step's pairs: the first update starts at log 2, the later ones are below it."""
    stages = [recipe(epochs=6)["stages"][0] | {"steps": 1}]
    here = place(tmp_path, stages=stages, rollout={"name": "torch", "n": 4, "max_new_tokens": 8, "prompts": 4})
    rows = []
    for run, budget in (("whole", 16_384), ("split", 240)):
        assert fit(here.recipe, [f"name={run}", f"trainer.tokens_per_pack={budget}"]).finished
        rows += [row for row in read(here.folder / "runs" / run / "metrics.jsonl") if "dpo/rewards/margins" in row]
    whole, split = rows
    assert whole["updates"] == 6 and whole["loss"] < math.log(2) and whole["dpo/rewards/margins"] > 0
    for name in ("loss", "grad_norm", *(name for name in whole if name.startswith("dpo/"))):
        assert split[name] == pytest.approx(whole[name], rel=1e-3, abs=1e-4), name


@pytest.mark.usefixtures("tiny")
def test_pairs_of_a_file_train(tmp_path: Path) -> None:
    names = ["edema", "nodule"]
    pair = {"chosen": "<think>Hazy.</think>\\boxed{edema}", "rejected": "<think>Clear.</think>\\boxed{nodule}"}
    row = {"domain": "fundus", "label_space": names, "labels": ["edema"], "question": "What is shown?", **pair}
    lines = [json.dumps({"id": f"p{i}", **row}) for i in range(8)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    data = RECIPE["data"] | {"train": [{"name": "jsonl", "path": str(tmp_path / "pairs.jsonl")}]}
    here = place(tmp_path, stages=recipe(pairs="file")["stages"], data=data, rewards={})
    assert fit(here.recipe, ["rollout.n=1", "data.valid=[]", "stages.0.epochs=2"]).finished
    steps = [row for row in read(here.run / "metrics.jsonl") if "dpo/rewards/margins" in row]
    assert [row["dpo/rewards/margins"] for row in steps] == sorted(row["dpo/rewards/margins"] for row in steps)
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert steps[-1]["dpo/rewards/accuracies"] == 1.0


@pytest.mark.usefixtures("tiny")
def test_a_pair_longer_than_a_pack_stays_whole(tmp_path: Path) -> None:
    here = place(tmp_path, stages=recipe()["stages"])
    plain, tight = (metrics(fit(here.recipe, words).folder) for words in ([], ["trainer.tokens_per_pack=8"]))
    losses = [[row["loss"] for row in rows if "loss" in row] for rows in (plain, tight)]
    assert losses[0] and losses[0] == pytest.approx(losses[1], rel=1e-3, abs=1e-4)
