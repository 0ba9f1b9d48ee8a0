"""Every estimator and loss through whole runs: what the loop gives them, saves of them, and what it does without."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import Place, command, metrics, place, read, same, weights

from qoqmed import build, registry
from qoqmed.errors import UserError
from qoqmed.evaluate import evaluate
from qoqmed.fit import fit

pytestmark = pytest.mark.usefixtures("tiny")

RL: dict[str, Any] = {"name": "rl", "optimizer": {"lr": 1.0e-3}, "steps": 3}
K1 = {"name": "policy_gradient", "kl": "k1", "kl_weight": 0.05}
METHODS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "grpo": ({"name": "policy_gradient", "kl_weight": 0.01}, {"name": "grpo"}),
    "dr_grpo": ({"name": "policy_gradient", "kl_weight": 0.0, "aggregate": "dr_grpo"}, {"name": "dr_grpo"}),
    "rloo with KL in the reward": (K1, {"name": "rloo"}),
    "remax": (K1, {"name": "remax"}),
    "reinforce_pp": (K1, {"name": "reinforce_pp"}),
    "ppo": (K1 | {"epochs": 2, "minibatch": 2}, {"name": "gae", "lam": 0.95}),
    "gspo": ({"name": "policy_gradient", "ratio": "sequence", "minibatch": 2}, {"name": "grpo"}),
    "drpo with a window": ({"name": "policy_gradient"}, {"name": "drpo", "window": 2, "max_ratio": 10.0}),
    "drpo with KL in the reward": (K1, {"name": "drpo"}),
}


def recipe(folder: Path, objective: dict[str, Any], advantage: dict[str, Any] | None, **stage: Any) -> Place:
    folder.mkdir(exist_ok=True)
    content = RL | {"objective": objective} | stage
    return place(folder, stages=[content | ({"advantage": advantage} if advantage else {})])


def steps(run: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl that are of steps."""
    return [row for row in metrics(run) if "lr" in row]


@pytest.mark.parametrize("method", METHODS)
def test_a_method_runs_and_resumes_exactly(method: str, tmp_path: Path) -> None:
    objective, advantage = METHODS[method]
    whole = fit(recipe(tmp_path / "whole", objective, advantage).recipe).folder
    here = recipe(tmp_path / "here", objective, advantage)
    with pytest.raises(KeyboardInterrupt):
        fit(here.recipe, ["callbacks=[{name: stop, at: 2}]"])
    assert fit(here.recipe, resume="auto").finished
    assert same(weights(here.run), weights(whole)) and metrics(here.run) == metrics(whole)
    rows = steps(whole)
    assert len(rows) == 3 and all(row["grad_norm"] > 0 and row["updates_skipped"] == 0 for row in rows)
    greedy = 4 if method == "remax" else 0
    assert all(row["rollouts/sampled"] == 4 * 2 + greedy for row in rows)
    assert ("kl" in rows[0]) == (objective.get("kl_weight", 1.0) > 0)


def test_values_learn_returns_and_are_no_part_of_the_model(tmp_path: Path) -> None:
    here = recipe(tmp_path, METHODS["ppo"][0], METHODS["ppo"][1], steps=8, optimizer={"lr": 1e-3, "value_lr": 0.02})
    run = fit(here.recipe).folder
    rows = steps(run)
    gaps = [abs(row["value/mean"] - row["value/return"]) for row in rows]
    assert rows[-1]["value/loss"] < rows[0]["value/loss"] and gaps[-1] < gaps[0]
    held = weights(run)
    assert held["value_head.weight"].any() and held["value_head.bias"].any()
    found = evaluate(str(run), ["evaluation.limit=2"])  # the policy alone
    assert "reward" in found["overall"]


def test_values_begin_anew_from_a_run_without_them(tmp_path: Path) -> None:
    start = fit(recipe(tmp_path / "a", {"name": "sft"}, None, name="sft").recipe).folder
    here = recipe(tmp_path / "b", *METHODS["ppo"], steps=1)
    assert fit(here.recipe, from_run=str(start)).finished


