"""Slow rewards in processes of their own: order, time limits, deaths, errors; nothing is left behind."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from fake_distribution import install

from qoqmed import registry
from qoqmed.build import make_reward
from qoqmed.config.schema import RewardConfig
from qoqmed.errors import DataError, PluginError
from qoqmed.rewards.combine import judge
from qoqmed.rewards.pool import Pooled
from qoqmed.types import Case, Reading, Rollout, Status, Target, Verdict

CODE = '''
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from qoqmed.errors import DataError, Problem
from qoqmed.types import Verdict


class Obedient:
    """Does what the response says."""

    low, high = 0.0, 1.0

    def __init__(self, folder: str = ".", started: str = "", only_here: bool = False):
        self.folder = Path(folder)
        if only_here and "qoqmed.rewards.worker" in sys.argv[0].replace(os.sep, "."):
            raise RuntimeError("not made in a worker")

    def score(self, cases, rollouts, readings):
        assert len(cases) == 1
        word, _, rest = rollouts[0].text.partition(" ")
        if word == "sleep":
            time.sleep(float(rest))
        if word == "regex":
            re.match("(a+)+$", "a" * 60 + "b")
        if word == "raise":
            raise KeyError(rest)
        if word == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if word == "die_once" and not (self.folder / "died").exists():
            (self.folder / "died").touch()
            os._exit(3)
        if word == "crash":
            import ctypes
            ctypes.string_at(0)
        if word == "child":
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
            (self.folder / "child").write_text(str(child.pid))
            time.sleep(100)
        if word == "range":
            return [Verdict(7.0)]
        if word == "mask":
            raise DataError(Problem("no mask", where=cases[0].id))
        print("said by a reward")
        return [Verdict(1.0, reason=f"{cases[0].id} {os.getpid()}")]
'''


@pytest.fixture
def slow_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    install(tmp_path, "slow-rewards", {"rewards": {"obedient": "slow_rewards:Obedient"}}, CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def pooled(slow_site: Path, workers: int = 1, timeout_s: float | None = None, **arguments: Any) -> Pooled:
    given = {"folder": str(slow_site), **arguments}
    reward = make_reward("mine", RewardConfig("obedient", workers=workers, timeout_s=timeout_s, arguments=given))
    assert isinstance(reward, Pooled)
    return reward


def judged(reward: Any, *texts: str) -> list[Verdict]:
    cases = [Case(f"case{place}", "ct", "d", "t", "", (), ("x",), Target(labels=("x",))) for place in range(len(texts))]
    rollouts = [Rollout(case.id, 0, (), text) for case, text in zip(cases, texts, strict=True)]
    return [verdicts["mine"] for verdicts in judge({"mine": reward}, cases, rollouts, [Reading()] * len(texts))]


def pids(reward: Pooled) -> list[int]:
    return [process._popen.pid for process in reward._processes]


def gone(pid: int) -> bool:
    """Within seconds: a killed process that is nobody's child any more is taken away by init."""
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        if "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text():
            return True
        time.sleep(0.05)
    return False


def test_a_recipe_says_where_a_reward_runs(slow_site: Path) -> None:
    plain = make_reward("mine", RewardConfig("obedient"))
    assert not isinstance(plain, Pooled)
    assert (pooled(slow_site, workers=3).workers, pooled(slow_site, 0, timeout_s=2.0).workers) == (3, 1)
    reward = pooled(slow_site)
    assert (reward.low, reward.high, reward._processes) == (0.0, 1.0, [])  # nothing starts before the first response


def test_two_workers_keep_the_order(slow_site: Path, capfd: pytest.CaptureFixture[str]) -> None:
    reward = pooled(slow_site, workers=2)
    verdicts = judged(reward, "sleep 0.3", *["fine"] * 5)
    assert [verdict.value for verdict in verdicts] == [1.0] * 6
    assert [verdict.reason.split()[0] for verdict in verdicts] == [f"case{place}" for place in range(6)]
    working = {int(verdict.reason.split()[1]) for verdict in verdicts}
    assert os.getpid() not in working and working == set(pids(reward))
    assert judged(reward, "fine")[0].value == 1.0 and set(pids(reward)) == working  # they stay for the next step
    reward.close()
    assert all(gone(pid) for pid in working) and reward._processes == []
    told = capfd.readouterr()
    assert told.out == "" and "said by a reward" in told.err  # stdout is for results


@pytest.mark.parametrize("hang", ["sleep 100", "regex"])
def test_a_time_limit_is_for_each_response(slow_site: Path, hang: str) -> None:
    """A regular expression holds the interpreter's lock: nothing in Python could stop it."""
    first, late, last = judged(pooled(slow_site, timeout_s=0.5), "fine", hang, "fine")
    assert (first.value, last.value) == (1.0, 1.0)
    assert (late.status, late.value, late.reason) == (Status.INVALID, None, "reward mine: no verdict within 0.5 s")
    assert late.traceback.startswith("Timeout") and "slow_rewards.py" in late.traceback


