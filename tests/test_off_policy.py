"""An engine whose log-probs are not the trainer's: weights by hand, the gradient they scale, what is told of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import exp, inf, log, nan
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_policy as tiny
import torch
from fake_distribution import install
from tiny_run import RECIPE, metrics, place, read, same, weights
from torch import Tensor

from qoqmed import tally
from qoqmed.alarms import alarms, drifts
from qoqmed.config.schema import RolloutConfig
from qoqmed.fit import fit
from qoqmed.losses import Loss, TokenTable, importance_ratio, token_mean
from qoqmed.module import ClinicalPolicyModule
from qoqmed.objectives.policy_gradient import PolicyGradient
from qoqmed.rollouts.torch import TorchRollouts
from qoqmed.tally import Tally
from qoqmed.types import Group, Needs
from qoqmed.updating import Scored, Updater, needs_old, score

RATIO, DIFFERENCE = "sampling/importance_ratio", "sampling/logp_difference"
ENGINE = [0.4, 0.8, 0.1]  # probabilities that the engine gave the tokens of `table`
LENGTHS = ((7, 1, 12), (5, 9, 3))
ADVANTAGES = ((1.0, -0.5, 2.0), (-1.5, 0.75, 0.25))
TEMPERATURE, WHOLE = 0.9, 100_000


def table(engine: Sequence[float] | None = ENGINE, **tensors: Any) -> TokenTable:
    """Two responses, of one and two tokens, of probabilities 0.6; 0.2 and 0.5 under the trainer's policy."""
    return TokenTable(
        log_probs=torch.tensor([0.6, 0.2, 0.5]).log().requires_grad_(),
        response=torch.tensor([0, 1, 1]),
        lengths=torch.tensor([1, 2]),
        sequences_total=2,
        tokens_total=3,
        max_length=4,
        behaviour_log_probs=None if engine is None else torch.tensor(engine).log(),
        **({"advantages": torch.tensor([2.0, -1.0, -1.0])} | tensors),
    )


# ---- the weights and the loss, by hand


def test_ratios_by_hand() -> None:
    tokens = table()
    gap = tokens.log_probs - torch.tensor(ENGINE).log()
    token, sequence = (importance_ratio(gap, tokens, how) for how in ("token", "sequence"))
    torch.testing.assert_close(token, torch.tensor([1.5, 0.25, 5.0]))
    torch.testing.assert_close(sequence, torch.tensor([1.5, 1.25, 1.25]))  # 0.2 * 0.5 / (0.8 * 0.1)
    assert not token.requires_grad and token.dtype == torch.float32


def test_a_ratio_is_held_within_numbers() -> None:
    gap = torch.tensor([-inf, 80.0, 80.0])
    for how in ("token", "sequence"):
        found = importance_ratio(gap, table(), how)
        torch.testing.assert_close(found, torch.tensor([exp(-20), exp(20), exp(20)]))


@pytest.mark.parametrize(
    ("importance", "weights", "ratios", "capped"),
    [
        ("token", [1.5, 0.25, 2.0], [1.5, 0.25, 5.0], 1 / 3),
        ("sequence", [1.5, 1.25, 1.25], [1.5, 1.25, 1.25], 0.0),
        ("none", [1.0, 1.0, 1.0], [1.5, 0.25, 5.0], None),
    ],
)
def test_the_loss_by_hand(importance: str, weights: list[float], ratios: list[float], capped: float | None) -> None:
    """First update, so phi is 1: value -(2 w + mean(-w', -w'')) / 2. The KL (k3) to a reference of half the probability
    at the last token, 0.5 - log 0.5 - 1, has no weight."""
    tokens = table(reference_log_probs=torch.tensor([log(0.6), log(0.2), log(0.25)]))
    loss = PolicyGradient(kl_weight=0.1, importance=importance, importance_cap=2.0).loss(tokens)
    a, b, c = weights
    expected = (-2 * a + (b + c + 0.1 * (0.5 + log(2) - 1)) / 2) / 2
    assert loss.value.item() == pytest.approx(expected)
    loss.value.backward()
    assert tokens.log_probs.grad is not None
    surrogate = torch.tensor([-2 * a / 2, b / 4, c / 4])
    torch.testing.assert_close(tokens.log_probs.grad, surrogate + torch.tensor([0, 0, 0.1 * (1 - 0.5) / 4]))
    means = loss.means()
    assert means[f"{RATIO}/mean"] == pytest.approx(sum(ratios) / 3)
    assert means.get(f"{RATIO}/capped") == (None if capped is None else pytest.approx(capped))
    assert float(loss.smallest[f"{RATIO}/min"]) == pytest.approx(min(ratios))
    assert float(loss.largest[f"{RATIO}/max"]) == pytest.approx(max(ratios))


