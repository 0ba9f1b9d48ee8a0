"""The questions that DRPO's statistics are of: one step's, or those of some past steps beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qoqmed.errors import Problem, UserError


@dataclass(frozen=True)
class Questions:
    """What N >= 1 questions of one domain bring to its statistics.

    totals [N] float64: sum of difficulties over a question's valid rollouts. counts [N] float64: their number.
    vectors [N, G] float64: rewards, as they are clustered; G is 0 where nothing is clustered.
    """

    totals: Tensor
    counts: Tensor
    vectors: Tensor

    def mean(self, members: Tensor | slice = slice(None)) -> float:
        """Difficulty of a valid rollout of some questions."""
        return float(self.totals[members].sum() / self.counts[members].sum())


class Window:
    """The last `steps` steps before the current one; a step is its questions by domain."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self._past: tuple[Mapping[str, Questions], ...] = ()

    def pooled(self, domain: str, now: Questions) -> Questions:
        """The current questions of a domain, then those of the past steps."""
        parts = [now, *(step[domain] for step in self._past if domain in step)]
        for part in parts:
            if part.vectors.shape[1] != now.vectors.shape[1]:
                raise UserError(
                    Problem(
                        "DRPO clusters questions by their reward vectors, which must be equally long",
                        where=f"domain {domain!r}",
                        got=f"{now.vectors.shape[1]} rollouts a question, {part.vectors.shape[1]} in an earlier step",
                        expected="the same number of rollouts in all steps of a window",
                        mend="set cluster to false, or window to 0",
                    )
                )
        return Questions(*(torch.cat([getattr(part, name) for part in parts]) for name in _COLUMNS))

    def push(self, step: Mapping[str, Questions]) -> None:
        """The current step becomes the latest past one."""
        self._past = (*self._past, step)[-self.steps :] if self.steps else ()

    def state_dict(self) -> dict[str, Any]:
        """Lists of floats, which JSON keeps exactly; empty where no past step counts."""
        if not self.steps:
            return {}
        past = [
            {domain: {name: getattr(part, name).tolist() for name in _COLUMNS} for domain, part in step.items()}
            for step in self._past
        ]
        return {"past": past}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._past = tuple(
            {
                domain: Questions(*(torch.tensor(columns[name], dtype=torch.float64) for name in _COLUMNS))
                for domain, columns in step.items()
            }
            for step in state.get("past", ())
        )


_COLUMNS = ("totals", "counts", "vectors")
