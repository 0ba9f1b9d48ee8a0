"""Ctrl-C and SIGTERM as a flag that the loop reads between steps: the step ends, a checkpoint is written."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

ECHO_S = 1.0


class Interrupts:
    """`with Interrupts() as stop:` ... `if stop.asked:`. A second signal is not held back.

    One Ctrl-C reaches a rank twice, from the terminal and from torchrun: within `ECHO_S` they are one.
    """

    def __init__(self) -> None:
        self.asked = False
        self._first_s = 0.0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for name in (signal.SIGINT, signal.SIGTERM):
                self._before[name] = signal.signal(name, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name, handler in self._before.items():
            signal.signal(name, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked and time.monotonic() - self._first_s > ECHO_S:
            raise KeyboardInterrupt
        if not self.asked:
            self.asked, self._first_s = True, time.monotonic()
