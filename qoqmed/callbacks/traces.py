"""Writes every rollout of every step into the run's `traces/`: a file per step and process, whole or not at all."""

from __future__ import annotations

import re
from typing import Any

from lightning.pytorch import Callback

from qoqmed.checkpoint.files import replace_text, to_line
from qoqmed.report.traces import Decode, trace_rows
from qoqmed.types import Group, StepReport

_FILE = re.compile(r"step-(\d+)-\d+\.jsonl")


class Traces(Callback):
    """level: ids, text or full (see `qoqmed.report.traces`). decode: token ids -> text, for prompts at level full."""

    def __init__(self, level: str = "ids", decode: Decode | None = None) -> None:
        self.level, self.decode = level, decode

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """A run that resumes at a step writes the later ones again."""
        if trainer.is_global_zero:
            for path in trainer.run.traces.glob("step-*.jsonl"):
                match = _FILE.fullmatch(path.name)
                if match is not None and int(match[1]) > trainer.global_step:
                    path.unlink()

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: StepReport, batch: tuple[Group, ...], batch_idx: int
    ) -> None:
        """Write the step's rollouts, of this rank."""
        advantages = trainer.advantages or [()] * len(batch)
        rows = [
            row
            for group, values in zip(batch, advantages, strict=True)
            for row in trace_rows(group, outputs.global_step, outputs.stage, self.level, values, self.decode)
        ]
        folder = trainer.run.traces
        folder.mkdir(parents=True, exist_ok=True)  # another node's disk
        file = folder / f"step-{outputs.global_step:08d}-{trainer.fabric.global_rank:05d}.jsonl"
        replace_text(file, "".join(to_line(row) for row in rows))
