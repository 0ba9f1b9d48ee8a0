"""The run folder: never overwritten, used by one process at a time, resumed only with its own recipe."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from qoqmed import checkpoint
from qoqmed.config import Recipe
from qoqmed.config.schema import DataConfig, EvaluationConfig, Node, RewardConfig, StageConfig, TrainerConfig
from qoqmed.errors import DataError, Problem, RunError
from qoqmed.provenance import commit_of
from qoqmed.run import RunFolder, latest_run, restore_policy, same_recipe
from qoqmed.types import Evaluation

RECIPE = Recipe(
    "demo", (StageConfig("sft", Node("sft")), StageConfig("rl", Node("policy_gradient", {"kl_weight": 0.1})))
)


def new(tmp_path, recipe=RECIPE):
    return RunFolder.create(tmp_path / "demo", recipe, ["qoqmed", "fit", "demo.yaml"])


def test_a_new_run_tells_what_it_was_made_with(tmp_path):
    run = new(tmp_path)
    assert "kl_weight: 0.1" in run.recipe_file.read_text()
    told = json.loads(run.environment_file.read_text())
    assert told["command"] == ["qoqmed", "fit", "demo.yaml"] and told["packages"]["torch"] == torch.__version__
    assert "qoqmed" in told["plugins"] and told["resumed"] == []
    assert run.checkpoints.is_dir() and run.traces.is_dir()


def test_a_fresh_run_never_overwrites(tmp_path):
    first, second = new(tmp_path), new(tmp_path)
    first.release()
    third = new(tmp_path)
    assert [run.path.name for run in (first, second, third)] == ["demo", "demo-2", "demo-3"]
    (tmp_path / "other").mkdir()
    assert RunFolder.create(tmp_path / "other", RECIPE, []).path.name == "other"  # empty: nothing to lose
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    assert RunFolder.create(tmp_path / "mine", RECIPE, []).path.name == "mine-2"


def test_a_folder_in_use_names_the_process_and_the_mend(tmp_path):
    run = new(tmp_path)
    run.beat("update", 7)
    with pytest.raises(RunError, match=r"in use(.|\n)*process \d+ on .*update, step 7(.|\n)*kill \d+"):
        RunFolder.open(run.path, [])
    run.release()
    again = RunFolder.open(run.path, ["qoqmed", "fit", "--resume", "auto"])
    assert json.loads(again.environment_file.read_text())["resumed"][0]["command"][-1] == "auto"


def test_the_lock_ends_with_its_process(tmp_path):
    script = (
        "import sys, os, pathlib, fcntl\n"
        "file = (pathlib.Path(sys.argv[1]) / 'run.lock').open('a+'); fcntl.flock(file, fcntl.LOCK_EX)\n"
        "print('held', flush=True); sys.stdin.read()\n"
    )
    run = new(tmp_path)
    run.release()
    command = [sys.executable, "-c", script, str(run.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(RunError, match="in use"):
            RunFolder.open(run.path, [])
        process.kill()
    RunFolder.open(run.path, []).release()


def test_what_is_no_run_is_refused_with_near_names(tmp_path):
    new(tmp_path)
    with pytest.raises(RunError, match=r"no run folder(.|\n)*did you mean 'demo'"):
        RunFolder.open(tmp_path / "demmo", [])


def test_the_newest_run_with_a_checkpoint_is_resumed(tmp_path):
    out = tmp_path / "demo"
    assert latest_run(out, "demo") is None
    runs = [new(tmp_path) for _ in range(11)]
    assert latest_run(out, "demo") is None
    for index in (1, 9):
        checkpoint.save(runs[index].checkpoints, 1, {}, {})
    assert latest_run(out, "demo") == runs[9].path and runs[9].path.name == "demo-10"
    other = RunFolder.create(tmp_path / "demo-12", replace(RECIPE, name="demo-12"), [])
    checkpoint.save(other.checkpoints, 1, {}, {})
    assert latest_run(out, "demo") == runs[9].path  # demo-12 is a run of another recipe


def test_only_what_defines_the_training_must_agree():
    own = replace(RECIPE, rewards={"slow": RewardConfig("iou", 0.5)})
    free = replace(
        own,
        rewards={"slow": RewardConfig("iou", 0.5, workers=4, timeout_s=2.5)},
        trainer=TrainerConfig(devices=2, checkpoint_every=1, keep=9, threads=2, out="elsewhere", strategy="fsdp2"),
        data=DataConfig(root="/data", workers=4, cache_mb=0),
        evaluation=EvaluationConfig(every=2, patience=3),
        loggers=(Node("jsonl"),),
        callbacks=(Node("progress", {"note": "x"}),),
        traces="full",
    )
    same_recipe(own, free)
    with pytest.raises(RunError) as caught:
        same_recipe(own, replace(free, rewards={"slow": RewardConfig("iou", 0.5, arguments={"part": {"workers": 1}})}))
    assert [problem.where for problem in caught.value.problems] == ["rewards.slow.part.workers"]


def test_every_difference_is_told_with_its_path():
    rl = replace(RECIPE.stages[1], objective=Node("policy_gradient", {"kl_weight": 0.2, "kl": "k1"}))
    other = replace(RECIPE, seed=7, stages=(RECIPE.stages[0], rl), rewards={"iou": RewardConfig("iou", 0.5)})
    with pytest.raises(RunError) as caught:
        same_recipe(RECIPE, other)
    told = {problem.where: (problem.got, problem.expected) for problem in caught.value.problems}
    assert told["seed"] == ("7", "42 (of the run)")
    assert told["stages.1.objective.kl_weight"] == ("0.2", "0.1 (of the run)")
    assert told["stages.1.objective.kl"] == ("'k1'", "not there (of the run)")
    assert any(path.startswith("rewards") for path in told)
    assert "checkpoint of another recipe" in str(caught.value)


def test_small_files(tmp_path):
    run = new(tmp_path)
    run.beat("update", 3)
    beat = json.loads(run.heartbeat_file.read_text())
    assert beat["phase"] == "update" and beat["step"] == 3 and {"pid", "host", "time"} <= beat.keys()
    one = Evaluation("test", "start", 0, 9, {"overall": {"f1": 0.5}}, None, 1.5)
    run.record(one)
    run.record(replace(one, when="sft", global_step=4))
    assert run.evaluations() == [one, replace(one, when="sft", global_step=4)]
    run.rewrite_evaluations([one])
    assert run.evaluations() == [one]
    run.skip(DataError([Problem("no label", "row-1"), Problem("no label", "row-2")]))
    run.skip(DataError(Problem("no label", "row-1")))
    RunFolder(run.path).skip(DataError(Problem("no label", "row-2")))  # as after a resumption
    assert [json.loads(line)["where"] for line in run.skipped_file.read_text().splitlines()] == ["row-1", "row-2"]
    run.log("hello")
    run.warn("scales differ")
    assert [line.split(" ", 1)[1] for line in run.log_file.read_text().splitlines()] == [
        "hello",
        "warning: scales differ",
    ]


def test_other_ranks_write_nothing(tmp_path):
    run = new(tmp_path)
    before = sorted(path.name for path in run.path.iterdir())
    other = RunFolder(run.path)
    other.beat("update", 1)
    other.log("x")
    other.record(Evaluation("test", "start", 0, 9, None, None, 1.5))
    assert sorted(path.name for path in run.path.iterdir()) == before


def test_weights_come_back_from_a_run(tmp_path):
    run, policy = new(tmp_path), nn.Linear(2, 2)
    with pytest.raises(RunError, match="no checkpoint"):
        restore_policy(run.path, policy)
    for step in (1, 2):
        nn.init.constant_(policy.weight, step)
        path = checkpoint.save(run.checkpoints, step, {"policy": policy.state_dict()}, {})
        if step == 1:
            first = path
    fresh = nn.Linear(2, 2)
    assert restore_policy(run.path, fresh) == path and fresh.weight[0, 0] == 2
    checkpoint.mark_best(run.checkpoints, first)
    assert restore_policy(run.path, fresh) == first and fresh.weight[0, 0] == 1
    module = nn.Module()
    module.reference = policy
    run.save_reference(module, "rl", True)
    module.reference = nn.Linear(2, 2)
    run.load_reference(module, "rl")
    assert torch.equal(module.reference.weight, policy.weight)


def test_commit_is_told_only_of_tracked_files(tmp_path):
    assert commit_of(tmp_path / "loose.py") is None
    tracked = commit_of(__import__("pathlib").Path(__file__).parent.parent / "pyproject.toml")
    assert tracked is None or len(tracked["commit"]) == 40
