"""How many processes there are, by the recipe, torchrun or SLURM, from the environment that each of them gives."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from qoqmed.errors import UserError
from qoqmed.parallel import count_devices, slurm_tasks, under_launcher

NAMES = ("NTASKS", "NTASKS_PER_NODE", "NNODES", "PROCID", "LOCALID", "NODEID", "JOB_ID", "STEP_ID", "JOB_NAME")
STEP = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"}
GRID = {"SLURM_NTASKS": "8", "SLURM_NTASKS_PER_NODE": "4", "SLURM_NNODES": "2"}


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment in which nothing has launched this process."""
    for name in [*(f"SLURM_{name}" for name in NAMES), "LOCAL_RANK", "TORCHELASTIC_RUN_ID", "LOCAL_WORLD_SIZE"]:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def given(patch: pytest.MonkeyPatch, environment: Mapping[str, str]) -> None:
    for name, value in environment.items():
        patch.setenv(name, value)


def test_without_a_launcher_the_recipe_counts(launched: pytest.MonkeyPatch) -> None:
    assert not under_launcher()
    assert (count_devices(3, "cpu"), count_devices("auto", "cpu")) == (3, 1)


def test_torchrun_counts_for_more_than_the_recipe_and_the_job_around_it(launched: pytest.MonkeyPatch) -> None:
    given(launched, {"TORCHELASTIC_RUN_ID": "x", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"} | STEP | GRID)
    assert under_launcher() and count_devices(3, "cpu") == 2


def test_a_job_counts_for_more_than_the_recipe(launched: pytest.MonkeyPatch) -> None:
    given(launched, STEP | GRID)
    assert under_launcher() and count_devices("auto", "cuda") == 4 and slurm_tasks() == (4, 2)


@pytest.mark.parametrize("more", [{}, {"SLURM_NTASKS": "8", "SLURM_JOB_NAME": "bash"}])
def test_a_job_of_one_task_and_an_interactive_one_are_as_without_slurm(
    launched: pytest.MonkeyPatch, more: dict[str, str]
) -> None:
    given(launched, STEP | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"} | more)
    assert not under_launcher() and count_devices(3, "cpu") == 3


@pytest.mark.parametrize(
    ("job", "text"),
    [
        ({"SLURM_JOB_ID": "7"} | GRID, "srun did not start this process"),
        (STEP | {"SLURM_NTASKS": "8", "SLURM_NNODES": "2"}, "8 tasks on 2 nodes, no number of them a node"),
        (STEP | GRID | {"SLURM_NTASKS": "7"}, "7 tasks on 2 nodes, 4 a node"),
    ],
)
def test_jobs_that_cannot_work_are_told(launched: pytest.MonkeyPatch, job: dict[str, str], text: str) -> None:
    given(launched, job)
    with pytest.raises(UserError, match=text):
        count_devices("auto", "cpu")