def test_after_an_update_the_weight_stays_that_of_the_old_policy() -> None:
    """Old probabilities 0.5; 0.25 and 0.5, so phi is 1.2, 0.8 and 1 while the weights are 1.25, 0.3125 and 2 of 5."""
    old = torch.tensor([0.5, 0.25, 0.5]).log()
    loss = PolicyGradient(kl_weight=0.0, clip_low=0.5, clip_high=0.5).loss(table(old_log_probs=old))
    expected = (-2 * 1.2 * 1.25 + (0.8 * 0.3125 + 1.0 * 2.0) / 2) / 2
    assert loss.value.item() == pytest.approx(expected)


@pytest.mark.parametrize("importance", ["token", "sequence"])
def test_an_engine_that_agrees_changes_nothing(importance: str) -> None:
    found = []
    for tokens in (table([0.6, 0.2, 0.5]), table(None)):
        loss = PolicyGradient(kl_weight=0.0, importance=importance).loss(tokens)
        loss.value.backward()
        found.append((loss.value.detach(), tokens.log_probs.grad))
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_a_pack_in_which_nothing_trains_has_no_ratio() -> None:
    nothing = torch.zeros(0)
    tokens = TokenTable(nothing, nothing.long(), nothing.long(), 2, 3, 4, advantages=nothing)
    loss = PolicyGradient(kl_weight=0.0).loss(replace(tokens, behaviour_log_probs=nothing))
    assert float(loss.value) == 0 and not loss.smallest and not loss.largest


# ---- an update


class Recorder:
    """An optimizer that keeps the gradient of each step and moves the weights by `move`."""

    def __init__(self, module: ClinicalPolicyModule, move: float) -> None:
        self.module, self.move, self.steps = module, move, list[Tensor]()

    @torch.no_grad()
    def step(self) -> None:
        trained = self.module.trained().values()
        self.steps.append(torch.cat([p.grad.flatten() for p in trained if p.grad is not None]))
        for parameter in trained:
            parameter += self.move

    def zero_grad(self) -> None:
        self.module.zero_grad()


@pytest.fixture
def module() -> ClinicalPolicyModule:
    return ClinicalPolicyModule(tiny.load(tiny.SHARP).policy).train()


def sampled(module: ClinicalPolicyModule, shifts: Sequence[float]) -> tuple[list[Group], Scored]:
    """Two groups whose engine gives every token of group g exp(shifts[g]) times the trainer's probability."""
    encode = tiny.prompter(tiny.load())
    cases = [tiny.case("a"), tiny.case("b", tiny.picture(1))]
    groups = [tiny.group(case, encode(case), LENGTHS[g], g) for g, case in enumerate(cases)]
    now = score(module, groups, WHOLE, TEMPERATURE, old=True, reference=False)
    return [
        replace(
            group,
            rollouts=tuple(
                replace(rollout, log_probs=tuple((now.old[g, i] + shifts[g]).tolist()))
                for i, rollout in enumerate(group.rollouts)
            ),
        )
        for g, group in enumerate(groups)
    ], now


def update(
    module: Any, groups: list[Group], scored: Scored, move: float = 0.0, budget: int = WHOLE, **options: Any
) -> Any:
    """The update's numbers and the gradient of each of its steps."""
    fabric: Any = SimpleNamespace(world_size=1, backward=lambda loss: loss.backward())
    recorder, objective = Recorder(module, move), PolicyGradient(kl_weight=0.0, **options)
    updater = Updater(fabric, module, recorder, objective, budget, TEMPERATURE, 16, 1e9)
    done = updater(groups, scored, tiny.targets(groups, ADVANTAGES))
    return done.numbers, recorder.steps