def test_groups_of_equal_rewards(tmp_path: Path) -> None:
    """`format` alone is 0 for random text, so that every group is equal; `vowels` tells all of them apart."""
    objective, advantage = {"name": "policy_gradient", "kl_weight": 0.0}, {"name": "grpo"}
    equal = ["rewards={format: {weight: 1.0}}"]
    dropped = fit(recipe(tmp_path / "drop", objective, advantage, equal_groups="drop", steps=1).recipe, equal).folder
    (row,) = steps(dropped)
    assert (row["rollouts/left_out_groups"], row["updates"], row["updates_skipped"]) == (4, 0, 0)
    assert row["reward"] == 0 and row["rollouts/sampled"] == 8
    traced = read(next((dropped / "traces").iterdir()))
    assert len(traced) == 8 and {one["advantage"] for one in traced} == {None}

    again = recipe(tmp_path / "again", objective, advantage, equal_groups="resample", rounds=3, steps=1)
    (row,) = steps(fit(again.recipe, equal).folder)
    assert (row["rollouts/left_out_groups"], row["rollouts/sampled"], row["updates"]) == (12, 24, 0)

    kept = fit(recipe(tmp_path / "kept", objective, advantage, equal_groups="resample").recipe).folder
    plain = fit(recipe(tmp_path / "plain", objective, advantage).recipe).folder
    if all(row["frac_reward_zero_std"] == 0 for row in steps(plain)):
        assert same(weights(kept), weights(plain))
    assert all(row["updates"] == 1 for row in steps(kept))


def test_resampling_is_exact_on_resume(tmp_path: Path) -> None:
    """Groups of two whose rewards are a share of vowels in two tokens are often equal."""
    short = ["rollout.max_new_tokens=1", "rewards={vowels: {weight: 1.0}}"]
    stage = {"equal_groups": "resample", "rounds": 4}
    objective, advantage = {"name": "policy_gradient", "kl_weight": 0.0}, {"name": "grpo"}
    whole = fit(recipe(tmp_path / "whole", objective, advantage, **stage).recipe, short).folder
    assert any(row["rollouts/sampled"] > 8 for row in steps(whole))
    here = recipe(tmp_path / "here", objective, advantage, **stage)
    for at in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            fit(here.recipe, [*short, f"callbacks=[{{name: stop, at: {at}}}]"], resume="auto")
    fit(here.recipe, short, resume="auto")
    assert same(weights(here.run), weights(whole)) and metrics(here.run) == metrics(whole)


def test_responses_that_were_cut_off_are_masked(tmp_path: Path) -> None:
    """Eight tokens of random text never end: nothing is left to train on, which is no fault."""
    objective = {"name": "policy_gradient", "kl_weight": 0.0, "mask_truncated": True}
    (row, *_) = steps(fit(recipe(tmp_path, objective, {"name": "grpo"}, steps=1).recipe).folder)
    assert row["completions/clipped_ratio"] > 0.9
    assert row["updates"] == 0 or row["completions/clipped_ratio"] < 1
    assert row["updates_skipped"] == 0


def test_an_update_that_is_not_finite_is_kept(tmp_path: Path) -> None:
    """With traces of ids only: numbers, no tokens and no media."""
    file = tmp_path / "bad"
    file.touch()
    here = place(tmp_path, stages=[{"name": "p", "objective": {"name": "poisoned", "file": str(file)}, "steps": 1}])
    run = fit(here.recipe).folder
    (path,) = (run / "dumps").glob("*.safetensors")
    tensors, told = load_file(path), json.loads(path.with_suffix(".json").read_text())
    assert tensors["log_probs"].shape == tensors["response"].shape and "targets" not in tensors
    assert told["loss"] == "nan" and len(told["responses"]) == 4
    assert str(path) in (run / "log.txt").read_text()
    full = fit(here.recipe, ["traces=full"]).folder
    (path,) = (full / "dumps").glob("*.safetensors")
    assert {"targets", "token_ids", "pixel_values", "series/ecg"} <= load_file(path).keys()


class Broken:
    """The engine `torch`, but its third sync fails."""

    def __init__(self, engine: Any) -> None:
        self.engine, self.syncs = engine, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def sync(self, weights: Any) -> None:
        from qoqmed.errors import PluginError, Problem

        self.syncs += 1
        if self.syncs == 3:
            raise PluginError(Problem("the engine has died", "rollout"))


def test_a_sync_that_fails_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objective, advantage = METHODS["grpo"]
    whole = fit(recipe(tmp_path / "whole", objective, advantage, steps=4).recipe).folder
    here = recipe(tmp_path / "here", objective, advantage, steps=4)
    make = registry.make
    with monkeypatch.context() as patch:
        broken = lambda group, *rest, **given: (  # noqa: E731
            Broken(make(group, *rest, **given)) if group == "rollouts" else make(group, *rest, **given)
        )
        patch.setattr(build.registry, "make", broken)
        with pytest.raises(UserError, match="the engine has died"):
            fit(here.recipe)
    assert [row["step"] for row in steps(here.run)] == [1, 2, 3]
    fit(here.recipe, resume="auto")
    assert same(weights(here.run), weights(whole)) and metrics(here.run) == metrics(whole)


