"""Metrics for TensorBoard: `tensorboard --logdir runs`."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.loggers import Logger
from torch.utils.tensorboard import SummaryWriter

from qoqmed.loggers.scalars import plain


class TensorBoardLogger(Logger):
    """root_dir: the run's folder. folder: the name in it. flush_s: how often events go to the disk.

    A resumed run hides the events of later steps from TensorBoard (its purge step); nothing is deleted.
    """

    def __init__(self, root_dir: str | Path, folder: str = "tensorboard", flush_s: int = 10) -> None:
        super().__init__()
        self.path = Path(root_dir) / folder
        self._flush_s = flush_s
        self._purge_step: int | None = None
        self._writer: SummaryWriter | None = None

    @property
    def name(self) -> str:
        return "tensorboard"

    @property
    def version(self) -> str:
        return ""

    @property
    def root_dir(self) -> str:
        return str(self.path.parent)

    @property
    def log_dir(self) -> str:
        return str(self.path)

    @property
    def experiment(self) -> SummaryWriter:
        """The writer, opened when it is first needed."""
        if self._writer is None:
            self._writer = SummaryWriter(str(self.path), flush_secs=self._flush_s, purge_step=self._purge_step)
        return self._writer

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        for name, value in plain(metrics).items():
            self.experiment.add_scalar(name, value, step)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """As text, in a tab of their own."""
        shown = json.dumps(vars(params) if isinstance(params, Namespace) else params, indent=2, default=str)
        self.experiment.add_text("hyperparameters", f"```\n{shown}\n```")

    def rewind(self, step: int) -> None:
        """Events of later steps are hidden: a resumed run writes them again."""
        self.finalize("rewound")
        self._purge_step = step + 1

    def save(self) -> None:
        if self._writer is not None:
            self._writer.flush()

    def finalize(self, status: str) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
