"""From a case to an encoded prompt: media decoded once, placeholders expanded, positions set."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qoqmed.contracts import BoxFrame, Task
from qoqmed.errors import DataError, MediaError, Problem
from qoqmed.geometry import Geometry
from qoqmed.media.refusals import of_row
from qoqmed.packing import Prompt
from qoqmed.policy.processor import ClinicalProcessor, Encoded
from qoqmed.types import SPATIAL, Case, Medium


class Prompter:
    """Encodes cases for one policy.

    model: its backbone. root: data root that media paths are relative to.
    """

    def __init__(
        self,
        model: Any,
        processor: ClinicalProcessor,
        tasks: Mapping[str, Task],
        *,
        root: Path,
    ) -> None:
        self.model, self.processor, self.tasks, self.root = model, processor, tasks, root
        self.special: frozenset[str] = frozenset(processor.tokenizer.all_special_tokens)
        names = "|".join(re.escape(name) for name in sorted(SPATIAL | set(processor.encoders)))
        self.marker = re.compile(f"<({names})>")

    def frame(self, prompt: Prompt) -> BoxFrame:
        """The numbers in which this prompt's boxes are written."""
        frame: BoxFrame = self.model.frame(prompt.geometries)
        return frame

    def task(self, case: Case) -> Task:
        """The task plugin of a case; DataError when the recipe's data names one that is not built."""
        if case.task not in self.tasks:
            known = ", ".join(sorted(self.tasks))
            raise DataError(Problem(f"unknown task {case.task!r}", where=case.id, expected=f"one of {known}"))
        return self.tasks[case.task]

    def __call__(self, case: Case) -> Prompt:
        """Raises DataError or MediaError with the case's id."""
        task = self.task(case)
        task.check(case)
        text = self._without_special(case, task.prompt(case))
        geometries: list[Geometry | None] = [None] * len(case.media)
        content: list[dict[str, Any]] = []
        for part in self._in_order(case, text):
            if isinstance(part, str):
                content.append({"type": "text", "text": part})
            else:
                with of_row(case.id):
                    items, geometries[part] = self._read(case.media[part])
                content += items
        try:  # the template has the last word on what the prompt holds
            encoded = self.processor.encode([{"role": "user", "content": content}])
        except ValueError as error:
            what = "the chat template does not keep one placeholder for each picture and series"
            raise DataError(Problem(what, where=case.id, got=str(error))) from error
        return self._prompt(case.id, encoded, geometries)

    def _in_order(self, case: Case, text: str) -> Iterator[str | int]:
        """Indices of media and pieces of text. A marker in the text, such as <image>, is the place of the next medium
        of that modality; media without a marker stand at the front."""
        pieces = self.marker.split(text)  # text, modality, text, modality, .., text
        waiting = {
            name: [i for i, medium in enumerate(case.media) if medium.modality == name] for name in set(pieces[1::2])
        }
        for name, places in waiting.items():
            if pieces[1::2].count(name) > len(places):
                got = f"{pieces[1::2].count(name)} markers <{name}>"
                what = "the question has more places for media than the row has media"
                raise DataError(Problem(what, case.id, got, f"at most {len(places)}: one for each {name}"))
        marked = {name: iter(places[len(places) - pieces[1::2].count(name) :]) for name, places in waiting.items()}
        first = {i for name, places in waiting.items() for i in places[: len(places) - pieces[1::2].count(name)]}
        yield from (i for i, medium in enumerate(case.media) if i in first or medium.modality not in waiting)
        for number, piece in enumerate(pieces):
            if number % 2:
                yield next(marked[piece])
            elif piece:
                yield piece

    def _read(self, medium: Medium) -> tuple[list[dict[str, Any]], Geometry | None]:
        """Content items of a medium, and the geometry of its pictures."""
        if medium.modality not in SPATIAL:
            values = self.processor.prepare(medium, self.root)
            return [{"type": medium.modality, medium.modality: values}], None
        pictures = self.processor.pictures(medium, self.root)
        height, width = pictures[0].shape[:2]
        try:  # the model alone knows which sizes fit
            geometry: Geometry = self.model.geometry(width, height, *self.processor.pixel_bounds)
        except ValueError as error:
            raise MediaError(Problem(str(error), got=medium.path or "an array")) from error
        return [{"type": "image", "image": picture} for picture in pictures], geometry

    def _without_special(self, case: Case, text: str) -> str:
        found = [token for token in self.special if token in text]
        if found:
            raise DataError(
                Problem(
                    "the question holds a special token of the model",
                    where=case.id,
                    got=", ".join(sorted(found)),
                    mend="take it out of the question or of the label names",
                )
            )
        return text

    def _prompt(self, case_id: str, encoded: Encoded, geometries: Sequence[Geometry | None]) -> Prompt:
        token_ids = encoded.token_ids
        is_image = token_ids == self.processor.image_token_id
        positions: Tensor = self.model.positions(token_ids, is_image, encoded.grids)
        specs = self.processor.encoders
        return Prompt(
            case_id=case_id,
            token_ids=token_ids,
            positions=positions,
            start=int(positions.max()) + 1,
            pixel_values=encoded.pixel_values,
            grids=encoded.grids,
            image_slots=None if encoded.pixel_values is None else _slots(is_image),
            series=encoded.series,
            series_slots={name: _slots(token_ids == specs[name]["token_id"]) for name in encoded.series},
            geometries=tuple(geometries),
        )


def _slots(chosen: Tensor) -> Tensor:
    return torch.nonzero(chosen)[:, 0]
