"""Drafts as rows of our JSON Lines: the QA generation of QoQ-Med, App. C.1.

A question is a task prompt with the modality's cue, one of several phrasings by the case's hash. The allowable labels
are the row's `label_space`, which the task `diagnosis` writes behind it; with `shuffle` their order is the case's own.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from qoqmed.preparing.binding import filled
from qoqmed.preparing.cases import Draft
from qoqmed.preparing.spec import Spec
from qoqmed.preparing.splits import hash_of

MARKER = re.compile(r"<(\w+)>")


@dataclass(frozen=True)
class Asking:
    """questions: phrasings of the data set. phrasings: how many of them each case is asked, a row for each."""

    spec: Spec
    space: tuple[str, ...]
    questions: Sequence[str]
    seed: int = 0
    shuffle: bool = False
    phrasings: int = 1

    def rows(self, draft: Draft, split: str) -> Iterator[dict[str, Any]]:
        """Rows of one case; those after the first have "#2" and so on behind their id."""
        start = hash_of(self.seed, draft.id)
        count = min(self.phrasings, len(self.questions))
        for turn in range(count):
            template = self.questions[(start + turn) % len(self.questions)]
            yield self._row(draft, split, template, f"#{turn + 1}" if turn else "")

    def _row(self, draft: Draft, split: str, template: str, turn: str) -> dict[str, Any]:
        space = [label for label in self.space if label not in draft.marked.hidden]
        if self.shuffle:
            random.Random(hash_of(self.seed, f"labels {draft.id}{turn}")).shuffle(space)
        cells = {key: MARKER.sub(r"(\1)", text) for key, text in draft.cells.items()}  # a marker would move the media
        name = self.spec.data_set or self.spec.name
        row = {
            "id": f"{self.spec.name}-{draft.id}{turn}",
            "domain": self.spec.domain,
            "dataset": name,
            "task": "diagnosis",
            "question": filled(template, cells, f"{self.spec.name}.questions"),
            "media": list(draft.media),
            "labels": [label for label in self.space if label in draft.marked.labels],
            "label_space": space,
            **draft.region,
        }
        row |= {"patient": f"{self.spec.name}-{draft.patient}"} if draft.patient else {}
        attributes = {"data/split": split} | ({"licence": self.spec.licence} if self.spec.licence else {})
        return row | {"attributes": attributes}