def test_a_worker_that_outlives_its_limit_is_killed(slow_site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qoqmed.rewards import process

    monkeypatch.setattr(process, "GRACE_S", -9.5)
    late, fine = judged(pooled(slow_site, timeout_s=10), "sleep 100", "fine")
    assert late.reason == "reward mine: no verdict within 10 s" and fine.value == 1.0


def test_an_exception_is_invalid_with_its_traceback(slow_site: Path) -> None:
    reward = pooled(slow_site)
    bad, fine = judged(reward, "raise lung", "fine")
    assert (bad.status, bad.reason) == (Status.INVALID, "reward mine: KeyError: 'lung'")
    assert "slow_rewards.py" in bad.traceback and "raise KeyError(rest)" in bad.traceback and fine.value == 1.0


def test_a_death_costs_one_response(slow_site: Path) -> None:
    killed, crashed, fine, once = judged(pooled(slow_site), "die", "crash", "fine", "die_once")
    assert (killed.status, killed.reason) == (Status.INVALID, "reward mine: its process died: SIGKILL")
    assert crashed.reason == "reward mine: its process died: SIGSEGV" and "string_at" in crashed.traceback
    assert (fine.value, once.value) == (1.0, 1.0)  # a response is tried again: what killed its worker may be another's


def test_a_worker_killed_while_idle_costs_nothing(slow_site: Path) -> None:
    reward = pooled(slow_site)
    judged(reward, "fine")
    (pid,) = pids(reward)
    os.kill(pid, signal.SIGKILL)
    assert [verdict.value for verdict in judged(reward, "fine", "fine")] == [1.0, 1.0]
    assert pid not in pids(reward)


def test_what_a_reward_has_started_ends_with_it(slow_site: Path) -> None:
    (late,) = judged(pooled(slow_site, timeout_s=1.5), "child")
    assert late.status is Status.INVALID and gone(int((slow_site / "child").read_text()))


def test_errors_that_end_a_run_do_so_from_workers(slow_site: Path) -> None:
    reward = pooled(slow_site, workers=2)
    with pytest.raises(PluginError, match=r"left its range(.|\n)*7"):
        judged(reward, "range", "sleep 1")
    assert reward._processes == []  # none may answer the next call with what is left of this one
    with pytest.raises(DataError, match="case1: no mask"):
        judged(reward, "fine", "mask")
    assert judged(reward, "fine")[0].reason.startswith("case0")


def test_a_worker_that_cannot_make_the_reward_says_why(slow_site: Path) -> None:
    with pytest.raises(PluginError, match=r"a worker cannot make this reward(.|\n)*not made in a worker"):
        judged(pooled(slow_site, only_here=True), "fine")


def test_workers_end_with_their_pool(slow_site: Path) -> None:
    reward = pooled(slow_site)
    judged(reward, "fine")
    (pid,) = pids(reward)
    del reward
    assert gone(pid)


def test_workers_are_light(slow_site: Path) -> None:
    """A reward that needs no torch does not load it in every worker."""
    import subprocess
    import sys

    loaded = "[m for m in ('torch', 'transformers', 'lightning') if m in sys.modules]"
    code = f"import sys, qoqmed.rewards.worker; print({loaded})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert registry.find("rewards", "obedient").distribution == "slow-rewards"


def test_tracebacks_stand_in_traces_that_may_hold_text() -> None:
    from qoqmed.report.traces import trace_rows
    from qoqmed.types import Group

    nothing: Any = None
    verdicts = {"mine": Verdict.invalid("failed", "Traceback: of a patient's text"), "other": Verdict(1.0)}
    case = Case("a", "ct", "d", "t", "", (), ("x",), Target(labels=("x",)))
    group = Group(case, nothing, (Rollout("a", 0, (), "text"),), (Reading(),), (verdicts,), (None,))
    (ids,) = trace_rows(group, 1, "s", "ids")
    assert "patient" not in str(ids) and ids["reasons"]["mine"] == "failed"
    (text,) = trace_rows(group, 1, "s", "text")
    assert text["tracebacks"] == {"mine": "Traceback: of a patient's text"}


@pytest.mark.usefixtures("tiny")
def test_a_run_with_workers_learns_the_same(tmp_path: Path) -> None:
    """Bit for bit; no process of the rewards is left after it."""
    from tiny_run import RECIPE, metrics, place

    from qoqmed.fit import fit

    window = {"name": "length_window", "shortest": 0, "longest": 4, "ramp": 60, "unit": "characters"}
    stages, found = [{**RECIPE["stages"][1], "steps": 1}], []
    for name, more in (("plain", {}), ("workers", {"workers": 2, "timeout_s": 100.0})):
        (tmp_path / name).mkdir()
        here = place(tmp_path / name, stages=stages, rewards={"length": {**window, **more}})
        fit(here.recipe)
        found.append(metrics(here.run))
    assert found[0] == found[1] and any(row.get("reward_std", 0) > 0 for row in found[0])
    assert not [line for line in Path("/proc/self/task").glob("*/children") if "worker" in children(line)]


def children(file: Path) -> str:
    """Command lines of a thread's child processes."""
    paths = [Path(f"/proc/{pid}/cmdline") for pid in file.read_text().split()]
    return " ".join(path.read_text() for path in paths if path.is_file())
