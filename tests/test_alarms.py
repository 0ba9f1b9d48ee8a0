"""When a run stops or warns by its own numbers: the arithmetic, by hand, and whole runs that are stopped and go on."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import RECIPE, Place, command, place, read, same, weights

from qoqmed.alarms import alarms, count_invalid, invalid_share, refuse_invalid, refuse_not_finite
from qoqmed.config.schema import RolloutConfig
from qoqmed.fit import fit
from qoqmed.statistics import facts, metrics
from qoqmed.types import Case, Group, Target, Verdict
from qoqmed.updating import Updated

pytestmark = pytest.mark.usefixtures("tiny")

SFT, RL = RECIPE["stages"]
CASE = Case("a", "ct", "d", "t", "", (), ("x",), Target(labels=("x",)))


def group(*verdicts: Verdict, rewards: tuple[float | None, ...]) -> Group:
    nothing: Any = None
    return Group(CASE, nothing, (), verdicts=tuple({"one": v} for v in verdicts), rewards=rewards)


def test_invalid_rollouts_are_those_that_an_invalid_verdict_took() -> None:
    """Not those that no reward applies to, nor those whose invalid verdict has the weight 0."""
    ok, absent, bad = Verdict(0.5), Verdict.not_applicable("no mask"), Verdict.invalid("down")
    found = count_invalid([group(ok, bad, rewards=(0.5, None)), group(absent, bad, rewards=(None, 0.25))])
    assert (found.reasons, found.rollouts, found.scored, found.total) == (("down",), 1, 2, 4)
    assert found.warnings == ["invalid rollouts: down"]


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        ([], 0.0),
        ([(0, 0)], 0.0),
        ([(8, 8)], 0.1),  # one step lost of ten
        ([(4, 8)] * 2, 0.1),  # half of two
        ([(1, 8)] * 10, 0.125),
        ([(0, 8)] * 9 + [(4, 8)], 0.05),
        ([(4, 8), (0, 4)], 4 / 60),  # steps of six on average
    ],
)
def test_the_share_of_invalid_rollouts_by_hand(window: list[tuple[int, int]], expected: float) -> None:
    assert invalid_share(window) == pytest.approx(expected)


def test_one_bad_step_does_not_stop_a_run_and_two_do() -> None:
    bad, ok = Verdict.invalid("down"), Verdict(0.5)
    found = count_invalid([group(ok, bad, rewards=(0.5, None))])
    assert refuse_invalid(found, [(1, 2)], 0.1) == [] == refuse_invalid(found, [(1, 2)] * 2, 0.1)
    (error,) = refuse_invalid(found, [(1, 2)] * 3, 0.1)
    assert "15.0% of 10 steps' rollouts, in 3 steps" in str(error) and "trainer.max_invalid" in str(error)
    assert "down" in str(error)
    (error,) = refuse_invalid(count_invalid([group(bad, rewards=(None,))]), [(1, 1)], 1.0)
    assert "no rollout of this step could be scored" in str(error)


def test_what_is_told_of_a_step() -> None:
    quiet = {"updates_skipped": 0.0, "completions/clipped_ratio": 0.9}
    rollout = RolloutConfig(max_new_tokens=64)
    assert alarms(1, quiet, rollout) == [] == alarms(4, quiet | {"completions/clipped_ratio": 1.0}, rollout)
    (told,) = alarms(3, quiet | {"completions/clipped_ratio": 0.95}, rollout)
    assert told.startswith("95% of the responses were cut off at 64 tokens") and "rollout.max_new_tokens" in told
    (told,) = alarms(9, {"updates_skipped": 2.0}, rollout)
    assert told == "2 of the step's updates left out: the gradient was not finite"


def test_the_limit_of_steps_that_are_not_finite() -> None:
    assert refuse_not_finite(4, 5, "sft") == []
    (error,) = refuse_not_finite(5, 5, "sft")
    assert "not finite in 5 steps in a row" in str(error) and "--stage sft" in str(error)


def judged_by_moody(folder: Path, **arguments: Any) -> Place:
    """Two steps of sft, then five of RL whose reward is invalid while the file `bad` is there."""
    rewards = {"moody": {"file": str(folder / "bad")} | arguments}
    return place(folder, rewards=rewards, stages=[SFT | {"steps": 2}, RL | {"steps": 5}])


def test_a_step_without_a_valid_rollout_loses_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The reward breaks down in the third step of RL. With it mended the run ends as if that had never been."""
    here = judged_by_moody(tmp_path, since=2)
    whole = fit(here.recipe, ["data.valid=[]"]).folder
    (here.folder / "bad").touch()
    words = ["data.valid=[]", f"trainer.out={tmp_path}/again"]
    assert command("fit", here.recipe, *words) == 2
    told, run = capsys.readouterr().err, tmp_path / "again"
    assert told.startswith("error: no rollout of this step could be scored") and "moody" in told
    assert "stopped: " in (run / "log.txt").read_text()
    assert [path.name for path in sorted((run / "checkpoints").glob("step-*"))][-1] == "step-00000004"
    (here.folder / "bad").unlink()
    assert command("fit", here.recipe, *words, "--resume", run) == 0
    assert same(weights(run), weights(whole))


