"""Steps 5 to 7 of the loop: scores, advantages of all ranks, and the update, against transformers' plain forward."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_policy as tiny
import torch
from torch import Tensor

from qoqmed import estimating, updating
from qoqmed.advantages.table import Advantages, Diagnostics, RewardTable
from qoqmed.config.schema import OptimizerConfig
from qoqmed.estimating import Known, Member, Row, estimate, sequence_kl, table
from qoqmed.losses import Loss, TokenTable, clipped_surrogate, sequence_ratio, value_loss
from qoqmed.module import ClinicalPolicyModule
from qoqmed.objectives.policy_gradient import PolicyGradient
from qoqmed.objectives.sft import SFT
from qoqmed.packing import Prompt, pack
from qoqmed.types import Group, Needs, Rollout
from qoqmed.updating import Scored, Updated, Updater, build_optimizer, learning_rate, score

LENGTHS = ((7, 1, 12), (5, 9, 3), (4, 4, 11))
TRAINABLE = ((True, True, True), (True, False, True), (False, True, True))
ADVANTAGES = ((1.0, -0.5, 2.0), (-1.5, 9.0, 0.25), (9.0, 1.25, -2.0))
TEMPERATURE, MAX_LENGTH, WHOLE = 0.9, 16, 100_000
Gradients = dict[str, Tensor]


class Recorder:
    """An optimizer that keeps the gradients of each step and leaves the weights alone."""

    def __init__(self, module: ClinicalPolicyModule) -> None:
        self.module = module
        self.steps: list[Gradients] = []

    def step(self) -> None:
        trained = self.module.trained().items()
        self.steps.append({name: p.grad.clone() for name, p in trained if p.grad is not None})

    def zero_grad(self) -> None:
        self.module.zero_grad()


class Poisoned(SFT):
    """Its loss is not a number in the calls told."""

    def __init__(self, *calls: int, **options: Any) -> None:
        super().__init__(**options)
        self.calls, self.seen = calls, 0

    def loss(self, tokens: TokenTable) -> Loss:
        out = super().loss(tokens)
        self.seen += 1
        return replace(out, value=out.value * math.nan) if self.seen in self.calls else out


@pytest.fixture(scope="module")
def module() -> ClinicalPolicyModule:
    """The reference is another policy, so that the KL is not zero."""
    module = ClinicalPolicyModule(tiny.load(tiny.SHARP).policy)
    module.reference = tiny.load(0.14).policy.requires_grad_(False).eval()
    return module.train()


@pytest.fixture(scope="module")
def plain(module: ClinicalPolicyModule) -> Any:
    return tiny.plain_copy(module.policy)


@pytest.fixture(scope="module")
def groups() -> list[Group]:
    """A text, a picture, and a picture with an ECG; some responses do not train."""
    encode = tiny.prompter(tiny.load())
    cases = [tiny.case("a"), tiny.case("b", tiny.picture(1)), tiny.case("c", tiny.picture(2, 56, 84), tiny.ecg(1))]
    made = zip(cases, LENGTHS, TRAINABLE, strict=True)
    return [tiny.group(case, encode(case), lengths, g, keep) for g, (case, lengths, keep) in enumerate(made)]


@pytest.fixture(scope="module")
def scored(module: ClinicalPolicyModule, groups: list[Group]) -> Scored:
    """Log-probs of before some updates: the present ones, moved enough for the clip to act."""
    now = score(module, groups, WHOLE, TEMPERATURE, old=True, reference=True)
    generator = torch.Generator().manual_seed(0)
    old = {member: values + 0.3 * torch.randn(len(values), generator=generator) for member, values in now.old.items()}
    return Scored(old, now.reference)


@pytest.fixture
def fabric() -> Any:
    return SimpleNamespace(world_size=1, backward=lambda loss: loss.backward())


def updater(module: ClinicalPolicyModule, fabric: Any, objective: Any, **changes: Any) -> tuple[Updater, Recorder]:
    recorder = Recorder(module)
    made = Updater(fabric, module, recorder, objective, WHOLE, TEMPERATURE, MAX_LENGTH, 1e9)
    return replace(made, **changes), recorder


def assert_close(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float = 1e-5) -> None:
    """Relative to the norm of all of them; what `expected` lacks has a gradient of exactly zero."""
    assert found.keys() >= expected.keys()
    assert not any(value.any() for name, value in found.items() if name not in expected)
    norm = torch.stack([value.norm() for value in expected.values()]).norm()
    gap = torch.stack([(found[name] - expected[name]).norm() for name in expected]).norm()
    assert norm > 0 and gap <= tolerance * norm


# ---- the update against the plain forward


def grpo_by_hand(
    plain: Any, groups: Sequence[Group], scored: Scored, members: Sequence[Member], tokens: bool
) -> Gradients:
    """The objective at clip 0.2 and 0.3 and KL weight 0.5, response by response: mean over responses of the mean over
    tokens, or the mean over all tokens."""
    losses = []
    for g, i in members:
        response = groups[g].rollouts[i].token_ids
        logits = tiny.plain_logits_by_hand(plain, groups[g].prompt, response)
        log_probs = tiny.chosen_log_probs(logits, response, TEMPERATURE)
        ratio, advantage = (log_probs - scored.old[g, i]).exp(), ADVANTAGES[g][i]
        surrogate = torch.minimum(ratio * advantage, ratio.clip(0.8, 1.3) * advantage)
        to_reference = scored.reference[g, i] - log_probs
        losses.append(-surrogate + 0.5 * (to_reference.exp() - to_reference - 1))
    loss = torch.cat(losses).mean() if tokens else torch.stack([part.mean() for part in losses]).mean()
    plain.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in plain.named_parameters() if p.grad is not None}


def trainable(*chosen: int) -> list[Member]:
    return [(g, i) for g in chosen for i in range(3) if TRAINABLE[g][i]]


@pytest.mark.parametrize("aggregate", ["sequence", "token"])
@pytest.mark.parametrize("budget", [WHOLE, 50, 1])
def test_the_gradient_is_that_of_the_objective_by_hand(
    aggregate: str, budget: int, module: Any, plain: Any, groups: list[Group], scored: Scored, fabric: Any
) -> None:
    """In one pack, in several, and in one for each response."""
    objective = PolicyGradient(clip_low=0.2, clip_high=0.3, kl_weight=0.5, aggregate=aggregate)
    update, recorder = updater(module, fabric, objective, budget=budget)
    done = update(groups, scored, tiny.targets(groups, ADVANTAGES))
    expected = grpo_by_hand(plain, groups, scored, trainable(0, 1, 2), aggregate == "token")
    (found,) = recorder.steps
    assert_close(found, expected)
    assert done.updates == 1 and done.skipped == 0
    assert done.grad_norm == pytest.approx(float(torch.stack([v.norm() for v in expected.values()]).norm()), rel=1e-4)
    assert done.numbers["clip_ratio/low"] > 0 and done.numbers["clip_ratio/high"] > 0 and done.numbers["kl"] > 0.1


@pytest.mark.parametrize("budget", [50, 1])
def test_packs_do_not_show_in_the_numbers(
    budget: int, module: Any, groups: list[Group], scored: Scored, fabric: Any
) -> None:
    one, _ = updater(module, fabric, PolicyGradient(kl_weight=0.5))
    several, _ = updater(module, fabric, PolicyGradient(kl_weight=0.5), budget=budget)
    expected, found = (
        one(groups, scored, tiny.targets(groups, ADVANTAGES)),
        several(groups, scored, tiny.targets(groups, ADVANTAGES)),
    )
    assert found.numbers == pytest.approx(expected.numbers, rel=1e-4)
    assert set(found.numbers) == {"loss", "kl", "entropy", "clip_ratio/low", "clip_ratio/high"}
    assert len(pack(groups, budget)) > len(pack(groups, one.budget))


@pytest.mark.parametrize(
    "options",
    [
        {"ratio": "sequence", "clip_low": 0.01, "clip_high": 0.02},
        {"dual_clip": 1.1, "aggregate": "token"},
        {"kl": "k1", "value_weight": 0.3, "value_clip": 0.1},
        {"aggregate": "dr_grpo", "entropy_weight": 0.01},
    ],
)
def test_one_micro_batch_and_four_agree(
    options: dict[str, Any], module: Any, groups: list[Group], scored: Scored, fabric: Any
) -> None:
    """Loss, statistics and gradients, to 1e-5 of the gradient's norm; with a value head, returns of both signs."""
    mine = copy.deepcopy(module)
    mine.policy.add_value_head()
    with torch.no_grad():
        mine.policy.value_head.weight.normal_(0, 0.1, generator=torch.Generator().manual_seed(3))
    now = score(mine, groups, WHOLE, TEMPERATURE, old=True, reference=True)
    known = replace(scored, values=now.values)
    told = tiny.targets(groups, ADVANTAGES)
    told = replace(told, returns={member: values.sin() for member, values in scored.old.items()})
    objective = PolicyGradient(kl_weight=0.5, **options)
    one, whole = updater(mine, fabric, objective)
    several, parts = updater(mine, fabric, objective, budget=45)
    assert len(pack(groups, 45)) >= 4
    expected, found = one(groups, known, told), several(groups, known, told)
    assert found.numbers == pytest.approx(expected.numbers, rel=1e-4, abs=1e-6)
    assert_close(parts.steps[0], whole.steps[0])
    assert whole.steps[0]["value_head.weight"].any()


