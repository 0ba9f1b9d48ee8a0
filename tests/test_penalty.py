"""A reward that may be negative: it counts in the advantage, but DRPO's mean rewards are of the others."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from qoqmed.actor import Actor, Admitted
from qoqmed.advantages.drpo import DRPO
from qoqmed.estimating import Known, estimate
from qoqmed.types import Case, Group, Reading, Rollout, Sampling, Target, Verdict

CASE = Case("a", "ct", "d", "t", "", (), ("x",), Target(labels=("x",)))


class Task:
    low, high = 0.0, 1.0

    def score(self, cases: Any, rollouts: Any, readings: Any) -> list[Verdict]:
        return [Verdict(float(rollout.index)) for rollout in rollouts]


class Penalty:
    low, high = -1.0, 0.0

    def score(self, cases: Any, rollouts: Any, readings: Any) -> list[Verdict]:
        return [Verdict(-1.0) for _ in rollouts]


def judged(rewards: dict[str, Any]) -> Group:
    task = SimpleNamespace(read=lambda text, case, frame: Reading())
    prompter: Any = SimpleNamespace(task=lambda case: task, frame=lambda prompt: None)
    nothing: Any = None
    actor = Actor(nothing, prompter, nothing, rewards, dict.fromkeys(rewards, 0.5), nothing)
    step = actor.at(Admitted((), (), ()), Sampling())
    return step.judge([Group(CASE, nothing, (Rollout("a", 0, (), ""), Rollout("a", 1, (), "")))])[0]


def test_difficulty_leaves_the_penalty_out() -> None:
    group = judged({"task": Task(), "penalty": Penalty()})
    assert group.rewards == (-0.5, 0.0)  # (0.5 * 0 - 0.5) / 1 and (0.5 * 1 - 0.5) / 1
    assert group.difficulty == (0.0, 1.0)
    assert judged({"task": Task()}).difficulty == ()


def test_drpo_takes_its_mean_reward_from_the_difficulty() -> None:
    found = estimate(
        DRPO(cluster=False, kl_damping=False), [judged({"task": Task(), "penalty": Penalty()})], [0], Known()
    )
    assert found.all_ranks.diagnostics.domains["ct"].mean_reward == pytest.approx(0.5)
    assert found.advantages[0][0] < 0 < found.advantages[0][1]
