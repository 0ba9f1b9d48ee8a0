"""What a run must remember between two steps, and how it is put into a checkpoint and taken out again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from qoqmed import checkpoint
from qoqmed.build import Stage
from qoqmed.module import ClinicalPolicyModule
from qoqmed.run import RunFolder
from qoqmed.types import Evaluation

if TYPE_CHECKING:
    from lightning.fabric import Fabric


@dataclass
class TrainingState:
    """Where the loop stands: the stage, the steps done in it and in all, what was measured on the way.

    stopping: a callback has asked to end the stage. invalid: invalid rollouts, and all, of the last steps.
    not_finite: steps in a row that left an update out. drifting: whether the last step's log-prob difference between
    engine and trainer was too large.
    """

    stage: int = 0
    step: int = 0
    stopping: bool = False
    global_step: int = 0
    skipped: int = 0
    best: float | None = None
    invalid: list[tuple[int, int]] = field(default_factory=list)
    not_finite: int = 0
    drifting: bool = False
    evaluations: list[Evaluation] = field(default_factory=list)


@dataclass(frozen=True)
class Begun:
    """What a step changes before its update, as it was before the step."""

    sampler: Mapping[str, Any]
    skipped: int
    random: Mapping[str, torch.Tensor]

    @classmethod
    def of(cls, stage: Stage, state: TrainingState) -> Begun:
        return cls(stage.sampler.state_dict(), state.skipped, checkpoint.random_state())

    def restore(self, stage: Stage, state: TrainingState) -> None:
        stage.sampler.load_state_dict(dict(self.sampler))
        state.skipped = self.skipped
        checkpoint.set_random_state(self.random)


@dataclass(frozen=True)
class Saver:
    """Writes and reads the checkpoints of one run."""

    run: RunFolder
    fabric: Fabric
    module: ClinicalPolicyModule
    keep: int

    @property
    def ranks(self) -> checkpoint.Ranks:
        return checkpoint.Ranks(self.fabric.global_rank, self.fabric.world_size, self.fabric.barrier)

    def save(
        self, state: TrainingState, stage: Stage, optimizer: torch.optim.Optimizer, callbacks: Sequence[Any], best: bool
    ) -> None:
        """Everything that the next step depends on; committed whole or not at all."""
        moments, plain = checkpoint.optimizer_tensors(optimizer, self.module.policy.named_parameters(), self.ranks)
        content = {
            "training": asdict(state),
            "best": best,
            "sampler": stage.sampler.state_dict(),
            "advantage": stage.advantage.state_dict() if stage.advantage else {},
            "optimizer": plain,
            "callbacks": {_key(i, callback): callback.state_dict() for i, callback in enumerate(callbacks)},
        }
        path = checkpoint.save(
            self.run.checkpoints,
            state.global_step,
            {"policy": checkpoint.gather(self.module.policy.state_dict().items(), self.ranks), "optimizer": moments},
            content,
            random=checkpoint.random_state(),
            keep=self.keep,
            ranks=self.ranks,
        )
        if best and self.fabric.is_global_zero:
            checkpoint.mark_best(self.run.checkpoints, path)

    def restore(self, path: Path, callbacks: Sequence[Any]) -> checkpoint.Loaded:
        """Put back the weights, the callbacks' states and the random streams."""
        loaded = checkpoint.load(path)
        checkpoint.restore(self.module.policy.state_dict().items(), loaded.tensors["policy"])
        if loaded.state.get("best") and self.fabric.is_global_zero:  # the run may have ended between commit and mark
            checkpoint.mark_best(self.run.checkpoints, path)
        for i, callback in enumerate(callbacks):
            callback.load_state_dict(loaded.state["callbacks"].get(_key(i, callback), {}))
        streams = checkpoint.load_random(path, self.ranks)
        if streams is not None:
            checkpoint.set_random_state(streams)
        return loaded

    def restore_stage(self, loaded: checkpoint.Loaded, stage: Stage, optimizer: torch.optim.Optimizer) -> None:
        """Put back the place in the data, the estimator's state and the optimizer's."""
        stage.sampler.load_state_dict(loaded.state["sampler"])
        if stage.advantage:
            stage.advantage.load_state_dict(loaded.state["advantage"])
        named, moments = self.module.policy.named_parameters(), loaded.tensors["optimizer"]
        checkpoint.load_optimizer(optimizer, named, moments, loaded.state["optimizer"])


def _key(place: int, callback: Any) -> str:
    return f"{place} {type(callback).__name__}"


def training_state(saved: dict[str, Any]) -> TrainingState:
    """The inverse of `asdict`."""
    return TrainingState(**{**saved, "evaluations": [Evaluation(**row) for row in saved["evaluations"]]})