def test_value_loss_and_sequence_ratio_by_hand() -> None:
    """Golden: PPO's max(plain, clipped) / 2, and GSPO's mean of log ratios, worked out on paper."""
    values, old, returns = torch.tensor([1.0, 0.0, 0.3]), torch.tensor([0.0, 0.0, 0.0]), torch.tensor([2.0, 1.0, 0.0])
    loss, held = value_loss(values, old, returns, 0.2)
    assert loss.tolist() == pytest.approx([0.5 * 1.8**2, 0.5, 0.5 * 0.3**2]) and held.tolist() == [True, False, False]
    assert value_loss(values, old, returns, None)[0].tolist() == pytest.approx([0.5, 0.5, 0.045])
    response, lengths = torch.tensor([0, 0, 1]), torch.tensor([2, 1])
    table = TokenTable(values, response, lengths, 2, 3, 4)
    assert sequence_ratio(torch.tensor([0.1, 0.3, -0.5]), table).tolist() == pytest.approx([0.2, 0.2, -0.5])
    advantages = torch.tensor([-1.0, -1.0, 1.0])
    ratio = torch.tensor([5.0, 1.1, 5.0]).log()
    loss, _, _ = clipped_surrogate(ratio, advantages, 0.2, 0.2, dual_clip=3.0)
    assert loss.tolist() == pytest.approx([3.0, 1.1, -1.2])


