"""Whole runs of the tiny recipe in this process: what they learn, what they leave behind, what they never do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import RECIPE, Place, command, evaluations, metrics, place, read, same, table, weights

from qoqmed import checkpoint
from qoqmed.errors import RunError, UserError
from qoqmed.fit import fit
from qoqmed.report.plan import Plan

pytestmark = pytest.mark.usefixtures("tiny")

SFT, RL = RECIPE["stages"]
ALWAYS = {"loss", "grad_norm", "lr", "completions/mean_length", "updates", "updates_skipped", "skipped_cases"}
REINFORCED = {
    "reward",
    "reward_std",
    "rewards/vowels/mean",
    "rewards/format/mean",
    "frac_reward_zero_std",
    "completions/clipped_ratio",
    "kl",
    "entropy",
    "clip_ratio/low",
    "clip_ratio/high",
    "sampling/logp_difference/mean",
    "sampling/logp_difference/max",
    "sampling/importance_ratio/min",
    "sampling/importance_ratio/mean",
    "sampling/importance_ratio/max",
    "sampling/importance_ratio/capped",
    "domains/ecg/n",
    "domains/ecg/mean_reward",
    "domains/ecg/temperature",
    "domains/ecg/clusters",
    "domains/ecg/share",
}
PHASES = {f"time/{phase}" for phase in ("data", "collect", "score", "advantage", "update", "sync")}


def steps(run: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl that are steps, not evaluations."""
    return [row for row in read(run / "metrics.jsonl") if "lr" in row]


