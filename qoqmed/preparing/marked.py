"""What is known of a row's labels, and the rules that its readers share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from qoqmed.errors import DataError, Problem, near
from qoqmed.preparing.tables import Row


@dataclass(frozen=True)
class Marked:
    """The labels of a row, empty where none holds; `why`, where it is not blank, says why nothing is known of them."""

    labels: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()
    why: str = ""

    @property
    def unusable(self) -> str:
        """Why no case can be made of it; "" where one can."""
        return self.why or ("" if self.labels else "no label is positive")


Reader = Callable[[Row], Marked]
Space = tuple[str, ...]


def without_alone(found: tuple[str, ...], alone: Sequence[str]) -> tuple[str, ...]:
    """Without the labels that count only where no other does ("Normal")."""
    return tuple(label for label in found if label not in alone) or found


def require_inside(labels: Iterable[str | None], space: Space) -> None:
    """Raises DataError for labels of a spec that its label space does not have. None stands for no label."""
    wrong = sorted({str(label) for label in labels if label is not None and label not in space})
    if wrong:
        mend = near(wrong[0], space) or "spell them as the label space does, or give the spec a label_space of its own"
        what = "the spec's labels are outside the label space"
        raise DataError(Problem(what, "labels", ", ".join(wrong), ", ".join(space), mend))
