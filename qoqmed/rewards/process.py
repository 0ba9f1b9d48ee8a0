"""One worker process of a slow reward, as its pool sees it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from typing import Any

from qoqmed.config.schema import Node
from qoqmed.rewards.worker import TIMED_OUT
from qoqmed.types import Case, Reading, Rollout

START_S = 300.0  # for a worker to construct its reward
GRACE_S = 5.0  # a worker ends itself at the time limit; it is killed so much later


@dataclass(frozen=True)
class Died:
    """A worker's end. how: its exit code or signal. told: the traceback that it left, or `how`."""

    timed_out: bool
    how: str
    told: str


class Process:
    """place: of the sample that it works on, None for none. deadline: on the monotonic clock, of start or sample."""

    def __init__(self, key: str, node: Node, timeout_s: float | None) -> None:
        self.timeout_s, self.idle, self.late = timeout_s, False, False
        self.place: int | None = None
        self.deadline: float | None = time.monotonic() + START_S
        self._case: Case | None = None  # that it has already: the responses to a case come in a row
        self._dump = tempfile.TemporaryFile()  # noqa: SIM115  for faulthandler, which needs a file; closed by `kill`
        self.connection, theirs = Pipe()
        ends = (theirs.fileno(), self._dump.fileno())
        path = os.pathsep.join(entry for entry in sys.path if entry)
        self._popen = subprocess.Popen(
            [sys.executable, "-m", "qoqmed.rewards.worker", *map(str, ends)],
            stdin=subprocess.DEVNULL,
            stdout=2,  # stdout is for results
            pass_fds=ends,
            start_new_session=True,  # Ctrl-C is not for it
            env={"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": path},
        )
        theirs.close()
        self.connection.send((key, node, timeout_s))

    def send(self, sample: tuple[Case, Rollout, Reading], place: int) -> bool:
        """False where nobody is there any more."""
        case, rollout, reading = sample
        try:  # whether the other end still lives shows only here
            self.connection.send((None if case is self._case else case, rollout, reading))
        except (BrokenPipeError, ConnectionResetError):
            return False
        self._case, self.place, self.idle = case, place, False
        self.deadline = None if self.timeout_s is None else time.monotonic() + self.timeout_s + GRACE_S
        return True

    def receive(self) -> tuple[int | None, Any]:
        """(place of the sample, a Verdict, a UserError or how it died); place None: of the start, with None if well."""
        try:  # whether the other end still lives shows only here
            answer = self.connection.recv()
        except (EOFError, ConnectionResetError):
            answer = self._died()
        place, self.place, self.idle = self.place, None, True
        return place, answer

    def expire(self) -> None:
        """It is over its time and has not ended itself."""
        self.late = True
        os.killpg(self._popen.pid, signal.SIGKILL)

    def kill(self) -> int:
        """With all processes that the reward has started. Its exit code."""
        if self._popen.returncode is None:  # else its number may be another's by now
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._popen.pid, signal.SIGKILL)
            self._popen.wait()
        self.connection.close()
        self._dump.close()
        return self._popen.wait()

    def _died(self) -> Died:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._popen.pid, signal.SIGKILL)
        code = self._popen.wait()
        self._dump.seek(0)
        left = self._dump.read().decode("utf-8", "replace")
        how = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
        return Died(self.late or left.startswith(TIMED_OUT), how, left or how)
