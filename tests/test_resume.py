"""A run that was stopped anywhere ends as if it had not been: weights bit for bit, metrics, evaluations, traces."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tiny_run import RECIPE, Place, command, evaluations, metrics, place, read, same, table, weights

from qoqmed import checkpoint
from qoqmed.fit import fit
from qoqmed.interrupts import Interrupts
from qoqmed.run import RunFolder

SFT = RECIPE["stages"][0]
EVERY = ["evaluation.every=2", "trainer.checkpoint_every=2"]  # after two of the three steps of each stage


@pytest.fixture(scope="module")
def whole(tiny: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody stopped."""
    return fit(place(tmp_path_factory.mktemp("whole")).recipe, EVERY).folder


@pytest.fixture
def here(tiny: None, tmp_path: Path) -> Place:
    return place(tmp_path)


def stop(here: Place, arguments: str, *overrides: str) -> None:
    """Start the run and let the callback `stop` end it; say how as the user is told."""
    with pytest.raises(KeyboardInterrupt, match="interrupted: saved at step .*; go on with --resume .*runs/tiny"):
        fit(here.recipe, [*EVERY, *overrides, f"callbacks=[{{name: stop, {arguments}}}]"])


def assert_equal_runs(run: Path, whole: Path) -> None:
    assert same(weights(run), weights(whole))
    assert metrics(run) == metrics(whole)
    assert evaluations(run) == evaluations(whole)
    clocks = ("time/", "data/", "tokens_per_second")
    first, second = (
        [{k: v for k, v in row.items() if not k.startswith(clocks)} for row in table(folder / "metrics.csv")]
        for folder in (run, whole)
    )
    assert first == second
    assert read(run / "predictions-valid.jsonl") == read(whole / "predictions-valid.jsonl")
    traces = [path.name for path in sorted((whole / "traces").iterdir())]
    assert [path.name for path in sorted((run / "traces").iterdir())] == traces
    assert all(read(run / "traces" / name) == read(whole / "traces" / name) for name in traces)


@pytest.mark.parametrize(
    "arguments",
    [
        "at: 2",  # where an evaluation is due, which the interruption leaves undone
        "when: sft",  # at the boundary of the stages
        "when: step 5",  # in stage 2, whose frozen reference comes back
    ],
)
def test_interrupted_and_resumed(here: Place, whole: Path, arguments: str) -> None:
    stop(here, arguments)
    result = fit(here.recipe, EVERY, resume="auto")
    assert result.finished and result.folder == here.run
    assert_equal_runs(here.run, whole)
    assert "opened again" in (here.run / "log.txt").read_text()
    assert len(json.loads((here.run / "environment.json").read_text())["resumed"]) == 1


def test_interrupted_at_every_step(here: Place, whole: Path) -> None:
    """Among them each stage's last one, whose evaluation is still to come."""
    stop(here, "at: 1")
    for step in range(2, 7):
        with pytest.raises(KeyboardInterrupt):
            fit(here.recipe, [*EVERY, f"callbacks=[{{name: stop, at: {step}}}]"], resume="auto")
    assert fit(here.recipe, EVERY, resume=str(here.run)).finished
    assert_equal_runs(here.run, whole)


@pytest.mark.parametrize("arguments", ["at: 3", "when: step 5"])
def test_crashed_and_resumed_from_an_older_checkpoint(here: Place, whole: Path, arguments: str) -> None:
    """What later steps had written is dropped, and written again."""
    with pytest.raises(RuntimeError, match="crash"):
        fit(here.recipe, [*EVERY, f"callbacks=[{{name: stop, crash: true, {arguments}}}]"])
    assert fit(here.recipe, EVERY, resume="auto").finished
    assert_equal_runs(here.run, whole)


@pytest.mark.parametrize("arguments", ["when: start", "at: 1, crash: true"])
def test_a_run_without_a_checkpoint_begins_anew_in_its_folder(here: Place, whole: Path, arguments: str) -> None:
    with pytest.raises((KeyboardInterrupt, RuntimeError)):
        fit(here.recipe, [*EVERY, f"callbacks=[{{name: stop, {arguments}}}]"])
    assert fit(here.recipe, EVERY, resume=str(here.run)).finished
    assert_equal_runs(here.run, whole)


def test_auto_without_an_earlier_run_starts_one_and_a_finished_one_stays_as_it_is(here: Place, whole: Path) -> None:
    for _ in range(2):
        result = fit(here.recipe, EVERY, resume="auto")
        assert result.finished and result.folder == here.run
        assert_equal_runs(here.run, whole)


def test_a_damaged_newest_checkpoint_is_passed_over(here: Place, whole: Path) -> None:
    stop(here, "at: 5")
    newest = sorted((here.run / "checkpoints").glob("step-*"))[-1]
    assert newest.name == "step-00000005"
    file = newest / "policy.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.warns(UserWarning, match=r"step-00000005 is passed over: policy.safetensors has \d+ bytes"):
        assert fit(here.recipe, EVERY, resume="auto").finished
    assert_equal_runs(here.run, whole)


