"""From a conversation with media to what the model reads: text in tokens, pictures in patches, series prepared.

One placeholder stands for one picture or series in the text; it is repeated once per feature. Volumes and videos are
their frames, one picture each. The images are resized by transformers' PIL processor, the same on every machine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer, BatchFeature
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.processing_utils import ProcessorMixin

from qoqmed.contracts import Encoder
from qoqmed.media.cache import MediaCache
from qoqmed.media.paths import resolve
from qoqmed.media.refusals import refused
from qoqmed.media.window import Pixels
from qoqmed.policy.clinical import Spec, make_encoder
from qoqmed.policy.pictures import Pictures
from qoqmed.types import SPATIAL, Medium

IMAGE = Pictures.image_tokens[1]


@dataclass(frozen=True)
class Encoded:
    """One conversation. token_ids [P] long. pixel_values [N, patch] float32 and grids [I, 3] long of the pictures, or
    None. series: modality -> [items, ...] float32 in prompt order."""

    token_ids: Tensor
    pixel_values: Tensor | None
    grids: Tensor | None
    series: Mapping[str, Tensor]


class ClinicalProcessor(ProcessorMixin):
    """encoders: as in the model's config. frames: of a volume or video. Pixel bounds are the image processor's `size`.

    Content items of a message: `{"type": "text", "text": ..}`, or a medium under its modality, `{"type": "ecg", "ecg":
    PATH or array}`, with options of how to read it beside it (`"axis": "coronal"`). URLs are refused.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        chat_template: str | None = None,
        encoders: Mapping[str, Spec] | None = None,
        frames: int = 4,
    ) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template or tokenizer.chat_template)
        self.encoders = {modality: dict(spec) for modality, spec in (encoders or {}).items()}
        self.frames = frames
        self.media = MediaCache()
        with torch.device("meta"):  # they only load and prepare here: no weights
            self.readers: dict[str, Encoder] = {m: make_encoder(m, spec) for m, spec in self.encoders.items()}  # type: ignore[misc]
        self._pads = re.compile("|".join(re.escape(pad) for pad in (IMAGE, *self._placeholders())))

    @classmethod
    def from_pretrained(cls, path: str | Path, *args: Any, **kwargs: Any) -> ClinicalProcessor:
        """A folder of `save_pretrained`, or one of the plain backbone (which has no encoders). Local files only."""
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        images = Qwen2VLImageProcessorPil.from_pretrained(path, local_files_only=True)
        own, _ = cls.get_processor_dict(path, local_files_only=True) if _has_own(Path(path)) else ({}, {})
        known = {key: own[key] for key in ("encoders", "frames") if key in own}
        return cls(images, tokenizer, chat_template=_template(Path(path)), **known)

    def _placeholders(self) -> list[str]:
        return [str(spec["placeholder"]) for spec in self.encoders.values()]

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "mm_token_type_ids", "pixel_values", "image_grid_thw", "series"]

    def pictures(self, medium: Medium, root: str | Path) -> list[Pixels]:
        """An image, volume or video -> RGB pictures [H, W, 3] uint8. Raises MediaError."""
        return list(self.media.pictures(medium, root, self.frames))

    def prepare(self, medium: Medium, root: str | Path) -> Tensor:
        """A medium of an encoder's modality -> its prepared tensor. Raises MediaError."""
        if medium.modality not in self.readers:
            expected = f"one of {', '.join(sorted(SPATIAL | set(self.readers)))}"
            mend = f"add `encoders: {{{medium.modality}: {{name: ...}}}}` or leave it out by `data.modalities`"
            what = f"no encoder reads the modality {medium.modality!r}"
            raise refused(what, medium.path or "an array", expected, mend)
        reader = self.readers[medium.modality]
        path = None if medium.path is None else resolve(root, medium.path)
        array = medium.array if path is None else self.media.series(reader, path, medium.options)
        assert array is not None, "a medium has a path or an array"
        return reader.prepare(array)

    @property
    def pixel_bounds(self) -> tuple[int, int]:
        """Fewest and most pixels of a resized picture."""
        size = self.image_processor.size
        return int(size["shortest_edge"]), int(size["longest_edge"])

    def resize_between(self, min_pixels: int, max_pixels: int) -> None:
        self.image_processor.size = {"shortest_edge": min_pixels, "longest_edge": max_pixels}

    def span(self, modality: str) -> str:
        """What stands for one series in the text."""
        placeholder = str(self.encoders[modality]["placeholder"])
        start, end = (placeholder.replace("_pad|>", f"_{part}|>") for part in ("start", "end"))
        return f"{start}{placeholder}{end}"

    def encode(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True) -> Encoded:
        """Messages whose media are decoded: pictures [H, W, 3] uint8, prepared tensors. Raises ValueError where the
        text does not hold as many placeholders as there are media."""
        images, series = list[Pixels](), dict[str, list[Tensor]]()
        plain = [{**message, "content": self._plain(message["content"], images, series)} for message in messages]
        text = self.tokenizer.apply_chat_template(
            plain, chat_template=self.chat_template, tokenize=False, add_generation_prompt=add_generation_prompt
        )
        return self._encode(text, images, {modality: torch.stack(items) for modality, items in series.items()})

    def _plain(self, content: Any, images: list[Pixels], series: dict[str, list[Tensor]]) -> Any:
        """Content for the chat template; its media are put into `images` and `series`."""
        if isinstance(content, str):
            return content
        plain = []
        for item in content:
            kind = item["type"]
            if kind == "text":
                plain.append(dict(item))
            elif kind == "image":
                images.append(item["image"])
                plain.append({"type": "image"})
            else:
                series.setdefault(kind, []).append(item[kind])
                plain.append({"type": "text", "text": self.span(kind)})
        return plain

    def _encode(self, text: str, images: Sequence[Pixels], series: Mapping[str, Tensor]) -> Encoded:
        made = [self.image_processor(images=[image], return_tensors="pt") for image in images]
        merged = self.image_processor.merge_size**2
        counts = {IMAGE: [int(item["image_grid_thw"].prod()) // merged for item in made]}
        for modality, spec in self.encoders.items():
            counts[spec["placeholder"]] = [self.readers[modality].num_tokens] * len(series.get(modality, ()))
        left = {pad: iter(numbers) for pad, numbers in counts.items()}
        found = self._pads.findall(text)
        for pad, numbers in counts.items():
            if found.count(pad) != len(numbers):
                raise ValueError(f"the text has {found.count(pad)} placeholders {pad} for {len(numbers)} media")
        expanded = self._pads.sub(lambda match: match.group() * next(left[match.group()]), text)
        return Encoded(
            torch.tensor(self.tokenizer(expanded, add_special_tokens=False)["input_ids"]),
            torch.cat([item["pixel_values"].float() for item in made]) if made else None,
            torch.cat([item["image_grid_thw"] for item in made]) if made else None,
            series,
        )

    def apply_chat_template(
        self,
        conversation: Sequence[Any],
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        tokenize: bool = True,
        return_dict: bool = True,
        return_tensors: str = "pt",
        padding: bool = True,
    ) -> Any:
        """One conversation or a list of them, media loaded from paths or given as arrays -> inputs of the model.

        Rows of a batch are padded at the left. `tokenize=False` gives the text with one placeholder a medium.
        """
        batch = [conversation] if isinstance(conversation[0], Mapping) else list(conversation)
        if not tokenize:
            texts = [self._text(messages, add_generation_prompt, chat_template) for messages in batch]
            return texts[0] if batch[0] is conversation else texts
        decoded = [[self._decoded(message) for message in messages] for messages in batch]
        features = self._batch([self.encode(messages, add_generation_prompt) for messages in decoded])
        return features if return_dict else features["input_ids"]

    def __call__(
        self,
        text: str | Sequence[str],
        images: Sequence[Any] | None = None,
        series: Mapping[str, Sequence[Any]] | None = None,
        return_tensors: str = "pt",
        padding: bool = True,
    ) -> BatchFeature:
        """One text with a placeholder per medium, its pictures and, by modality, its series (arrays or paths)."""
        texts = [text] if isinstance(text, str) else list(text)
        if len(texts) != 1:
            raise ValueError(f"one text at a time, got {len(texts)}; apply_chat_template takes several conversations")
        (only,) = texts
        pixels = [self._opened("image", image)[0] for image in images or ()]
        given = {m: [self._opened(m, item)[0] for item in items] for m, items in (series or {}).items()}
        stacked = {modality: torch.stack(items) for modality, items in given.items() if items}
        return self._batch([self._encode(only, pixels, stacked)])

    def _text(self, messages: Sequence[Mapping[str, Any]], generate: bool, template: str | None) -> str:
        plain = [{**message, "content": self._plain(message["content"], [], {})} for message in messages]
        chosen = template or self.chat_template
        return str(
            self.tokenizer.apply_chat_template(
                plain, chat_template=chosen, tokenize=False, add_generation_prompt=generate
            )
        )

    def _decoded(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """The message with every medium loaded; a volume or video becomes its frames."""
        if isinstance(message["content"], str):
            return dict(message)
        content: list[dict[str, Any]] = []
        for item in message["content"]:
            kind = item["type"]
            if kind == "text":
                content.append(dict(item))
                continue
            source = next((key for key in (kind, "path", "url") if key in item), None)
            if source is None:
                raise ValueError(f"content of type {kind!r} has no {kind!r} and no path: it holds {', '.join(item)}")
            options = {key: value for key, value in item.items() if key not in ("type", source)}
            name = "image" if kind in SPATIAL else kind
            content += [{"type": name, name: part} for part in self._opened(kind, item[source], options)]
        return {**message, "content": content}

    def _opened(self, kind: str, given: Any, options: Mapping[str, Any] | None = None) -> list[Any]:
        """Pictures, or one prepared tensor. A path is opened where it is: its own folder is the data root."""
        medium, root = Medium(kind, array=None, options=options or {}), Path()
        if isinstance(given, (str, Path)):
            full = Path(given).expanduser()
            medium, root = Medium(kind, path=full.name, options=options or {}), full.parent
            if "://" in str(given):
                root = Path()
                medium = Medium(kind, path=str(given))
        else:
            mode = getattr(given, "mode", "RGB")  # of a PIL image
            if mode not in ("RGB", "L"):
                mend = "give its path, for it to be read by the rules of docs/media.md, or a uint8 array [H, W, 3]"
                raise refused(f"a PIL image of mode {mode}", "image", "RGB or L", mend)
            medium = Medium(kind, array=np.asarray(given.convert("RGB") if mode == "L" else given))
        return self.pictures(medium, root) if kind in SPATIAL else [self.prepare(medium, root)]

    def _batch(self, rows: Sequence[Encoded]) -> BatchFeature:
        longest = max(len(row.token_ids) for row in rows)
        ids = torch.full((len(rows), longest), int(self.tokenizer.pad_token_id))
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, longest - len(row.token_ids) :] = row.token_ids
            mask[i, longest - len(row.token_ids) :] = 1
        data: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        data["mm_token_type_ids"] = (ids == self.image_token_id).int() * mask.int()
        pictures = [row for row in rows if row.pixel_values is not None and row.grids is not None]
        if pictures:
            data["pixel_values"] = torch.cat([row.pixel_values for row in pictures])  # type: ignore[misc]
            data["image_grid_thw"] = torch.cat([row.grids for row in pictures])  # type: ignore[misc]
        modalities = sorted({modality for row in rows for modality in row.series})
        if modalities:
            data["series"] = {m: torch.cat([r.series[m] for r in rows if m in r.series]) for m in modalities}
        return BatchFeature(data)

    @property
    def image_token_id(self) -> int:
        return int(self.tokenizer.convert_tokens_to_ids(IMAGE))


def _template(folder: Path) -> str | None:
    """The chat template of a file of its own, of today's kind or the one before; None: the tokenizer's holds."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    if (folder / "chat_template.json").is_file():
        return str(json.loads((folder / "chat_template.json").read_text(encoding="utf-8"))["chat_template"])
    return None


def _has_own(path: Path) -> bool:
    return (path / "processor_config.json").is_file()
