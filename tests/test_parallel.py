"""Two processes on a CPU, sharded by FSDP2, against one: the same weights, metrics and evaluations."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_run import RECIPE, Place, evaluations, metrics, place, read, weights

from qoqmed import checkpoint
from qoqmed.fit import fit

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("tiny")]

# Five cases: a step of four, then one of a single case, in which the second process has none. Three valid cases.
SOURCE = RECIPE["data"]["train"][0]
DATA = RECIPE["data"] | {"train": [SOURCE | {"size": 5}], "valid": [SOURCE | {"size": 3, "seed": 2}]}
# A large eps: Adam's first steps divide by the gradient itself, which lifts the rounding of gradients near 0.
STAGES = [stage | {"steps": 2, "optimizer": stage["optimizer"] | {"eps": 1e-5}} for stage in RECIPE["stages"]]
BY_RANK = ("logp_difference/mean", "logp_difference/max")
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "qoqmed"]


def start(site: Path, *words: object, environment: Mapping[str, str] = MappingProxyType({})) -> subprocess.Popen[str]:
    """`python -m WORDS` in a process group of its own, as a terminal would."""
    given = os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"} | environment
    command = [sys.executable, "-m", *(str(word) for word in words)]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, env=given, text=True, start_new_session=True, **pipes)


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    """Its output, once it has ended as it should."""
    try:
        told, _ = process.communicate(timeout=300)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == code, told
    return told


def assert_close(mine: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert mine.keys() == theirs.keys()
    worst = {name: float((theirs[name] - value).abs().max()) for name, value in mine.items()}
    assert max(worst.values()) < 1e-5, sorted(worst.items(), key=lambda item: -item[1])[:5]


@pytest.fixture(scope="module")
def alone(tiny: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    return fit(place(tmp_path_factory.mktemp("alone"), stages=STAGES, data=DATA).recipe).folder


@pytest.fixture
def here(tiny: None, tmp_path: Path) -> Place:
    return place(tmp_path, stages=STAGES, data=DATA)


def test_two_processes_learn_what_one_does(here: Place, alone: Path, site: Path) -> None:
    finish(start(site, *TORCHRUN, "fit", here.recipe, "trainer.strategy=fsdp2", "trainer.devices=2"))
    for step in (2, 4):
        mine, theirs = (checkpoint.load(run / "checkpoints" / f"step-0000000{step}") for run in (alone, here.run))
        assert_close(mine.tensors["policy"], theirs.tensors["policy"])
    for rows in zip(metrics(alone), metrics(here.run), strict=True):
        mine, theirs = ({name: row[name] for name in row if not name.endswith(BY_RANK)} for row in rows)
        assert theirs == pytest.approx(mine, rel=1e-4, abs=1e-4)
    assert [row["greedy"] for row in evaluations(here.run)] == [row["greedy"] for row in evaluations(alone)]
    traced = [row["case"] for path in sorted((here.run / "traces").glob("*1-0000?.jsonl")) for row in read(path)]
    assert len(traced) == 4 == len(set(traced))  # each process its own


def test_two_processes_train_adapters_as_one_does(tiny: None, tmp_path: Path, site: Path) -> None:
    """With LoRA, a pack without an ECG reaches no trained weight below the first layer: each rank goes all the way."""
    pytest.importorskip("peft")
    words = ["model.lora={rank: 2}", "stages.0.train=[encoders, projectors, language_model]"]
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one = fit(place(tmp_path / "one", stages=STAGES, data=DATA).recipe, words).folder
    two = place(tmp_path / "two", stages=STAGES, data=DATA)
    finish(start(site, *TORCHRUN, "fit", two.recipe, "trainer.strategy=fsdp2", "trainer.devices=2", *words))
    assert_close(weights(one), weights(two.run))


K1 = {"name": "policy_gradient", "kl": "k1", "kl_weight": 0.05, "minibatch": 2}
METHODS = [
    {"name": "ppo", "objective": K1, "advantage": {"name": "gae", "lam": 0.9}},
    {"name": "remax", "objective": K1, "advantage": {"name": "remax"}},
    {"name": "tokens", "objective": K1, "advantage": {"name": "reinforce_pp"}},
    {"name": "again", "objective": K1, "advantage": {"name": "rloo"}, "equal_groups": "resample"},
    {"name": "window", "objective": {"name": "policy_gradient"}, "advantage": {"name": "drpo", "window": 2}},
    {"name": "pairs", "objective": {"name": "dpo"}, "advantage": None},
]


def test_two_processes_run_every_method_as_one_does(tiny: None, tmp_path: Path, site: Path) -> None:
    """A value head, greedy baselines, advantages of tokens, a window of steps, pairs: one after another."""
    stages = [stage | {"steps": 2, "optimizer": STAGES[1]["optimizer"]} for stage in METHODS]
    data = DATA | {"train": [SOURCE | {"size": 8}], "valid": []}
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one = fit(place(tmp_path / "one", stages=stages, data=data).recipe, ["trainer.keep=9"]).folder
    two = place(tmp_path / "two", stages=stages, data=data)
    words = ("trainer.strategy=fsdp2", "trainer.devices=2", "trainer.keep=9")
    finish(start(site, *TORCHRUN, "fit", two.recipe, *words))
    for step in range(2, 2 * len(METHODS) + 1, 2):
        mine, theirs = (checkpoint.load(run / "checkpoints" / f"step-{step:08d}") for run in (one, two.run))
        assert_close(mine.tensors["policy"], theirs.tensors["policy"])


def test_devices_start_processes_and_ctrl_c_saves_for_any_number_of_them(here: Place, alone: Path, site: Path) -> None:
    """`trainer.devices=2` needs no torchrun. One process goes on from what two had saved."""
    process = start(site, "qoqmed", "fit", here.recipe, "trainer.devices=2")
    while not (met := heartbeat(here.run)) or met["step"] < 1:
        assert process.poll() is None, finish(process)
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    told = finish(process, code=130)
    assert f"go on with --resume {here.run}" in told and "Traceback" not in told
    (saved,) = (here.run / "checkpoints").glob("step-*")
    assert json.loads((saved / "COMPLETE").read_text())["world"] == 2
    assert fit(here.recipe, resume="auto").finished
    assert_close(weights(alone), weights(here.run))
    assert [row["greedy"] for row in evaluations(here.run)] == [row["greedy"] for row in evaluations(alone)]


def with_a_bad_row(tmp_path: Path) -> Place:
    """A step of four rows, of which the last one, the second process's, has no picture."""
    rows = [
        {"id": f"eye-{i}", "domain": "fundus", "media": {"image": f"{i}.png"}, "labels": ["x"], "label_space": ["x"]}
        for i in range(4)
    ]
    for i in range(3):
        Image.fromarray(np.full((56, 56, 3), 50 * i, np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DATA | {"root": str(tmp_path), "train": [{"name": "jsonl", "path": "rows.jsonl"}], "valid": []}
    return place(tmp_path, data=data)


def test_bad_data_of_one_process_is_told_once(tmp_path: Path, site: Path) -> None:
    """By all of them to their launcher: the other one would wait for ever in a collective."""
    here = with_a_bad_row(tmp_path)
    told = finish(start(site, "qoqmed", "fit", here.recipe, "trainer.devices=2"), code=2)
    assert told.count("error: eye-3: the path does not exist") == told.count("eye-3") == 1
    assert all(noise not in told for noise in ("Traceback", "exitcode", "closing signal", "FAILED"))
    assert not here.run.exists()


def test_bad_data_under_torchrun_are_told_by_rank_0_and_by_torchrun(tmp_path: Path, site: Path) -> None:
    told = finish(start(site, *TORCHRUN, "fit", with_a_bad_row(tmp_path).recipe, "trainer.devices=2"), code=1)
    assert told.count("error: eye-3: the path does not exist") == 1 and "exitcode  : 2" in told


def tasks(site: Path, *words: object) -> list[subprocess.Popen[str]]:
    """Two processes as srun starts the tasks of a job: SLURM's own variables, and none of torchrun's."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}
    job |= {"SLURM_NNODES": "1", "SLURM_NODELIST": "127.0.0.1", "SLURM_NODEID": "0", "MASTER_PORT": str(port)}
    ranks = [{"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in range(2)]
    return [start(site, *words, environment=job | rank) for rank in ranks]


def test_a_job_of_srun_has_its_own_number_of_processes(here: Place, alone: Path, site: Path) -> None:
    """The recipe says one; the job's two tasks find each other and learn what one process does."""
    for process in tasks(site, "qoqmed", "fit", here.recipe, "trainer.devices=1"):
        finish(process)
    (saved,) = (here.run / "checkpoints").glob("step-00000004")
    assert json.loads((saved / "COMPLETE").read_text())["world"] == 2
    assert_close(weights(alone), weights(here.run))


def test_bad_data_of_a_job_are_told_by_rank_0(tmp_path: Path, site: Path) -> None:
    first, second = (finish(p, code=2) for p in tasks(site, "qoqmed", "fit", with_a_bad_row(tmp_path).recipe))
    assert first.count("error: eye-3: the path does not exist") == 1
    assert "rank 1 stopped: eye-3: the path does not exist\n" in second and "expected:" not in second


def heartbeat(run: Path) -> dict[str, Any]:
    file = run / "heartbeat.json"
    return json.loads(file.read_text()) if file.exists() else {}
