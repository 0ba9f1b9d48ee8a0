"""Ends a stage when the validation figure no longer gets better."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback

from qoqmed.registry.arguments import check, one_of, within
from qoqmed.report.lookup import lookup


class EarlyStopping(Callback):
    """monitor: a metric's path, such as `overall/f1` (greedy results where there are any). patience: passes over the
    valid split without a better value, after which the stage ends. mode: "max" or "min". min_delta: what counts as
    better. Every stage is judged by itself; the pass before the first one counts for none.
    """

    def __init__(
        self, monitor: str = "overall/f1", patience: int = 10, mode: str = "max", min_delta: float = 0.0
    ) -> None:
        check(
            within("patience", patience, low=1),
            one_of("mode", mode, ("max", "min")),
            within("min_delta", min_delta, low=0),
        )
        self.monitor, self.patience, self.mode, self.min_delta = monitor, patience, mode, min_delta
        self._stage = ""
        self._best: float | None = None
        self._waited = 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.stage.name != self._stage:  # else: resumed within the stage
            self._stage, self._best, self._waited = trainer.stage.name, None, 0

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Count the passes over `valid` without a better value; end the stage at `patience` of them."""
        newest = trainer.evaluations[-1]
        if newest.split != "valid":
            return
        value = lookup(newest, self.monitor, "evaluation.best")
        if not self._stage:
            return
        if self._better(value):
            self._best, self._waited = value, 0
        else:
            self._waited += 1
        if self._waited >= self.patience:
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        return {"stage": self._stage, "best": self._best, "waited": self._waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict:  # a checkpoint made without this callback has nothing
            self._stage, self._best, self._waited = state_dict["stage"], state_dict["best"], state_dict["waited"]

    def _better(self, value: float) -> bool:
        """NaN is never better."""
        if self._best is None:
            return value == value
        gain = value - self._best if self.mode == "max" else self._best - value
        return gain > self.min_delta
