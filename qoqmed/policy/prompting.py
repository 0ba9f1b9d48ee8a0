"""From a case to an encoded prompt: media decoded once, placeholders expanded, positions set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qoqmed.contracts import BoxFrame, Encoder, Task
from qoqmed.errors import DataError, MediaError, Problem
from qoqmed.geometry import Geometry
from qoqmed.media import frames
from qoqmed.media.paths import resolve
from qoqmed.media.refusals import of_row
from qoqmed.packing import Prompt
from qoqmed.policy.qwen2_5_vl import Qwen25VL
from qoqmed.types import SPATIAL, Case, Medium


@dataclass
class _Media:
    """What the media of one case add up to while its prompt is built."""

    content: list[dict[str, str]] = field(default_factory=list)
    pixels: list[Tensor] = field(default_factory=list)
    grids: list[Tensor] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)  # image tokens of each frame
    series: dict[str, list[Tensor]] = field(default_factory=dict)
    geometries: list[Geometry | None] = field(default_factory=list)


class Prompter:
    """Encodes cases for one policy.

    root: data root that media paths are relative to. count: frames of a volume or video. modalities: None for all, else
    the ones that stay (input ablations).
    """

    def __init__(
        self,
        backbone: Qwen25VL,
        tokenizer: Any,
        image_processor: Any,
        encoders: Mapping[str, Encoder],
        tasks: Mapping[str, Task],
        *,
        root: Path,
        count: int = 4,
        min_pixels: int = 65_536,
        max_pixels: int = 524_288,
        modalities: Sequence[str] | None = None,
    ) -> None:
        self.backbone, self.tokenizer, self.image_processor = backbone, tokenizer, image_processor
        self.encoders, self.tasks = encoders, tasks
        self.root, self.count = root, count
        self.min_pixels, self.max_pixels = min_pixels, max_pixels
        self.modalities = None if modalities is None else frozenset(modalities)
        self.special: frozenset[str] = frozenset(tokenizer.all_special_tokens)
        self.image_id = int(tokenizer.convert_tokens_to_ids(backbone.image_tokens[1]))

    def frame(self, prompt: Prompt) -> BoxFrame:
        """The numbers in which this prompt's boxes are written."""
        return self.backbone.frame(prompt.geometries)

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
        media = _Media(geometries=[None] * len(case.media))
        for index, medium in enumerate(case.media):
            if self.modalities is not None and medium.modality not in self.modalities:
                continue
            with of_row(case.id):
                self._add(media, index, medium)
        text = self._plain(case, task.prompt(case))
        content = [*media.content, {"type": "text", "text": text}]
        return self._encode(case.id, content, media)

    def _add(self, media: _Media, index: int, medium: Medium) -> None:
        if medium.modality in SPATIAL:
            for frame in frames.load(medium, self.root, self.count):
                geometry = self._geometry(frame.shape[1], frame.shape[0], medium)
                size = {"shortest_edge": self.min_pixels, "longest_edge": self.max_pixels}
                out = self.image_processor(images=[frame], size=size, return_tensors="pt")
                media.pixels.append(out["pixel_values"].float())
                media.grids.append(out["image_grid_thw"])
                media.tokens.append(geometry.tokens)
                media.geometries[index] = geometry
                media.content.append({"type": "image"})
        elif medium.modality in self.encoders:
            encoder = self.encoders[medium.modality]
            path = None if medium.path is None else resolve(self.root, medium.path)
            array = medium.array if path is None else encoder.load(path, medium.options)
            assert array is not None, "a medium has a path or an array"
            media.series.setdefault(medium.modality, []).append(encoder.prepare(array))
            name = encoder.placeholder.removeprefix("<|").removesuffix("_pad|>")
            span = f"<|{name}_start|>{encoder.placeholder * encoder.num_tokens}<|{name}_end|>"
            media.content.append({"type": "text", "text": span})
        else:
            raise MediaError(
                Problem(
                    what=f"no encoder reads the modality {medium.modality!r}",
                    got=medium.path or "an array",
                    expected=f"one of {', '.join(sorted(SPATIAL | set(self.encoders)))}",
                    mend=f"add `encoders: {{{medium.modality}: {{name: ...}}}}` or leave it out by `data.modalities`",
                )
            )

    def _geometry(self, width: int, height: int, medium: Medium) -> Geometry:
        try:
            return self.backbone.geometry(width, height, self.min_pixels, self.max_pixels)
        except ValueError as error:
            raise MediaError(Problem(str(error), got=medium.path or "an array")) from error

    def _plain(self, case: Case, text: str) -> str:
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

    def _encode(self, case_id: str, content: list[dict[str, str]], media: _Media) -> Prompt:
        messages = [{"role": "user", "content": content}]
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        pad = self.backbone.image_tokens[1]
        parts = text.split(pad)
        if len(parts) != len(media.tokens) + 1:
            raise DataError(
                Problem(
                    "the chat template does not place one image placeholder per frame",
                    where=case_id,
                    got=f"{len(parts) - 1} placeholders",
                    expected=f"{len(media.tokens)}",
                )
            )
        counts = [*media.tokens, 0]
        text = "".join(part + pad * count for part, count in zip(parts, counts, strict=True))
        token_ids = torch.tensor(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        is_image = token_ids == self.image_id
        grids = torch.cat(media.grids) if media.grids else None
        positions = self.backbone.positions(token_ids, is_image, grids)
        return Prompt(
            case_id=case_id,
            token_ids=token_ids,
            positions=positions,
            start=int(positions.max()) + 1,
            pixel_values=torch.cat(media.pixels) if media.pixels else None,
            grids=grids,
            image_slots=is_image.nonzero()[:, 0] if media.pixels else None,
            series={name: torch.stack(items) for name, items in media.series.items()},
            series_slots={
                name: self._slots(token_ids, name, len(items), case_id) for name, items in media.series.items()
            },
            geometries=tuple(media.geometries),
        )

    def _slots(self, token_ids: Tensor, modality: str, items: int, case_id: str) -> Tensor:
        encoder = self.encoders[modality]
        pad = int(self.tokenizer.convert_tokens_to_ids(encoder.placeholder))
        slots = (token_ids == pad).nonzero()[:, 0]
        if len(slots) != items * encoder.num_tokens:
            raise DataError(
                Problem(
                    f"placeholders and features of {modality} do not match",
                    where=case_id,
                    got=f"{len(slots)} placeholders",
                    expected=f"{items} x {encoder.num_tokens} features",
                )
            )
        return slots
