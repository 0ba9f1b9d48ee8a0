"""Rewards of rollouts: every reward called at one boundary, its verdicts checked, then one number a rollout."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from qoqmed.contracts import Reward
from qoqmed.errors import PluginError, Problem, UserError
from qoqmed.types import Case, Reading, Rollout, Status, Verdict

ROUNDING = 1e-6  # a value may leave its declared range by this much


def combine(verdicts: Mapping[str, Verdict], weights: Mapping[str, float]) -> float | None:
    """The weighted mean over the applicable rewards: sum of weight * value / sum of their weights.

    None, which leaves the rollout out of training, where any reward of positive weight is invalid, or where none of
    positive weight is applicable (such a rollout has no reward: 0 would call it bad). Weight 0: logged, not counted.
    """
    counted = [(weights[name], verdict) for name, verdict in verdicts.items() if weights[name] > 0]
    if any(verdict.status is Status.INVALID for _, verdict in counted):
        return None
    applicable = [(weight, verdict.value) for weight, verdict in counted if verdict.value is not None]
    if not applicable:
        return None
    return sum(weight * value for weight, value in applicable) / sum(weight for weight, _ in applicable)


def judge(
    rewards: Mapping[str, Reward], cases: Sequence[Case], rollouts: Sequence[Rollout], readings: Sequence[Reading]
) -> tuple[Mapping[str, Verdict], ...]:
    """Verdicts by reward name, one mapping a rollout; cases, rollouts and readings run parallel.

    A reward that raises is invalid for all these rollouts, with its name and the cause. A `UserError` (a mask that
    was not loaded, ...) passes through. Raises PluginError where a reward breaks its contract.
    """
    columns = {name: _column(name, reward, cases, rollouts, readings) for name, reward in rewards.items()}
    return tuple({name: column[index] for name, column in columns.items()} for index in range(len(rollouts)))


def _column(
    name: str, reward: Reward, cases: Sequence[Case], rollouts: Sequence[Rollout], readings: Sequence[Reading]
) -> list[Verdict]:
    try:
        verdicts: Any = reward.score(cases, rollouts, readings)
    except UserError:
        raise
    except Exception as error:  # boundary: third-party code; one broken reward must not end a run of weeks
        return [Verdict.invalid(f"reward {name}: {type(error).__name__}: {error}")] * len(rollouts)
    if not isinstance(verdicts, Sequence) or len(verdicts) != len(rollouts):
        got = f"{len(verdicts)} verdicts" if isinstance(verdicts, Sequence) else f"a {type(verdicts).__name__}"
        raise _broken(name, reward, "gave the wrong number of verdicts", got, f"{len(rollouts)}, one a rollout")
    return [_checked(name, reward, verdict) for verdict in verdicts]


def _checked(name: str, reward: Reward, verdict: Any) -> Verdict:
    if not isinstance(verdict, Verdict):
        raise _broken(name, reward, "gave something else than a Verdict", repr(verdict)[:80], "qoqmed.types.Verdict")
    value: Any = verdict.value
    if verdict.status is not Status.OK:
        if value is not None:
            raise _broken(name, reward, f"gave a value with status {verdict.status.value}", repr(value)[:80], "None")
        return verdict
    if not isinstance(value, Real):
        raise _broken(name, reward, "gave no number", repr(value)[:80], "a float")
    number = float(value)
    if not math.isfinite(number):
        return Verdict.invalid(f"reward {name} gave {number}")
    if not reward.low - ROUNDING <= number <= reward.high + ROUNDING:
        raise _broken(name, reward, "left its range", f"{number:g}", f"[{reward.low:g}, {reward.high:g}]")
    return Verdict(number, reason=verdict.reason)


def _broken(name: str, reward: Reward, what: str, got: str, expected: str) -> PluginError:
    kind = type(reward)
    where = f"qoqmed.rewards {name} ({kind.__module__}:{kind.__qualname__})"
    return PluginError(Problem(what, where, got, expected, "mend the reward's score()"))