def test_each_minibatch_has_its_own_totals(
    module: Any, plain: Any, groups: list[Group], scored: Scored, fabric: Any
) -> None:
    """Three groups by two, twice: groups a and b, then c alone, and again. Where no case has an ECG, its encoder's
    gradient is zero, as it is under FSDP."""
    objective = PolicyGradient(clip_low=0.2, clip_high=0.3, kl_weight=0.5, epochs=2, minibatch=2)
    update, recorder = updater(module, fabric, objective, budget=90)
    done = update(groups, scored, tiny.targets(groups, ADVANTAGES))
    assert done.updates == len(recorder.steps) == 4
    for number, chosen in enumerate([(0, 1), (2,), (0, 1), (2,)]):
        expected = grpo_by_hand(plain, groups, scored, trainable(*chosen), False)
        assert_close(recorder.steps[number], expected)
        assert recorder.steps[number].keys() == dict(module.policy.named_parameters()).keys()


def test_two_ranks_average_to_one_process(
    module: Any, groups: list[Group], scored: Scored, fabric: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0 has group a, rank 1 has b and c; totals are those of both, and FSDP averages gradients."""
    objective = PolicyGradient(kl_weight=0.5)
    alone, recorder = updater(module, fabric, objective)
    alone(groups, scored, tiny.targets(groups, ADVANTAGES))
    (expected,) = recorder.steps
    trained = [len(groups[g].rollouts[i].token_ids) for g, i in trainable(0, 1, 2)]
    totals = {"sequences": float(len(trained)), "tokens": float(sum(trained))}
    monkeypatch.setattr(updating, "add_up", lambda sums: totals if "tokens" in sums else dict(sums))
    parts = []
    for chosen in ((0,), (1, 2)):
        update, recorder = updater(module, SimpleNamespace(world_size=2, backward=fabric.backward), objective)
        own = Scored(
            {(chosen.index(g), i): value for (g, i), value in scored.old.items() if g in chosen},
            {(chosen.index(g), i): value for (g, i), value in scored.reference.items() if g in chosen},
        )
        held = [groups[g] for g in chosen]
        update(held, own, tiny.targets(held, [ADVANTAGES[g] for g in chosen]))
        parts.append(recorder.steps[0])
    zero = {name: torch.zeros_like(value) for name, value in expected.items()}
    assert_close({name: sum((zero | part)[name] for part in parts) / 2 for name in expected}, expected)


def test_sft_needs_neither_scores_nor_advantages(module: Any, plain: Any, groups: list[Group], fabric: Any) -> None:
    """The mean over the tokens of all gold answers."""
    gold = [replace(group, rollouts=group.rollouts[:1], trainable=(True,)) for group in groups]
    update, recorder = updater(module, fabric, SFT(), temperature=1.0, budget=90)
    done = update(gold, Scored({}, {}), None)
    log_probs = []
    for group in gold:
        response = group.rollouts[0].token_ids
        log_probs.append(tiny.chosen_log_probs(tiny.plain_logits_by_hand(plain, group.prompt, response), response))
    loss = -torch.cat(log_probs).mean()
    plain.zero_grad()
    loss.backward()
    expected = {name: p.grad for name, p in plain.named_parameters() if p.grad is not None}
    assert_close(recorder.steps[0], expected)
    assert done.numbers == pytest.approx({"loss": loss.item()}, rel=1e-5)


# ---- what an update counts, clips and skips


def test_the_gap_between_engine_and_trainer_is_measured_before_the_first_update(
    module: Any, groups: list[Group], fabric: Any
) -> None:
    """Behaviour log-probs 0.01 off, one token of group b by 0.5; group c is of the second minibatch."""
    now = score(module, groups, WHOLE, TEMPERATURE, old=True, reference=False).old
    sampled = []
    for g, group in enumerate(groups):
        shifts = [[0.01] * len(rollout.token_ids) for rollout in group.rollouts]
        if g == 1:
            shifts[1][4] = 0.5
        if g == 2:
            shifts[0][0] = 3.0
        rollouts = [
            replace(rollout, log_probs=tuple((now[g, i] + torch.tensor(shifts[i])).tolist()))
            for i, rollout in enumerate(group.rollouts)
        ]
        sampled.append(replace(group, rollouts=tuple(rollouts)))
    update, _ = updater(module, fabric, PolicyGradient(kl_weight=0.0, minibatch=2))
    done = update(sampled, Scored({}, {}), tiny.targets(sampled, ADVANTAGES))
    count = sum(LENGTHS[0]) + sum(LENGTHS[1])
    assert done.numbers["sampling/logp_difference/max"] == pytest.approx(0.5, abs=1e-4)
    assert done.numbers["sampling/logp_difference/mean"] == pytest.approx((0.01 * (count - 1) + 0.5) / count, abs=1e-4)


def test_gradients_are_clipped_and_reported_unclipped(
    module: Any, groups: list[Group], scored: Scored, fabric: Any
) -> None:
    free, _ = updater(module, fabric, SFT())
    norm = free(groups, scored, None).grad_norm
    assert norm > 0.5
    tight, recorder = updater(module, fabric, SFT(), max_grad_norm=0.5)
    assert tight(groups, scored, None).grad_norm == pytest.approx(norm, rel=1e-5)
    clipped = torch.stack([value.norm() for value in recorder.steps[0].values()]).norm()
    assert clipped.item() == pytest.approx(0.5, rel=1e-4)


def test_a_gradient_that_is_not_finite_skips_its_step(module: Any, groups: list[Group], fabric: Any) -> None:
    """Of three minibatches the second: weights and moments are those of the first and third alone."""

    def run(objective: SFT, chosen: list[Group]) -> tuple[Updated, Any, dict[str, Tensor]]:
        mine = copy.deepcopy(module)
        optimizer = build_optimizer(mine, OptimizerConfig(lr=1e-3))
        update = Updater(fabric, mine, optimizer, objective, WHOLE, TEMPERATURE, MAX_LENGTH, 1.0)
        return update(chosen, Scored({}, {}), None), optimizer, dict(mine.policy.state_dict())

    done, optimizer, weights = run(Poisoned(2, minibatch=1), groups)
    assert (done.updates, done.skipped) == (2, 1)
    assert math.isfinite(done.grad_norm)
    healthy, _, expected = run(SFT(minibatch=1), [groups[0], groups[2]])
    assert (healthy.updates, healthy.skipped) == (2, 0)
    assert all(torch.equal(weights[name], value) for name, value in expected.items())
    assert {int(state["step"]) for state in optimizer.state.values()} <= {1, 2}
    assert all(p.grad is None for group in optimizer.param_groups for p in group["params"])


def test_where_every_step_is_skipped_nothing_changes(module: Any, groups: list[Group], fabric: Any) -> None:
    update, recorder = updater(module, fabric, Poisoned(1, 2))
    done = replace(update, objective=Poisoned(1))(groups, Scored({}, {}), None)
    assert (done.updates, done.skipped, done.grad_norm, recorder.steps) == (0, 1, 0.0, [])


def test_a_minibatch_in_which_nothing_trains_makes_no_step(module: Any, groups: list[Group], fabric: Any) -> None:
    idle = [replace(group, trainable=(False,) * 3) for group in groups]
    update, recorder = updater(module, fabric, PolicyGradient(kl_weight=0.0))
    done = update(idle, Scored({}, {}), tiny.targets(idle, ADVANTAGES))
    assert (done.updates, done.skipped, recorder.steps) == (0, 0, [])
    mixed, recorder = updater(module, fabric, PolicyGradient(kl_weight=0.0, minibatch=1))
    some = [idle[0], groups[1], idle[2]]
    done = mixed(some, Scored({}, {}), tiny.targets(some, ADVANTAGES))
    assert (done.updates, done.skipped) == (1, 0)
    assert len(recorder.steps) == 1


# ---- scores


@pytest.mark.parametrize("budget", [WHOLE, 90])
def test_scores_are_the_plain_log_probs_of_policy_and_reference(
    budget: int, module: Any, plain: Any, groups: list[Group]
) -> None:
    reference = tiny.plain_copy(module.reference)
    found = score(module, groups, budget, TEMPERATURE, old=True, reference=True)
    members = [(g, i) for g in range(3) for i in range(3)]
    assert sorted(found.old) == sorted(found.reference) == members
    for values, model in ((found.old, plain), (found.reference, reference)):
        for g, i in members:
            response = groups[g].rollouts[i].token_ids
            with torch.no_grad():
                logits = tiny.plain_logits_by_hand(model, groups[g].prompt, response)
            expected = tiny.chosen_log_probs(logits, response, TEMPERATURE)
            torch.testing.assert_close(values[g, i], expected, rtol=1e-5, atol=1e-5)
            assert not values[g, i].requires_grad
    assert (found.old[0, 0] - found.reference[0, 0]).abs().max() > 0.1


def test_scores_hold_what_is_needed_and_no_more(module: Any, groups: list[Group]) -> None:
    assert score(module, groups, WHOLE, 1.0, old=False, reference=False) == Scored({}, {})
    assert not score(module, groups, WHOLE, 1.0, old=True, reference=False).reference
    assert not score(module, groups, WHOLE, 1.0, old=False, reference=True).old


def test_the_reference_is_the_policy_as_it_was_when_frozen(groups: list[Group]) -> None:
    module = ClinicalPolicyModule(tiny.load().policy)
    module.freeze_reference()
    before = score(module, groups, WHOLE, 1.0, old=True, reference=True)
    with torch.no_grad():
        module.policy.model.lm_head.weight.mul_(2)
    after = score(module.train(), groups, WHOLE, 1.0, old=True, reference=True)
    for member, values in before.old.items():
        assert torch.equal(values, before.reference[member])
        assert torch.equal(values, after.reference[member])
        assert not torch.equal(values, after.old[member])
    assert module.reference is not None and not module.reference.training
    assert all(not p.requires_grad for p in module.reference.parameters())


# ---- the optimizer


def test_matrices_decay_and_vectors_do_not(module: Any) -> None:
    mine = copy.deepcopy(module)
    mine.choose(["language_model", "encoders", "projectors", "vision"])
    optimizer = build_optimizer(mine, OptimizerConfig(lr=0.1, weight_decay=0.3, beta1=0.8, beta2=0.95, eps=1e-6))
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    named = mine.trained()
    assert len(decays) == len(named) == len(list(mine.policy.parameters()))
    for name, parameter in named.items():
        bare = name.endswith("bias") or any(norm in name for norm in ("norm", "ln_q"))
        assert decays[id(parameter)] == (0.0 if bare else 0.3), name
    assert all((g["lr"], g["betas"], g["eps"]) == (0.1, (0.8, 0.95), 1e-6) for g in optimizer.param_groups)


@pytest.mark.parametrize(
    ("parts", "prefixes"),
    [
        (["projectors.ecg"], ("model.projectors.ecg.",)),
        (["encoders", "projectors"], ("model.encoders.ecg.", "model.projectors.ecg.")),
        (["language_model"], ("model.model.language_model.", "model.lm_head.")),
        (["vision"], ("model.model.visual.",)),
    ],
)
def test_only_the_chosen_parts_train(parts: list[str], prefixes: tuple[str, ...], module: Any) -> None:
    mine = copy.deepcopy(module)
    mine.choose(parts)
    every = [name for name, _ in mine.policy.named_parameters()]
    assert set(mine.trained()) == {name for name in every if name.startswith(prefixes)}
    held = [p for group in build_optimizer(mine, OptimizerConfig()).param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in mine.trained().values()}


@pytest.mark.parametrize(
    ("options", "steps", "expected"),
    [
        ({}, 3, [1, 1, 1]),
        ({"warmup": 3}, 5, [1 / 4, 2 / 4, 3 / 4, 1, 1]),  # steps
        ({"warmup": 0.5}, 6, [1 / 4, 2 / 4, 3 / 4, 1, 1, 1]),  # a share of the stage's steps
        ({"warmup": 0.25}, 10, [1 / 3, 2 / 3, 1, 1]),  # 2.5 steps
        ({"schedule": "linear"}, 4, [1, 3 / 4, 2 / 4, 1 / 4]),
        ({"schedule": "linear", "floor": 0.2}, 4, [1, 0.8, 0.6, 0.4]),
        ({"schedule": "linear", "warmup": 2}, 6, [1 / 3, 2 / 3, 1, 3 / 4, 2 / 4, 1 / 4]),
        ({"schedule": "cosine"}, 4, [1, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5]),
        ({"schedule": "cosine", "floor": 0.1}, 2, [1, 0.55]),
        ({"schedule": "cosine", "warmup": 1, "floor": 0.1}, 3, [1 / 2, 1, 0.55]),
        ({"schedule": "linear", "warmup": 9}, 3, [1 / 10, 2 / 10, 3 / 10]),  # a warm-up longer than the stage
    ],
)
def test_learning_rate_by_hand(options: dict[str, Any], steps: int, expected: list[float]) -> None:
    config = OptimizerConfig(lr=2.0, **options)
    found = [learning_rate(config, step, steps) / 2.0 for step in range(len(expected))]
    assert found == pytest.approx(expected)


def test_the_schedule_goes_down_to_its_floor() -> None:
    for schedule in ("cosine", "linear"):
        config = OptimizerConfig(lr=1.0, schedule=schedule, floor=0.1)
        rates = [learning_rate(config, step, 1000) for step in range(1000)]
        assert rates == sorted(rates, reverse=True)
        assert rates[0] == 1.0 and rates[-1] == pytest.approx(0.1, abs=1e-3)


# ---- advantages


class Numbering:
    """Estimator whose advantages are the rollouts' places in the table."""

    needs = Needs()

    def __init__(self) -> None:
        self.tables: list[RewardTable] = []

    def estimate(self, table: RewardTable) -> Advantages:
        self.tables.append(table)
        return Advantages(torch.arange(len(table.reward), dtype=torch.float64), Diagnostics({}))

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """No state."""


def judged(name: str, rewards: Sequence[float | None]) -> Group:
    case = replace(tiny.case(name), domain=f"domain of {name}")
    prompt = Prompt(name, torch.arange(2), torch.arange(2).expand(3, -1), 2)
    rollouts = tuple(Rollout(name, i, (5,), "") for i in range(len(rewards)))
    return Group(case, prompt, rollouts, rewards=tuple(rewards))


def test_a_table_by_hand() -> None:
    rows = [Row(3, "x", "ct", (1.0, None), (0.1, 0.2)), Row(8, "y", "mri", (0.5, 0.25, 0.0), (0.3, 0.4, 0.5))]
    found = table(rows)
    assert found.questions == ("x", "y") and found.domains == ("ct", "mri")
    assert found.question.tolist() == [0, 0, 1, 1, 1]
    assert found.valid.tolist() == [True, False, True, True, True]
    assert found.reward[found.valid].tolist() == [1.0, 0.5, 0.25, 0.0] and found.reward.dtype == torch.float64
    assert found.kl is not None and found.kl.tolist() == [0.1, 0.2, 0.3, 0.4, 0.5] and found.difficulty is None
    assert table([replace(row, kl=None) for row in rows]).kl is None


def test_the_estimator_sees_questions_by_their_global_index() -> None:
    """Groups of indices 7, 2 and 5: the table has them as 2, 5, 7, and each group gets its own back."""
    estimator = Numbering()
    groups = [judged("seven", [1.0, 2.0]), judged("two", [3.0, 4.0]), judged("five", [5.0, 6.0])]
    found = estimate(estimator, groups, [7, 2, 5], Known([[0.7, 0.7], [0.2, 0.2], [0.5, 0.5]]))
    (seen,) = estimator.tables
    assert seen.questions == ("two", "five", "seven")
    assert seen.domains == ("domain of two", "domain of five", "domain of seven")
    assert seen.reward.tolist() == [3, 4, 5, 6, 1, 2]
    assert seen.kl is not None and seen.kl.tolist() == [0.2, 0.2, 0.5, 0.5, 0.7, 0.7]
    assert found.advantages == ((4.0, 5.0), (0.0, 1.0), (2.0, 3.0))
    assert [row.order for row in found.rows] == [2, 5, 7]


def test_ranks_see_one_table_and_keep_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 has the even indices, rank 1 the odd ones."""
    every = [judged(str(order), [float(order)] * 2) for order in range(5)]
    shares = [[0, 2, 4], [1, 3]]
    sent: list[Any] = []
    monkeypatch.setattr(estimating, "gather", lambda rows: sent.append(rows) or [rows])
    for share in shares:
        estimate(Numbering(), [every[order] for order in share], share, Known())
    both = list(sent)
    monkeypatch.setattr(estimating, "gather", lambda rows: both)
    for share in shares:
        estimator = Numbering()
        found = estimate(estimator, [every[order] for order in share], share, Known())
        assert estimator.tables[0].reward.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
        assert found.advantages == tuple((2.0 * order, 2.0 * order + 1) for order in share)


def by_log(*probabilities: float) -> Tensor:
    return torch.tensor(probabilities).log()


@pytest.fixture
def doubtful() -> Iterator[Group]:
    """Behaviour log-probs: 1/2 and 1/2; 1/4."""
    group = judged("a", [1.0, 0.0])
    first = replace(group.rollouts[0], token_ids=(5, 6), log_probs=tuple(by_log(0.5, 0.5).tolist()))
    second = replace(group.rollouts[1], log_probs=tuple(by_log(0.25).tolist()))
    yield replace(group, rollouts=(first, second))


def test_sequence_kl_by_hand(doubtful: Group) -> None:
    """k3 = q / p - 1 - log(q / p) of the old policy p and the reference q: log 2 - 1/2 where q is half of p, 1 - log 2
    where it is twice p; summed over a response's tokens."""
    reference = {(0, 0): by_log(0.25, 1.0), (0, 1): by_log(0.25)}
    old = {(0, 0): by_log(0.5, 0.5), (0, 1): by_log(0.25)}
    assert sequence_kl([doubtful], old, reference) == [[pytest.approx(0.5), pytest.approx(0.0)]]
    moved = {(0, 0): by_log(0.25, 0.5), (0, 1): by_log(0.5)}
    expected = [pytest.approx(1 - math.log(2)), pytest.approx(math.log(2) - 0.5)]
    assert sequence_kl([doubtful], moved, reference) == [expected]


def test_sequence_kl_takes_the_behaviour_where_nothing_was_recomputed(doubtful: Group) -> None:
    reference = {(0, 0): by_log(0.25, 1.0), (0, 1): by_log(0.5)}
    assert sequence_kl([doubtful], {}, reference) == [[pytest.approx(0.5), pytest.approx(1 - math.log(2))]]
