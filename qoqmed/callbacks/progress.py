"""Progress on the terminal: a live line and a table per domain while training, before and after at the end."""

from __future__ import annotations

import atexit
import time
from collections.abc import Iterable
from typing import Any

from lightning.pytorch import Callback
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from qoqmed import checkpoint
from qoqmed.report.progress import change_table, domain_table, evaluation_line, step_line
from qoqmed.types import StepReport

_PIPE_WIDTH = 160  # of tables where there is no terminal to ask


class Progress(Callback):
    """note: shown under the last table, such as the condition that its numbers hold under. metric: of the tables.

    every_s: where the output is no terminal (a log file, CI), a plain line at most so often; a stage's first and last
    steps are always shown. console: where to write.
    """

    def __init__(
        self, note: str = "", metric: str = "f1", every_s: float = 5.0, console: Console | None = None
    ) -> None:
        self.note, self.metric, self.every_s = note, metric, every_s
        self.console = console or _console()
        self._live: Live | None = None
        self._last: StepReport | None = None
        self._started = self._shown = 0.0
        self._steps = 0

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.is_global_zero:
            self._print(f"run folder: {trainer.run.path}")
            self._warn(trainer.notices)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._started, self._shown, self._steps, self._last = time.monotonic(), -self.every_s, 0, None
        if trainer.is_global_zero:
            self._warn(trainer.notices)
        if trainer.is_global_zero and self.console.is_interactive:
            self._live = Live(console=self.console, auto_refresh=False)
            self._live.start()
            atexit.register(self._live.stop)  # a hidden cursor must not outlive a loop that was interrupted

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: StepReport, batch: Any, batch_idx: int) -> None:
        """The step's alarms, and its line where one is due."""
        if not trainer.is_global_zero:
            return
        now = time.monotonic()
        self._steps += 1
        self._last = outputs
        self._warn(f"step {outputs.global_step}: {alarm}" for alarm in trainer.alarms)
        line = step_line(outputs, (now - self._started) / self._steps * (outputs.steps - outputs.step))
        if self._live is not None:
            self._live.update(Group(line, domain_table(outputs)) if outputs.domains else line, refresh=True)
        elif now - self._shown >= self.every_s or outputs.step in (1, outputs.steps):
            self._print(line)
            self._shown = now

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.is_global_zero:
            self._print(evaluation_line(trainer.evaluations[-1], self.metric))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        live = self._live is not None
        self._stop()
        if not live and self._last is not None and self._last.domains:
            self._print(domain_table(self._last))
        if trainer.is_global_zero:
            self._warn(trainer.notices)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        table = change_table(trainer.evaluations, self.metric, self.note) if trainer.is_global_zero else None
        if table is not None:
            self._print(table)
        best = checkpoint.best(trainer.run.checkpoints) if trainer.is_global_zero else None
        last = checkpoint.latest(trainer.run.checkpoints) if trainer.is_global_zero else None
        if last is not None:
            which = f"best by {trainer.recipe.evaluation.best}: {best.name}" if best else "no metric chose a best"
            self._print(f"{which}; last: {last.name}. Next: qoqmed export {trainer.run.path} DIR")

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._stop()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._stop()

    def _stop(self) -> None:
        """Leave the terminal as it was found."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _warn(self, texts: Iterable[str]) -> None:
        for text in texts:
            self._print(Text(f"warning: {text}", style="yellow"))

    def _print(self, content: RenderableType) -> None:
        self.console.print(content, soft_wrap=not self.console.is_interactive, highlight=False)


def _console() -> Console:
    console = Console()
    return console if console.is_interactive else Console(width=_PIPE_WIDTH)
