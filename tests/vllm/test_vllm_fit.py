"""Whole runs on the engine `vllm`: they learn as any other, and go on exactly where they were interrupted."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import engine_dies
import numpy as np
import pytest
from PIL import Image
from tiny_run import RECIPE, Place, command, metrics, place, read, same, weights

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


def two(*words: object) -> subprocess.CompletedProcess[str]:
    """`python -m WORDS`, which starts two processes."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(place for place in sys.path if place)}
    command = [sys.executable, "-m", *(str(word) for word in words)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=400)


def shared_out(folder: Path, **rollout: object) -> Place:
    """A run for two processes. Five cases: a step of four, then one of a single case, in which the second process has
    none. Three valid cases. Two heads and one of keys and values, so that both of a team have a copy of that."""
    data, stage = RECIPE["data"], RECIPE["stages"][1]
    return site(
        folder,
        data=data | {"train": [data["train"][0] | {"size": 5}], "valid": [data["valid"][0] | {"size": 3}]},
        model={"name": "tiny", "options": OPTIONS | {"heads": 2}},
        rollout=ROLLOUT | {"probe_every": 1} | rollout,
        stages=[stage | {"steps": 2}],
    )


def check(done: subprocess.CompletedProcess[str], run: Place) -> None:
    """It has trained, on log-probs that are the trainer's."""
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [row for row in metrics(run.run) if "loss" in row]
    assert len(rows) == 2 and all(row["sampling/logp_difference/max"] < 1e-4 for row in rows)
    assert rows[0]["grad_norm"] > 0


@pytest.mark.slow
def test_two_processes_have_an_engine_each(tmp_path: Path) -> None:
    """Sharded over two ranks (FSDP2, gloo): every sync gathers the weights, and every one is probed."""
    run = shared_out(tmp_path)
    check(two("qoqmed", "fit", run.recipe, "trainer.devices=2"), run)


@pytest.mark.slow
def test_two_processes_share_an_engine(tmp_path: Path) -> None:
    """As before, `tensor_parallel: 2`. Where it dies for one, the other hears of it; both save, and go on exactly."""
    whole, broken = (shared_out(tmp_path / name, tensor_parallel=2) for name in ("whole", "broken"))
    check(two("qoqmed", "fit", whole.recipe, "trainer.devices=2"), whole)
    launch = ("torch.distributed.run", "--standalone", "--nproc_per_node=2")
    done = two(*launch, engine_dies.__file__, broken.recipe)
    assert done.returncode != 0
    assert "vLLM failed in the generation" in done.stderr and "the engine is dead" in done.stderr
    assert [path.name for path in (broken.run / "checkpoints").glob("step-*")] == ["step-00000001"]
    check(two("qoqmed", "fit", broken.recipe, "trainer.devices=2", "--resume", "auto"), broken)
    assert same(weights(broken.run), weights(whole.run))
