"""Responses of one kind to several cases, read, judged and combined: what a recipe's rewards pay for them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qoqmed.boxes import AbsoluteFrame
from qoqmed.contracts import Reward, Task
from qoqmed.errors import PluginError
from qoqmed.geometry import Geometry
from qoqmed.rewards.combine import combine, judge
from qoqmed.rewards.routing import Routing
from qoqmed.types import SPATIAL, Case, Reading, Rollout, Status, Verdict

SIDE = 1_000  # pixels of the frame in which boxes are written and read: no picture is decoded
CHARACTERS = 4  # a token, about, for rewards of length

Response = tuple[Case, str]


@dataclass(frozen=True)
class Tried:
    """One kind of response over the cases. score: mean of the combined reward, None where nothing could be scored.

    highest: of one case. rewards: mean of each where it applies. reasons: of each, where the response scored highest.
    broken: what was invalid, timed out or left its range. seconds: of reading and judging, a response.
    """

    name: str
    responses: int
    score: float | None
    highest: float | None
    rewards: Mapping[str, float | None]
    reasons: Mapping[str, str]
    broken: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class Trial:
    """The rewards of a recipe with their weights, and the tasks that read."""

    rewards: Mapping[str, Reward]
    weights: Mapping[str, float]
    routing: Routing
    tasks: Mapping[str, Task]

    def __call__(self, name: str, responses: Sequence[Response]) -> Tried:
        started = time.perf_counter()
        cases = [case for case, _ in responses]
        rollouts = [Rollout(case.id, 0, (0,) * (len(text) // CHARACTERS + 1), text) for case, text in responses]
        readings = [self.tasks[case.task].read(text, case, frame_of(case)) for case, text in responses]
        columns = {key: self._column(key, cases, rollouts, readings) for key in self.rewards}
        verdicts = [{key: column[place] for key, column in columns.items()} for place in range(len(cases))]
        scores = [self._combined(case, own) for case, own in zip(cases, verdicts, strict=True)]
        best = max(range(len(scores)), key=lambda place: -1.0 if (score := scores[place]) is None else score)
        every = [verdict for own in verdicts for verdict in own.values()]
        return Tried(
            name,
            len(responses),
            _mean(scores),
            scores[best],
            {key: _mean([verdict.value for verdict in column]) for key, column in columns.items()},
            {key: verdict.reason for key, verdict in verdicts[best].items()},
            tuple(dict.fromkeys(verdict.reason for verdict in every if verdict.status is Status.INVALID)),
            (time.perf_counter() - started) / len(responses),
        )

    def _column(
        self, key: str, cases: Sequence[Case], rollouts: Sequence[Rollout], readings: Sequence[Reading]
    ) -> list[Verdict]:
        try:
            return [own[key] for own in judge({key: self.rewards[key]}, cases, rollouts, readings, self.routing)]
        except PluginError as error:  # kept as a value: a reward that breaks its contract is what is looked for
            return [Verdict.invalid(str(error))] * len(cases)

    def _combined(self, case: Case, verdicts: Mapping[str, Verdict]) -> float | None:
        return combine(verdicts, self.routing.weights(self.weights, case.domain), self.routing.shares)


def frame_of(case: Case) -> AbsoluteFrame:
    geometry = Geometry(SIDE, SIDE, SIDE, SIDE, 1, 1)
    return AbsoluteFrame([geometry if medium.modality in SPATIAL else None for medium in case.media])


def _mean(values: Sequence[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return sum(found) / len(found) if found else None
