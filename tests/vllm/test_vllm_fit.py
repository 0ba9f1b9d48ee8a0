"""Whole runs on the engine `vllm`: they learn as any other, and go on exactly where they were interrupted."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_run import Place, command, metrics, place, read, same, weights

from qoqmed.errors import PluginError
from qoqmed.fit import fit
from qoqmed.rollouts.vllm_engine import Engine

pytestmark = pytest.mark.usefixtures("tiny")
OPTIONS = {"hidden": 128, "layers": 1, "heads": 4, "vision_hidden": 32, "vision_layers": 1, "vocabulary": 400}
ROLLOUT = {
    "name": "vllm",
    "n": 2,
    "max_new_tokens": 8,
    "prompts": 4,
    "kv_cache_mb": 64,
    "max_model_len": 512,
    "probe_every": 2,
}


def site(folder: Path, **changes: object) -> Place:
    folder.mkdir(exist_ok=True)
    return place(folder, **{"model": {"name": "tiny", "options": OPTIONS}, "rollout": ROLLOUT, **changes})


@pytest.fixture(scope="module")
def whole(tiny: None, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A run that nothing disturbed."""
    made = site(tmp_path_factory.mktemp("whole"))
    fit(made.recipe)
    return made


def test_a_run_trains_and_resumes_exactly(whole: Place, tmp_path: Path) -> None:
    """Ctrl-C in the middle of the RL stage; in both runs probes compare engine and policy every other step."""
    parted = site(tmp_path, callbacks=[{"name": "stop", "at": 4}])
    with pytest.raises(KeyboardInterrupt, match="saved at step 4"):
        fit(parted.recipe)
    fit(parted.recipe, resume=str(parted.run))
    assert same(weights(parted.run), weights(whole.run))
    rows = metrics(whole.run)
    assert metrics(parted.run) == rows
    assert read(parted.run / "evaluations.jsonl")[-1]["greedy"] == read(whole.run / "evaluations.jsonl")[-1]["greedy"]
    sampled = [row for row in rows if "sampling/logp_difference/max" in row]
    assert len(sampled) == 3 and all(0 < row["sampling/logp_difference/max"] < 1e-4 for row in sampled)
    assert all(math.isfinite(row["loss"]) for row in rows if "loss" in row)


def test_a_run_whose_engine_dies_is_saved_and_goes_on(
    whole: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = site(tmp_path)
    generate, calls = Engine.generate, []

    def die(self, *arguments):
        calls.append(1)
        if len(calls) == 5:
            raise RuntimeError("the engine is dead")
        return generate(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "generate", die)
        with pytest.raises(PluginError, match="vLLM failed in the generation"):
            fit(broken.recipe)
    assert list((broken.run / "checkpoints").glob("step-*"))
    fit(broken.recipe, resume="auto")
    assert same(weights(broken.run), weights(whole.run))


def test_a_saved_run_answers_by_the_engine_as_in_its_last_pass(
    whole: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The engine begins with the restored weights, not with those that the policy was made with. Another one, on
    request, gives the same greedy answer."""
    again = tmp_path / "again.jsonl"
    assert command("eval", whole.run, "--split", "valid", "--predictions", again) == 0
    assert again.read_text() == (whole.run / "predictions-valid.jsonl").read_text()
    answers, picture = [], tmp_path / "eye.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (56, 56, 3), dtype=np.uint8)).save(picture)
    for engine in ("vllm", "torch"):
        capsys.readouterr()
        words = (whole.run, "What is on this picture?", "--image", picture, "--engine", engine, "--raw")
        assert command("predict", *words) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1] != ""


@pytest.mark.slow
@pytest.mark.parametrize("team", [{}, {"tensor_parallel": 2, "prompts": 3}], ids=["an engine each", "one for both"])
def test_two_processes(tmp_path: Path, team: dict[str, int]) -> None:
    """Sharded over two ranks (FSDP2, gloo): every sync gathers the weights, and every one is probed. With one engine
    for both, the ranks ask for two cases and one."""
    rollout = ROLLOUT | {"probe_every": 1} | team
    stage = {"name": "rl", "objective": "policy_gradient", "advantage": "grpo", "optimizer": {"lr": 1.0e-3}, "steps": 2}
    run = site(tmp_path, rollout=rollout, stages=[stage], rewards={"format": {"weight": 1.0}})
    words = [sys.executable, "-m", "qoqmed", "fit", str(run.recipe), "trainer.devices=2"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [row for row in metrics(run.run) if "loss" in row]
    assert len(rows) == 2 and all(row["sampling/logp_difference/max"] < 1e-4 for row in rows)