@pytest.fixture(scope="module")
def done(tiny: None, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A finished run of the recipe: three steps of sft, three of DRPO."""
    here = place(tmp_path_factory.mktemp("done"))
    result = fit(here.recipe, ["traces=full", "trainer.checkpoint_every=2", "trainer.keep=9"])
    assert result.finished and result.folder == here.run and result.global_step == 6
    assert [(e.split, e.when, e.global_step) for e in result.evaluations] == [
        ("valid", "start", 0),
        ("valid", "sft", 3),
        ("valid", "rl", 6),
    ]
    return here


def test_the_run_folder_holds_what_it_should(done: Place) -> None:
    names = {path.name for path in done.run.iterdir()}
    assert names == {
        "recipe.yaml", "environment.json", "log.txt", "heartbeat.json", "run.lock", "evaluations.jsonl", "metrics.csv",
        "metrics.jsonl", "predictions-valid.jsonl", "traces", "checkpoints", "references",
    }  # fmt: skip
    told = [line.split(" ", 1)[1] for line in (done.run / "log.txt").read_text().splitlines()]
    assert [line for line in told if not line.startswith("warning: ")] == ["started", "success at step 6"]
    told = json.loads((done.run / "environment.json").read_text())
    assert {"torch", "transformers", "lightning"} <= told["packages"].keys()
    assert told["resumed"] == [] and "tiny-plugins" in told["plugins"]
    assert command("recipe", "check", done.run / "recipe.yaml", "--deep") == 0
    saved = sorted(path.name for path in (done.run / "checkpoints").glob("step-*"))
    assert saved == ["step-00000002", "step-00000003", "step-00000005", "step-00000006"]
    assert [path.name for path in (done.run / "references").iterdir()] == ["rl.safetensors"]
    assert json.loads((done.run / "heartbeat.json").read_text())["step"] == 6


def test_every_promised_metric_is_in_both_files(done: Place) -> None:
    rows = steps(done.run)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    for row in rows:
        assert row.keys() >= ALWAYS | PHASES
        assert "kl" not in row or row["step"] > 3
    for row in rows[3:]:
        assert {name for name in REINFORCED if not name.startswith(("domains/", "rewards/format"))} <= row.keys()
    assert {name for row in rows for name in row} >= REINFORCED
    header = table(done.run / "metrics.csv")[0].keys()
    assert ALWAYS | PHASES | REINFORCED | {"valid/greedy/f1"} <= header
    csv_rows = [row for row in table(done.run / "metrics.csv") if row["lr"]]
    assert [float(row["loss"]) for row in csv_rows] == [row["loss"] for row in rows]


def test_the_numbers_make_sense(done: Place) -> None:
    rows = steps(done.run)
    assert all(row["grad_norm"] > 0 and row["updates"] == 1 and row["updates_skipped"] == 0 for row in rows)
    assert rows[0]["lr"] == 2e-3 and rows[3]["lr"] == 1e-3
    first = rows[3]
    assert first["kl"] == 0 and abs(first["sampling/logp_difference/max"]) < 1e-4  # the reference is the start
    assert rows[5]["kl"] > 0 and first["clip_ratio/low"] == first["clip_ratio/high"] == 0
    assert 0 < first["reward"] < 1 and first["reward_std"] > 0
    assert 1 <= first["completions/mean_length"] <= 8 and 0 <= first["completions/clipped_ratio"] <= 1
    for row in rows[3:]:
        assert sum(row.get(f"domains/{name}/n", 0) for name in ("ecg", "fundus")) == 4
        assert sum(row.get(f"domains/{name}/share", 0) for name in ("ecg", "fundus")) == pytest.approx(1)


def test_evaluations_and_predictions(done: Place) -> None:
    rows = evaluations(done.run)
    assert [row["when"] for row in rows] == ["start", "sft", "rl"]
    assert all(row["cases"] == 4 and row["sampled"] is None for row in rows)
    assert {"overall", "domains", "datasets"} == rows[0]["greedy"].keys()
    assert {"f1", "accuracy", "reward", "rewards/vowels"} <= rows[0]["greedy"]["overall"].keys()
    predictions = read(done.run / "predictions-valid.jsonl")
    assert len(predictions) == 4 and {row["domain"] for row in predictions} == {"ecg", "fundus"}


def test_traces_tell_every_rollout(done: Place) -> None:
    files = sorted((done.run / "traces").iterdir())
    assert [path.name for path in files] == [f"step-{step:08d}-00000.jsonl" for step in range(1, 7)]
    gold, sampled = read(files[0]), read(files[3])
    assert len(gold) == 4 and len(sampled) == 8
    assert all(row["finish_reason"] == "gold" and row["advantage"] is None for row in gold)
    assert any(row["advantage"] for row in sampled)
    pairs = [{row["reward"] for row in sampled[i : i + 2]} for i in range(0, 8, 2)]
    assert steps(done.run)[3]["frac_reward_zero_std"] == sum(len(pair) == 1 for pair in pairs) / 4
    assert steps(done.run)[3]["reward"] == pytest.approx(sum(row["reward"] for row in sampled) / 8)
    assert {"response", "reading", "question", "prompt", "media"} <= sampled[0].keys()
    assert "Choose from:" in sampled[0]["prompt"] and sampled[0]["reasons"]["vowels"] == "vowels"


@pytest.mark.parametrize(
    ("level", "there", "absent"),
    [("ids", {"sha256", "reward"}, {"response", "prompt"}), ("text", {"response", "reading"}, {"question", "prompt"})],
)
def test_traces_at_lower_levels(tmp_path: Path, level: str, there: set[str], absent: set[str]) -> None:
    here = place(tmp_path, stages=[RL | {"steps": 1}])
    fit(here.recipe, [f"traces={level}", "data.valid=[]"])
    rows = read(here.run / "traces" / "step-00000001-00000.jsonl")
    assert len(rows) == 8 and there <= rows[0].keys() and not absent & rows[0].keys()


def test_the_same_recipe_and_seed_give_the_same_weights_in_a_folder_of_their_own(done: Place) -> None:
    before = weights(done.run)
    result = fit(done.recipe)
    assert result.folder.name == "tiny-2"  # a fresh run never overwrites
    assert same(before, weights(result.folder)) and same(before, weights(done.run))
    assert metrics(result.folder) == metrics(done.run)
    assert evaluations(result.folder) == evaluations(done.run)
    other = fit(done.recipe, ["seed=4", "data.valid=[]"])
    assert not same(before, weights(other.folder))


def test_the_loss_falls_on_one_repeated_batch(tmp_path: Path) -> None:
    few = [RECIPE["data"]["train"][0] | {"size": 4}]
    here = place(tmp_path, stages=[SFT | {"steps": 6, "epochs": 6}], data=RECIPE["data"] | {"train": few, "valid": []})
    fit(here.recipe)
    losses = [row["loss"] for row in steps(here.run)]
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0] - 0.5


def test_what_a_stage_does_not_train_stays_as_it_was(tmp_path: Path) -> None:
    stage = SFT | {"train": ["language_model", "projectors"]}
    here = place(tmp_path, stages=[stage | {"steps": 1}, stage | {"name": "again", "steps": 2}])
    fit(here.recipe, ["trainer.keep=9", "data.valid=[]"])
    first, last = (checkpoint.load(here.run / "checkpoints" / f"step-0000000{step}") for step in (1, 3))
    changed = {name for name, value in last.tensors["policy"].items() if not value.equal(first.tensors["policy"][name])}
    assert changed and {".visual." in name or name.startswith("encoders.") for name in changed} == {False}
    frozen = {name for name in last.tensors["policy"] if ".visual." in name or name.startswith("encoders.")}
    held = {name.split("/", 1)[1] for name in last.tensors["optimizer"]}
    assert len(frozen) > 10 and held and not held & frozen


def test_grpo(tmp_path: Path) -> None:
    here = place(tmp_path, stages=[RL | {"advantage": {"name": "grpo"}, "steps": 2}])
    assert fit(here.recipe).finished
    rows = steps(here.run)
    assert rows[0]["grad_norm"] > 0 and rows[0]["domains/ecg/n"] + rows[0]["domains/fundus/n"] == 4
    assert {value for name, value in rows[0].items() if name.endswith("/temperature")} == {1}


def test_several_updates_a_step(tmp_path: Path) -> None:
    """Two epochs of two minibatches: the ratio leaves 1, so the old log-probs are computed before the first update."""
    stage = RL | {"objective": RL["objective"] | {"epochs": 2, "minibatch": 2}, "steps": 2, "optimizer": {"lr": 3e-2}}
    here = place(tmp_path, stages=[stage])
    fit(here.recipe, ["data.valid=[]"])
    rows = steps(here.run)
    assert [row["updates"] for row in rows] == [4, 4]
    assert rows[0]["clip_ratio/low"] + rows[0]["clip_ratio/high"] > 0 and rows[0]["kl"] > 0


def test_recomputed_old_log_probs_equal_the_on_policy_ones_before_the_first_update(tmp_path: Path) -> None:
    """top_k above the vocabulary leaves the distribution whole, but makes the loop compute the old log-probs.

    By GRPO: DRPO's damping is free of scale, so it tells a KL of 0 from one of 1e-13. A large eps: Adam's first step
    divides by the gradient itself, which lifts the rounding of the importance weights where it is near 0.
    """
    grpo = {"advantage": {"name": "grpo"}, "optimizer": RL["optimizer"] | {"eps": 1e-5}, "steps": 1}
    here = place(tmp_path, stages=[RL | grpo])
    plain = fit(here.recipe, ["data.valid=[]"]).folder
    recomputed = fit(here.recipe, ["data.valid=[]", "rollout.top_k=100000"]).folder
    first, second = steps(plain)[0], steps(recomputed)[0]
    assert second["loss"] == pytest.approx(first["loss"], abs=1e-6)
    assert second["grad_norm"] == pytest.approx(first["grad_norm"], rel=1e-5)
    mine, theirs = weights(plain), weights(recomputed)
    for name, value in mine.items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-4, atol=1e-6)


def test_one_stage_from_another_runs_weights(done: Place, tmp_path: Path) -> None:
    here = place(tmp_path)
    result = fit(here.recipe, ["data.valid=[]"], stage="rl", from_run=str(done.run))
    assert result.finished and result.global_step == 3
    assert {row["stage"] for path in (here.run / "traces").iterdir() for row in read(path)} == {"rl"}
    reference = checkpoint.read_tensors(here.run / "references" / "rl.safetensors")
    best = checkpoint.best(done.run / "checkpoints") or checkpoint.latest(done.run / "checkpoints")
    assert best is not None and same(reference, checkpoint.load(best).tensors["policy"])


def test_a_stage_or_a_run_that_is_not_there(done: Place, tmp_path: Path) -> None:
    here = place(tmp_path)
    with pytest.raises(UserError, match=r"no stage 'sftt'(.|\n)*sft, rl(.|\n)*did you mean 'sft'"):
        fit(here.recipe, stage="sftt")
    with pytest.raises(RunError, match="no checkpoint"):
        fit(here.recipe, stage="rl", from_run=str(tmp_path / "nowhere"))
    with pytest.raises(RunError, match="this is no run folder"):
        fit(here.recipe, resume=str(tmp_path / "nowhere"))
    assert not here.run.exists()


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    here = place(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    result = fit(here.recipe, dry_run=True)
    assert isinstance(result, Plan) and sorted(tmp_path.rglob("*")) == before
    assert [stage.steps > 0 and stage.prompt_tokens > 0 for stage in result.stages] == [True] * len(result.stages)
    assert "<|im_start|>" in result.example