@pytest.mark.parametrize(
    ("objective", "advantage", "words", "told"),
    [
        ({"name": "policy_gradient", "value_weight": 0.0}, "gae", (), "value_weight: .*needs values"),
        ({"name": "policy_gradient"}, "grpo", ("rollout.n=1",), "at least 2 responses a prompt"),
        ({"name": "policy_gradient"}, "rloo", ("rollout.n=1",), "at least 2 responses a prompt"),
        ({"name": "policy_gradient"}, "reinforce_pp", ("rollout.n=1", "stages.0.equal_groups=drop"), "equal rewards"),
        ({"name": "sft"}, None, ("stages.0.equal_groups=drop",), "samples no groups"),
        ({"name": "policy_gradient"}, "remax", ("stages.0.equal_groups=drop",), "learns from groups of equal rewards"),
        (
            {"name": "policy_gradient"},
            "grpo",
            ("stages.0.optimizer.value_lr=1e-3",),
            "nothing in this stage has values",
        ),
        ({"name": "dpo"}, "grpo", (), "compares responses itself"),
        ({"name": "policy_gradient", "dual_clip": 0.5}, "grpo", (), "dual_clip"),
        ({"name": "policy_gradient", "ratio": "word"}, "grpo", (), "ratio"),
    ],
)
def test_what_a_method_needs_is_asked_before_the_run(
    objective: Any, advantage: str | None, words: tuple[str, ...], told: str, tmp_path: Path
) -> None:
    here = recipe(tmp_path, objective, {"name": advantage} if advantage else None)
    with pytest.raises(UserError, match=told):
        fit(here.recipe, words)
    assert command("recipe", "check", here.recipe, *words, "--deep") == 2
    assert not here.run.exists() and torch.get_default_dtype() == torch.float32


# ---- what a review found


def test_pairs_with_equal_groups_left_out(tmp_path: Path) -> None:
    """Ties are left out; metrics and traces go on without an estimator."""
    words = ["rewards={format: {weight: 1.0}}"]
    run = fit(recipe(tmp_path, {"name": "dpo"}, None, equal_groups="drop", steps=2).recipe, words).folder
    assert [row["rollouts/left_out_groups"] for row in steps(run)] == [4, 4]
    assert [row["rollouts/sampled"] for row in steps(run)] == [8, 8]


def test_invalid_rewards_stop_a_stage_of_pairs(tmp_path: Path) -> None:
    file = tmp_path / "bad"
    file.touch()
    here = recipe(tmp_path, {"name": "dpo"}, None)
    with pytest.raises(UserError, match="no rollout of this step could be scored"):
        fit(here.recipe, [f"rewards={{moody: {{weight: 1.0, file: {file}}}}}"])


def test_statistics_of_pairs_are_of_all_that_was_sampled(tmp_path: Path) -> None:
    run = fit(recipe(tmp_path, {"name": "dpo"}, None, steps=1).recipe, ["rollout.n=6"]).folder
    (row,) = steps(run)
    assert row["rollouts/sampled"] == 24 and len(read(next((run / "traces").iterdir()))) == 8


def test_a_row_without_its_pair_is_a_bad_row(tmp_path: Path) -> None:
    """Known when it is admitted: `on_error` decides."""
    here = recipe(tmp_path, {"name": "dpo", "pairs": "file"}, None)
    with pytest.raises(UserError, match="brings no pair of responses"):
        fit(here.recipe)
    run = fit(here.recipe, ["data.on_error=skip"]).folder
    assert all(row["updates"] == 0 for row in steps(run)) and len(read(run / "skipped.jsonl")) == 12


@pytest.mark.parametrize("advantage", ["reinforce_pp", "gae", "drpo", "grpo"])
def test_log_probs_that_are_not_finite_teach_nothing(
    advantage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are no reason to step by zero either: the step is counted, its packs kept, the run stopped at the limit."""
    from qoqmed import estimating

    monkeypatch.setattr(estimating, "kl", lambda how, old, reference: torch.full_like(old, torch.nan))
    objective = K1 if advantage != "drpo" else {"name": "policy_gradient"}
    here = recipe(tmp_path, objective, {"name": advantage})
    with pytest.raises(UserError, match="not finite in 2 steps in a row"):
        fit(here.recipe, ["trainer.max_skipped=2"])
    assert [row["updates_skipped"] for row in steps(here.run)] == [1, 1]
    assert len(list((here.run / "dumps").glob("*.safetensors"))) == 2


@pytest.mark.parametrize("advantage", ["remax", "reinforce_pp", "grpo"])
def test_greedy_sampling_is_refused(advantage: str, tmp_path: Path) -> None:
    here = recipe(tmp_path, {"name": "policy_gradient"}, {"name": advantage})
    with pytest.raises(UserError, match="rollout.temperature"):
        fit(here.recipe, ["rollout.temperature=0"])
