"""Two processes that share one engine (`tensor_parallel: 2`): exact, in step, and told of each other's failures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import served
import team_ranks
import two_teams

from qoqmed.errors import UserError
from qoqmed.policy.handle import LivePolicy
from qoqmed.rollouts.vllm import VllmRollouts

KINDS = (("qwen2_5_vl", "untied"), ("qwen3_vl", "tied"))
Told = tuple[dict[str, Any], dict[str, Any]]


@pytest.fixture(scope="module", params=KINDS, ids=" ".join)
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[tuple[str, str], Told]:
    """A policy's kind and what its two processes tell."""
    folder = tmp_path_factory.mktemp("ranks")
    launched(2, team_ranks.__file__, *request.param, folder)
    first, second = (json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1))
    return request.param, (first, second)


def launched(processes: int, *words: object) -> str:
    """What processes of torchrun's write."""
    launch = ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", *(str(word) for word in words)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(place for place in sys.path if place)}
    command = [sys.executable, "-m", *launch]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def joined(told: Told, *path: str) -> dict[str, Any]:
    """Of all cases, by id."""
    rows: dict[str, Any] = {}
    for part in told:
        for name in path:
            part = part[name]
        rows |= part
    assert set(rows) == set(served.KINDS)
    return rows


def tokens(rows: dict[str, Any]) -> dict[str, list[list[int]]]:
    return {case: [ids for ids, _ in group] for case, group in rows.items()}


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_team_agrees_with_trainer_and_transformers(ranks: tuple[Any, Told], when: str) -> None:
    """Before and after five steps of AdamW; text, pictures and ECGs; media tokens banned on both sides."""
    told = ranks[1]
    greedy = {case: ids for case, (ids,) in tokens(joined(told, when, "greedy")).items()}
    assert greedy == joined(told, when, "transformers")
    assert max(part[when]["furthest"] for part in told) < 1e-4
    if when == "after":
        before = tokens(joined(told, "before", "greedy"))
        assert all(before[case] != [ids] for case, ids in greedy.items())


@pytest.mark.slow
def test_rollouts_do_not_depend_on_which_process_asks_nor_on_the_order(ranks: tuple[Any, Told]) -> None:
    """Also where one of the two has nothing to ask, or neither has."""
    told = ranks[1]
    drawn = joined(told, "before", "drawn")
    assert joined(told, "splits", "uneven") == drawn  # bit for bit
    for split in ("another order", "all on the first", "all on the second"):
        rows = joined(told, "splits", split)
        assert tokens(rows) == tokens(drawn)
        for case, group in rows.items():
            for (_, mine), (_, theirs) in zip(group, drawn[case], strict=True):
                assert mine == pytest.approx(theirs, abs=1e-5)
    assert [part["splits"]["none"] for part in told] == [{}, {}]


@pytest.mark.slow
def test_both_processes_see_the_same_tokens_and_log_probs(ranks: tuple[Any, Told]) -> None:
    first, second = ranks[1]
    assert first["of all"] == second["of all"] and len(first["of all"]) == 6 * 3


@pytest.mark.slow
def test_a_team_samples_what_a_process_alone_does(ranks: tuple[Any, Told]) -> None:
    (backbone, tied), told = ranks
    loaded = served.load(backbone, tied == "tied")
    with served.engine(served.handle(loaded)) as engine:
        out = engine.generate(served.prompts(loaded), team_ranks.DRAWN, served.SEEDS)
    alone = dict(zip(served.KINDS, [[list(ids) for ids in group] for group in served.tokens(out)], strict=True))
    assert tokens(joined(told, "before", "drawn")) == alone


@pytest.mark.slow
def test_what_one_process_meets_both_are_told(ranks: tuple[Any, Told]) -> None:
    """The longest prompt is the first process's alone, and the second one alone dies."""
    for part in ranks[1]:
        assert "a prompt with its answer does not fit into the engine" in part["too long"] and part["and then"]
        assert "the processes of one engine have sampled unlike tokens" in part["unlike"]
        assert "vLLM failed in the generation" in part["dead"] and "RuntimeError: out of luck" in part["dead"]
        assert "with 3 attention heads" in part["three heads"] and "3, with 2 processes" in part["three a team"]


@pytest.mark.slow
def test_two_teams_have_an_engine_each() -> None:
    told = launched(4, two_teams.__file__)
    for rank, places in enumerate(two_teams.OWN):
        assert f"process {rank}: {len(places)} answers, those of transformers" in told


def test_a_team_needs_more_processes(policy: LivePolicy) -> None:
    with pytest.raises(UserError, match="do not make whole teams") as error:
        VllmRollouts(tensor_parallel=2).start(policy)
    (problem,) = error.value.problems
    assert problem.where == "rollout.tensor_parallel" and problem.got == "2, with 1 process"
    assert problem.mend.startswith("rollout.tensor_parallel=1, or a multiple of 2 processes")