@pytest.mark.parametrize("budget", [WHOLE, 50])
@pytest.mark.parametrize(
    ("shift", "scale", "capped"), [(0.25, exp(-0.25), 0.0), (-0.5, exp(0.5), 0.0), (-1.0, 2.0, 1.0)]
)
def test_an_engine_that_is_off_by_a_known_amount(
    budget: int, shift: float, scale: float, capped: float, module: Any
) -> None:
    """One update: no log-probs but those of its own forward, and of the engine."""
    groups, _ = sampled(module, [shift, shift])
    _, (plain,) = update(module, groups, Scored({}, {}), importance="none")
    numbers, (found,) = update(module, groups, Scored({}, {}), budget=budget)
    assert (found - scale * plain).norm() < 1e-4 * plain.norm()
    told = {
        f"{DIFFERENCE}/mean": abs(shift),
        f"{DIFFERENCE}/max": abs(shift),
        f"{RATIO}/min": exp(-shift),
        f"{RATIO}/mean": exp(-shift),
        f"{RATIO}/max": exp(-shift),
        f"{RATIO}/capped": capped,
    }
    assert {name: value for name, value in numbers.items() if name.startswith("sampling/")} == pytest.approx(
        told, rel=1e-3
    )


def test_several_updates_are_measured_against_the_policy_before_them(module: Any) -> None:
    """Two minibatches, twice, and weights that move between: each token counts, once, as it was at the start."""
    groups, old = sampled(module, [0.1, -0.3])
    numbers, steps = update(module, groups, old, move=1e-3, minibatch=1, epochs=2)
    count = [sum(lengths) for lengths in LENGTHS]
    assert len(steps) == 4
    assert numbers[f"{DIFFERENCE}/mean"] == pytest.approx((0.1 * count[0] + 0.3 * count[1]) / sum(count), rel=1e-3)
    assert numbers[f"{DIFFERENCE}/max"] == pytest.approx(0.3, rel=1e-3)
    ratios = [numbers[f"{RATIO}/{name}"] for name in ("min", "max", "mean")]
    mean = (exp(-0.1) * count[0] + exp(0.3) * count[1]) / sum(count)
    assert ratios == pytest.approx([exp(-0.1), exp(0.3), mean], rel=1e-3)


def test_numbers_of_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks with two tokens and one; a third whose packs are all idle."""
    ranks = [Tally(), Tally(), Tally()]
    for rank, ratio in zip(ranks, (torch.tensor([0.5, 1.0]), torch.tensor([3.0])), strict=False):
        rank.add(Loss(torch.tensor(0.0), {"mean": token_mean(ratio)}, {"min": ratio.min()}, {"max": ratio.max()}))
    monkeypatch.setattr(tally, "gather", lambda mine: [(r.sums, r.smallest, r.largest) for r in ranks])
    assert ranks[0].all_ranks() == {"mean": 1.5, "min": 0.5, "max": 3.0}


# ---- which log-probs a step needs


@pytest.mark.parametrize(
    ("objective", "rollout", "kl", "exact", "expected"),
    [
        ({}, {}, True, True, False),  # the engine `torch`: as if there were no correction
        ({}, {}, False, False, False),  # one update: the forward's own are the old ones
        ({}, {}, True, False, True),  # the sequence KL must not hold the engine's error
        ({"epochs": 2}, {}, False, False, True),
        ({"minibatch": 4}, {}, False, True, True),
        ({"minibatch": 8}, {}, False, False, False),
        ({}, {"top_p": 0.9}, False, True, True),
        ({}, {"top_k": 5}, False, True, True),
    ],
)
def test_old_log_probs_are_scored_where_nothing_stands_in_for_them(
    objective: dict[str, int], rollout: dict[str, Any], kl: bool, exact: bool, expected: bool
) -> None:
    stage: Any = SimpleNamespace(
        objective=PolicyGradient(**objective),
        prompts=8,
        needs=Needs(rollouts=True, reference=kl, kl=kl),
        advantage="some",
    )
    engine: Any = TorchRollouts() if exact else SimpleNamespace()
    assert needs_old(stage, RolloutConfig(**rollout), engine) is expected
    stage.needs = Needs()
    assert not needs_old(stage, RolloutConfig(**rollout), engine)  # gold answers


# ---- the alarm


def test_a_drift_is_told_once_a_crossing() -> None:
    rollout, before, told = RolloutConfig(name="fast", max_logp_difference=0.05), False, []
    for step, mean in enumerate([0.01, 0.06, 0.2, 0.04, nan, nan, 0.05], start=1):
        numbers = {"updates_skipped": 0.0, f"{DIFFERENCE}/mean": mean, f"{DIFFERENCE}/max": 3.0}
        told += [(step, alarm) for alarm in alarms(step, numbers, rollout, before)]
        before = drifts(numbers, rollout)
    assert [step for step, _ in told] == [2, 5]
    (_, text), _ = told
    for part in ("'fast'", "0.06 on average", "at most 3", "0.05 (rollout.max_logp_difference)", "stale weights"):
        assert part in text
    assert "temperature" in text and "precision" in text and "top_p" not in text
    cut = alarms(
        9, {"updates_skipped": 0.0, f"{DIFFERENCE}/mean": 1.0, f"{DIFFERENCE}/max": 3.0}, RolloutConfig(top_p=0.5)
    )
    assert "rollout.top_p" in cut[0]


def test_what_nobody_sampled_does_not_drift() -> None:
    assert not drifts({"updates_skipped": 0.0}, RolloutConfig())


# ---- whole runs

CODE = """
from dataclasses import replace

