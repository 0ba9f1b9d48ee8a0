"""Slow rewards: one response at a time in processes of their own, each under a time limit.

A worker is a new Python process (`qoqmed.rewards.worker`), never a fork of this one, which may hold a CUDA context. It
starts with the first response and makes the reward anew from its recipe node.
"""

from __future__ import annotations

import time
import weakref
from collections import Counter, deque
from collections.abc import Sequence
from multiprocessing.connection import wait
from typing import Any

from qoqmed.config.schema import Node
from qoqmed.contracts import Reward
from qoqmed.errors import PluginError, Problem, UserError
from qoqmed.rewards.process import Died, Process
from qoqmed.types import Case, Reading, Rollout, Verdict

TRIES = 2  # of a response whose worker has died, but not of its time limit


class Pooled:
    """Contract `qoqmed.contracts.Reward`. node: the reward's, of which `reward` has been made here, too.

    A response that takes longer than timeout_s (wall clock, without the start of its worker) is invalid, with the
    traceback of where the reward was; so is one whose worker has died twice.
    """

    def __init__(self, key: str, reward: Reward, node: Node, workers: int, timeout_s: float | None = None) -> None:
        self.key, self.node, self.workers, self.timeout_s = key, node, max(workers, 1), timeout_s
        self.low, self.high = reward.low, reward.high
        self._processes: list[Process] = []
        weakref.finalize(self, _end, self._processes)

    def score(self, cases: Sequence[Case], rollouts: Sequence[Rollout], readings: Sequence[Reading]) -> list[Verdict]:
        """Raises UserError as the reward itself does, and PluginError where a worker cannot make it."""
        try:
            return self._all(list(zip(cases, rollouts, readings, strict=True)))
        except BaseException:  # boundary: whatever ends this call, no worker may answer the next one with its rest
            self.close()
            raise

    def close(self) -> None:
        """End the workers. A later call starts new ones."""
        _end(self._processes)

    def _all(self, samples: Sequence[tuple[Case, Rollout, Reading]]) -> list[Verdict]:
        verdicts: dict[int, Verdict] = {}
        waiting, tries = deque(range(len(samples))), Counter[int]()
        while len(verdicts) < len(samples):
            self._start(len(waiting))
            for process in [process for process in self._processes if process.idle]:
                if waiting and process.send(samples[waiting[0]], waiting[0]):
                    tries[waiting.popleft()] += 1
                elif waiting:  # it died while it had nothing to do
                    self._drop(process)
            for process in self._ready():
                place, answer = self._answer(process)
                if place is not None and isinstance(answer, Died) and not answer.timed_out and tries[place] < TRIES:
                    waiting.appendleft(place)
                elif place is not None:
                    verdicts[place] = self._verdict(answer)
        return [verdicts[place] for place in range(len(samples))]

    def _start(self, wanted: int) -> None:
        """Workers for so many samples, with those that have none yet."""
        free = sum(process.place is None for process in self._processes)
        for _ in range(min(wanted - free, self.workers - len(self._processes))):
            self._processes.append(Process(self.key, self.node, self.timeout_s))

    def _ready(self) -> list[Process]:
        """Waits for workers that have said something, have died, or are over their time, which ends them."""
        busy = {process.connection: process for process in self._processes if not process.idle}
        limits = [process.deadline for process in busy.values() if process.deadline is not None]
        first = max(min(limits) - time.monotonic(), 0.0) if limits else None
        ready = [connection for connection in wait(list(busy), first) if connection in busy] if busy else []
        if not ready:
            for process in busy.values():
                if process.deadline is not None and process.deadline <= time.monotonic():
                    process.expire()
        return [process for connection, process in busy.items() if connection in ready]

    def _answer(self, process: Process) -> tuple[int | None, Any]:
        """(place of the sample, what came of it); place None: the worker has started."""
        place, answer = process.receive()
        if isinstance(answer, Died):
            self._drop(process)
        if place is None and answer is not None:
            told = answer.told if isinstance(answer, Died) else answer
            raise PluginError(Problem("a worker cannot make this reward", self.node.where, told))
        return place, answer

    def _verdict(self, answer: Any) -> Verdict:
        if isinstance(answer, UserError):
            raise answer
        if isinstance(answer, Verdict):
            return answer
        why = f"no verdict within {self.timeout_s:g} s" if answer.timed_out else f"its process died: {answer.how}"
        return Verdict.invalid(f"reward {self.key}: {why}", answer.told)

    def _drop(self, process: Process) -> None:
        process.kill()
        self._processes.remove(process)


def _end(processes: list[Process]) -> None:
    while processes:
        processes.pop().kill()
