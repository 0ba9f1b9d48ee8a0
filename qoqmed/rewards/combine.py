"""Rewards of rollouts: every reward called at one boundary, its verdicts checked, then one number a rollout."""

from __future__ import annotations

import math
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from qoqmed.contracts import Reward
from qoqmed.errors import PluginError, Problem, UserError
from qoqmed.rewards.routing import Routing
from qoqmed.types import Case, Reading, Rollout, Status, Verdict

ROUNDING = 1e-6  # a value may leave its declared range by this much


def combine(
    verdicts: Mapping[str, Verdict],
    weights: Mapping[str, float],
    shares: Mapping[str, str] = {},
) -> float | None:
    """The weighted mean over the applicable rewards: sum of weight * value / sum of their weights.

    shares: of rewards that share one weight, the name of what they share: each one's weight is divided by how many of
    them apply (QoQ-Med's auxiliary 0.2 is the mean of format and visual coherence, or format's alone).
    None, which leaves the rollout out of training, where any reward of positive weight is invalid, or where none of
    positive weight is applicable (such a rollout has no reward: 0 would call it bad). Weight 0: logged, not counted.
    """
    counted = {name: verdict for name, verdict in verdicts.items() if weights[name] > 0}
    if any(verdict.status is Status.INVALID for verdict in counted.values()):
        return None
    applicable = {name: verdict.value for name, verdict in counted.items() if verdict.value is not None}
    if not applicable:
        return None
    sharing = Counter(shares[name] for name in applicable if name in shares)
    parts = {name: weights[name] / (sharing[shares[name]] if name in shares else 1) for name in applicable}
    return sum(parts[name] * value for name, value in applicable.items()) / sum(parts.values())


def judge(
    rewards: Mapping[str, Reward],
    cases: Sequence[Case],
    rollouts: Sequence[Rollout],
    readings: Sequence[Reading],
    routing: Routing = Routing(),  # noqa: B008
) -> tuple[Mapping[str, Verdict], ...]:
    """Verdicts by reward name, one mapping a rollout; cases, rollouts and readings run parallel.

    A reward that raises is invalid for all these rollouts, with its name, the cause and its traceback. A `UserError`
    (a mask that was not loaded, ...) passes through. Raises PluginError where a reward breaks its contract.
    routing: a reward is asked for the cases of its domains alone, and not applicable to the others.
    """
    columns = {}
    for name, reward in rewards.items():
        asked = [place for place, case in enumerate(cases) if routing.asks(name, case.domain)]
        column = [Verdict.not_applicable(f"{name} has the weight 0 in {case.domain}") for case in cases]
        if asked:
            mine = [(cases[place], rollouts[place], readings[place]) for place in asked]
            for place, verdict in zip(asked, _column(name, reward, *zip(*mine, strict=True)), strict=True):
                column[place] = verdict
        columns[name] = column
    return tuple({name: column[index] for name, column in columns.items()} for index in range(len(rollouts)))


def _column(
    name: str, reward: Reward, cases: Sequence[Case], rollouts: Sequence[Rollout], readings: Sequence[Reading]
) -> list[Verdict]:
    try:
        verdicts: Any = reward.score(cases, rollouts, readings)
    except UserError:
        raise
    except Exception as error:  # boundary: third-party code; one broken reward must not end a run of weeks
        reason = f"reward {name}: {type(error).__name__}: {error}"
        return [Verdict.invalid(reason, traceback.format_exc())] * len(rollouts)
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
    return Verdict(number, reason=verdict.reason, source=verdict.source)


def _broken(name: str, reward: Reward, what: str, got: str, expected: str) -> PluginError:
    kind = type(reward)
    where = f"qoqmed.rewards {name} ({kind.__module__}:{kind.__qualname__})"
    return PluginError(Problem(what, where, got, expected, "mend the reward's score()"))