def test_too_many_invalid_rollouts_stop_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Half of a step's eight rollouts from the third step on: 5% of ten steps, then 10%. The limit may be raised."""
    here = judged_by_moody(tmp_path, since=2, bad=4)
    (here.folder / "bad").touch()
    assert command("fit", here.recipe, "data.valid=[]", "trainer.max_invalid=0.07") == 2
    told = capsys.readouterr().err
    assert "error: rewards: too many rollouts could not be scored: 10.0% of 10 steps' rollouts, in 4 steps" in told
    rows = [row for row in read(here.run / "metrics.jsonl") if "rollouts/invalid_share" in row]
    assert [row["rollouts/invalid_share"] for row in rows] == [0, 0, pytest.approx(0.05)]
    assert checkpoint_state(here, 5)["training"]["invalid"] == []
    assert command("fit", here.recipe, "data.valid=[]", "trainer.max_invalid=0.2", "--resume", "auto") == 0


def checkpoint_state(here: Place, step: int) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((here.run / "checkpoints" / f"step-{step:08d}" / "state.json").read_text())
    return state


def test_updates_that_are_not_finite_stop_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the second step on: with two allowed in a row the third step is the last one, and its weights are good."""
    poisoned = SFT | {"objective": {"name": "poisoned", "file": str(tmp_path / "bad"), "since": 1}, "steps": 5}
    here = place(tmp_path, stages=[poisoned])
    (tmp_path / "bad").touch()
    words = ["data.valid=[]", "trainer.max_skipped=2"]
    assert command("fit", here.recipe, *words) == 2
    shown = capsys.readouterr()
    assert "not finite in 2 steps in a row" in shown.err and "Traceback" not in shown.err
    assert "warning: step 2: 1 of the step's updates left out" in shown.out
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights(here.run).values())
    assert checkpoint_state(here, 3)["training"]["not_finite"] == 0
    (tmp_path / "bad").unlink()
    assert command("fit", here.recipe, *words, "--resume", "auto") == 0
    with (here.run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["updates_skipped"]) for row in rows if row["lr"]] == [0, 1, 1, 0, 0]


def test_cut_off_responses_are_told_in_the_first_steps_alone(tmp_path: Path) -> None:
    """A policy that has learned nothing ends no response within two tokens."""
    run = fit(place(tmp_path, stages=[RL | {"steps": 5}]).recipe, ["data.valid=[]", "rollout.max_new_tokens=2"]).folder
    told = [line for line in (run / "log.txt").read_text().splitlines() if "cut off at 2 tokens" in line]
    assert [line.split("warning: ")[1].split(":")[0] for line in told] == ["step 1", "step 2", "step 3"]


def test_the_step_counts_what_has_no_reward_by_its_cause() -> None:
    ok, absent, bad = Verdict(0.5), Verdict.not_applicable("no mask"), Verdict.invalid("down")
    whole = group(ok, bad, absent, rewards=(0.5, None, None))
    pair = replace(whole, rewards=(0.5, 0.25, 0.0), trainable=(True, True, False))
    out = metrics(facts([whole, pair]), Updated({}, 0.0, 1, 0), None, 0.0, {})
    assert (out["rollouts/invalid"], out["rollouts/not_applicable"], out["rollouts/trained"]) == (1, 1, 2)
