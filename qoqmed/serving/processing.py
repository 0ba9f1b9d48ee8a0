"""From the media of a request to the tensors of a clinical model, inside vLLM.

Every modality is a key of its own in `multi_modal_data`: `image`, and those of the model's encoders (`ecg`, ..). An
item is prepared, as our prompts hold it, or raw, as a user of vLLM gives it; raw ones go through `ClinicalProcessor`:

    {"image": [{"pixel_values": [N, patch] float32, "grid": [3] long}], "ecg": [{"values": as prepared}]}
    {"image": [PIL image or array [H, W, 3] uint8], "ecg": [array [12, T] float32 in mV]}

The token ids have one placeholder an item. Items are told apart by their content, in vLLM's prefix and encoder caches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature
from vllm.config.multimodal import MultiModalDummyOptions
from vllm.model_executor.models.qwen2_vl import Qwen2VLProcessingInfo
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.parse import MultiModalDataParser, ProcessorBatchItems
from vllm.multimodal.processing import BaseDummyInputsBuilder, BaseMultiModalProcessor, PromptReplacement

from qoqmed.policy.processor import IMAGE, ClinicalProcessor

SERIES = "series_"  # before the modality: the model's keyword of prepared series


class Items(ProcessorBatchItems[Any]):
    """The items of one modality, prepared or raw."""

    def get_processor_data(self) -> Mapping[str, object]:
        return {self.modality: self.get_all()}


class Parser(MultiModalDataParser):
    """Takes lists of items; a single one may stand alone."""

    def __init__(self, modalities: Sequence[str]) -> None:
        super().__init__()
        self.modalities = tuple(modalities)

    def _get_subparsers(self) -> Mapping[str, Callable[[Any], Items | None]]:
        return {modality: _parser(modality) for modality in self.modalities}


def _parser(modality: str) -> Callable[[Any], Items | None]:
    def parse(data: Any) -> Items | None:
        if data is None or (isinstance(data, (list, tuple)) and not data):
            return None
        return Items(list(data) if isinstance(data, (list, tuple)) else [data], modality)

    return parse


class ClinicalInfo(Qwen2VLProcessingInfo):
    """What vLLM asks of a model's inputs before there are any. Videos and volumes are their frames: images."""

    def get_hf_config(self) -> Any:
        return self.ctx.get_hf_config()

    def get_hf_processor(self, **kwargs: object) -> ClinicalProcessor:
        processor: ClinicalProcessor = self.ctx.get_hf_processor(ClinicalProcessor, **kwargs)
        return processor

    def get_data_parser(self) -> Parser:
        return Parser(tuple(self.get_supported_mm_limits()))

    @property
    def encoders(self) -> Mapping[str, Any]:
        """`config.encoders`, by modality."""
        return self.get_hf_config().encoders or {}

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        return {"image": None, **dict.fromkeys(self.encoders)}

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        return {"image": self.image_tokens(), **{m: self.series_tokens(m) for m in self.encoders}}

    def image_tokens(self) -> int:
        """Most tokens of one image, by the processor's pixel bounds."""
        vision = self.get_hf_config().vision_config
        side = vision.patch_size * vision.spatial_merge_size
        return int(self.get_hf_processor().pixel_bounds[1]) // int(side**2)

    def series_tokens(self, modality: str) -> int:
        """Tokens of one series."""
        return int(self.get_hf_processor().readers[modality].num_tokens)


class DummyInputs(BaseDummyInputsBuilder[ClinicalInfo]):
    """The largest images, by which vLLM measures its memory. No series: only their encoder knows their form."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        return IMAGE * int(mm_counts.get("image", 0))

    def get_dummy_mm_data(
        self, seq_len: int, mm_counts: Mapping[str, int], mm_options: MultiModalDummyOptions
    ) -> dict[str, list[Any]]:
        vision, tokens = self.info.get_hf_config().vision_config, self.info.image_tokens()
        merge = vision.spatial_merge_size
        grid = torch.tensor([1, merge, tokens * merge])
        width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        image = {"pixel_values": torch.zeros(int(grid.prod()), width), "grid": grid}
        return {"image": [image] * mm_counts.get("image", 0)}


class ClinicalInputs(BaseMultiModalProcessor[ClinicalInfo]):
    """Media to tensors, and the placeholders to their number."""

    def _call_hf_processor(self, hf_data: Mapping[str, Any], hf_kwargs: Mapping[str, object]) -> BatchFeature:
        processor, out = self.info.get_hf_processor(), BatchFeature()
        for modality, items in hf_data.items():
            if modality == "image":
                made = [_image(processor, item) for item in items]
                out["pixel_values"] = torch.cat([pixels for pixels, _ in made])
                out["image_grid_thw"] = torch.stack([grid for _, grid in made])
            else:
                out[SERIES + modality] = torch.stack([_series(processor, modality, item) for item in items])
        return out

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        grids = hf_inputs.get("image_grid_thw", torch.empty((0, 3), dtype=torch.long))
        return {
            "pixel_values": MultiModalFieldConfig.flat_from_sizes("image", grids.prod(-1)),
            "image_grid_thw": MultiModalFieldConfig.batched("image", keep_on_cpu=True),
            **{SERIES + modality: MultiModalFieldConfig.batched(modality) for modality in self.info.encoders},
        }

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, Any], out_mm_kwargs: Any
    ) -> Sequence[PromptReplacement]:
        config = self.info.get_hf_config()
        merged = config.vision_config.spatial_merge_size**2

        def image(item: int) -> list[int]:
            grid = out_mm_kwargs["image"][item]["image_grid_thw"].data
            return [config.image_token_id] * (int(grid.prod()) // merged)

        updates = [PromptReplacement("image", [config.image_token_id], image)]
        for modality, spec in self.info.encoders.items():
            token = int(spec["token_id"])
            updates.append(PromptReplacement(modality, [token], [token] * self.info.series_tokens(modality)))
        return updates


def _image(processor: ClinicalProcessor, item: Any) -> tuple[Tensor, Tensor]:
    """Patches [N, patch] float32 and grid [3] long of one image."""
    if isinstance(item, Mapping):
        return item["pixel_values"], item["grid"]
    (picture,) = processor._opened("image", item)
    made = processor.image_processor(images=[picture], return_tensors="pt")
    return made["pixel_values"].float(), made["image_grid_thw"][0]


def _series(processor: ClinicalProcessor, modality: str, item: Any) -> Tensor:
    if isinstance(item, Mapping):
        values: Tensor = item["values"]
        return values
    (prepared,) = processor._opened(modality, item)
    return prepared  # type: ignore[no-any-return]