from qoqmed.rollouts.torch import TorchRollouts


class Shifted(TorchRollouts):
    exact_log_probs = False

    def __init__(self, shift: float):
        super().__init__()
        self.shift = shift

    def generate(self, prompts, sampling, seeds):
        groups = super().generate(prompts, sampling, seeds)
        return [[replace(r, log_probs=tuple(x + self.shift for x in r.log_probs)) for r in group] for group in groups]
"""
RL = RECIPE["stages"][1]
ONLY_RL = {"stages": [RL | {"steps": 3}], "data": RECIPE["data"] | {"valid": []}}


@pytest.fixture
def shifted(tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A recipe's `rollout` whose engine reports half the log-prob too much."""
    folder = tmp_path / "site"
    folder.mkdir()
    install(folder, "tiny-engines", {"rollouts": {"shifted": "tiny_engines:Shifted"}}, CODE)
    monkeypatch.syspath_prepend(str(folder))
    return RECIPE["rollout"] | {"name": "shifted", "shift": 0.5}


@pytest.mark.usefixtures("tiny")
def test_the_engine_torch_learns_as_without_the_correction(tmp_path: Path) -> None:
    here = place(tmp_path, **ONLY_RL)
    with_it = fit(here.recipe).folder
    out = f"trainer.out={tmp_path}/plain"
    without = fit(here.recipe, [out, "stages.0.objective.importance=none"]).folder
    gaps = {name: float((tensor - weights(without)[name]).abs().max()) for name, tensor in weights(with_it).items()}
    assert max(gaps.values()) < 1e-5
    for row in metrics(with_it):
        assert [row[f"{RATIO}/{name}"] for name in ("min", "mean", "max")] == pytest.approx([1, 1, 1], abs=1e-4)
        assert row[f"{RATIO}/capped"] == 0 and row[f"{DIFFERENCE}/max"] < 1e-4
    assert "log-probs of the engine" not in (with_it / "log.txt").read_text()


def test_a_drifting_engine_is_told_once_and_corrected(
    shifted: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also when the run is interrupted in between: it goes on as if it had not been."""
    here = place(tmp_path, **ONLY_RL, rollout=shifted)
    whole = fit(here.recipe, [f"trainer.out={tmp_path}/whole"]).folder
    shown = capsys.readouterr().out
    assert (
        shown.count("warning: step 1: the log-probs of the engine 'shifted'") == shown.count("max_logp_difference") == 1
    )
    rows = [row for row in read(whole / "metrics.jsonl") if "lr" in row]
    assert [row[f"{DIFFERENCE}/mean"] for row in rows] == pytest.approx([0.5] * 3, abs=1e-3)
    assert [row[f"{RATIO}/mean"] for row in rows] == pytest.approx([exp(-0.5)] * 3, abs=1e-3)
    assert rows[0]["kl"] == 0
    with pytest.raises(KeyboardInterrupt):
        fit(here.recipe, ["callbacks=[{name: stop, at: 2}]"])
    assert fit(here.recipe, ["rollout.max_logp_difference=0.2"], resume="auto").finished
    assert same(weights(here.run), weights(whole))
    assert (here.run / "log.txt").read_text().count("log-probs of the engine") == 1