def test_a_stage_that_was_ended_early_stays_ended(here: Place, tmp_path: Path) -> None:
    """The macro F1 of noise never gets better: after two evaluations patience 1 ends the stage."""
    early = ["evaluation.every=1", "evaluation.patience=1", "trainer.checkpoint_every=1"]
    (tmp_path / "other").mkdir()
    unstopped = fit(place(tmp_path / "other", stages=[SFT]).recipe, early)
    assert unstopped.global_step == 2
    alone = place(tmp_path, stages=[SFT])
    with pytest.raises(RuntimeError, match="crash"):
        fit(alone.recipe, [*early, "callbacks=[{name: stop, when: sft, crash: true}]"])
    assert fit(alone.recipe, early, resume="auto").global_step == 2
    assert same(weights(alone.run), weights(unstopped.folder))


def test_the_best_checkpoint_is_marked_though_the_run_ended_before_its_mark(
    here: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first validation, of step 2, is the best: the macro F1 of noise never gets better."""

    def killed(folder: Path, path: Path) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr("qoqmed.checkpoint.mark_best", killed)
        fit(here.recipe, EVERY)
    assert checkpoint.best(here.run / "checkpoints") is None
    assert fit(here.recipe, EVERY, resume="auto").finished
    best = checkpoint.best(here.run / "checkpoints")
    assert best is not None and best.name == "step-00000002"


def test_a_stage_is_not_ended_by_what_was_asked_before_it(here: Place) -> None:
    """A wish in the pass at the start, and in the one after sft, ends nothing; one within rl ends rl."""
    asked = [f"{{name: stop, ask: true, when: {when}}}" for when in ("start", "sft", "step 5")]
    result = fit(here.recipe, [*EVERY, f"callbacks=[{', '.join(asked)}]"])
    assert result.finished and result.global_step == 5


def test_ctrl_c_on_the_command_line(here: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("fit", here.recipe, "callbacks=[{name: stop, at: 2}]", "data.valid=[]") == 130
    assert f"interrupted: saved at step 2; go on with --resume {here.run}" in capsys.readouterr().err


def test_one_ctrl_c_may_arrive_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("qoqmed.interrupts.time.monotonic", lambda: now[0])
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    with Interrupts() as stop:
        assert not stop.asked
        for _ in range(3):  # of the terminal, of torchrun
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.asked
        now[0] += 1.5
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):  # Python's own handler is back
        os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGINT, before)


def test_a_second_ctrl_c_does_not_wait(here: Place, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qoqmed.interrupts.ECHO_S", -1.0)
    with pytest.raises(KeyboardInterrupt, match="go on from the last checkpoint with --resume"):
        fit(here.recipe, [*EVERY, "callbacks=[{name: stop, at: 4}, {name: stop, at: 4}]"])
    assert fit(here.recipe, EVERY, resume="auto").finished
    assert_equal_runs(here.run, whole)


def test_a_checkpoint_of_another_recipe(here: Place, capsys: pytest.CaptureFixture[str]) -> None:
    stop(here, "at: 1")
    before = weights(here.run)
    words = ["seed=9", "stages.0.optimizer.lr=1e-4", "rollout.n=4", "traces=text", *EVERY]
    assert command("fit", here.recipe, *words, "--resume", here.run) == 2
    told = capsys.readouterr().err
    assert told.startswith("3 errors:") and told.count("a checkpoint of another recipe") == 3
    for path in ("seed", "stages.0.optimizer.lr", "rollout.n"):
        assert f"{path}: a checkpoint of another recipe" in told
    assert "3 (of the run)" in told and "start a new run (without --resume)" in told and "traces" not in told
    assert same(weights(here.run), before) and not (here.folder / "runs" / "tiny-2").exists()


def test_a_run_in_use(here: Place, capsys: pytest.CaptureFixture[str]) -> None:
    stop(here, "at: 1")
    other = RunFolder.open(here.run, ["another process"])
    before = sorted(here.run.rglob("*"))
    assert command("fit", here.recipe, *EVERY, "--resume", "auto") == 2
    told = capsys.readouterr().err
    assert f"{here.run}: this run folder is in use" in told and f"process {os.getpid()}" in told
    assert sorted(here.run.rglob("*")) == before
    other.release()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_killed_at_a_random_moment(here: Place, whole: Path, site: Path, seed: int) -> None:
    """`kill -9` from outside, at a phase of a step that the heartbeat tells, and a new process that resumes."""
    words = [sys.executable, "-m", "qoqmed", "fit", str(here.recipe), *EVERY, "trainer.checkpoint_every=1"]
    settings: Any = {"env": os.environ | {"PYTHONPATH": str(site)}, "stdout": subprocess.DEVNULL}
    draw = random.Random(seed)
    step, phase = draw.randrange(1, 6), draw.choice(["collect", "update", "sync", "checkpoint"])
    with subprocess.Popen(words, **settings) as process:
        while not (met := heartbeat(here.run)) or met["step"] < step or met["phase"] not in (phase, "done"):
            assert process.poll() is None, f"it ended before step {step}, {phase}"
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    subprocess.run([*words, "--resume", "auto"], check=True, **settings)
    assert_equal_runs(here.run, whole)


def heartbeat(run: Path) -> dict[str, Any]:
    file = run / "heartbeat.json"
    return json.loads(file.read_text()) if file.exists() else {}
