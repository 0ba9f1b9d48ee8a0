"""Backbone Qwen2.5-VL (transformers' `Qwen2_5_VLForConditionalGeneration`): all that depends on its architecture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from qoqmed.boxes import AbsoluteFrame
from qoqmed.errors import Problem, UserError
from qoqmed.geometry import Geometry
from qoqmed.policy import tiny
from qoqmed.policy.clinical import Clinical, with_series
from qoqmed.policy.pictures import ImageFeatures, Pictures


class ClinicalQwen2_5_VLConfig(Qwen2_5_VLConfig):
    """Qwen2.5-VL's config with `encoders` (see `qoqmed.policy.clinical`)."""

    model_type = "qoqmed_qwen2_5_vl"
    encoders: dict[str, Any] | None = None


class ClinicalQwen2_5_VL(Clinical, Pictures, Qwen2_5_VLForConditionalGeneration):
    """Qwen2.5-VL with encoders of further modalities. Boxes are absolute pixels of the resized image."""

    config_class = ClinicalQwen2_5_VLConfig
    plain_type: ClassVar[str] = "qwen2_5_vl"
    plain_class: ClassVar[Any] = Qwen2_5_VLForConditionalGeneration
    block_names: ClassVar[tuple[str, ...]] = ("Qwen2_5_VLDecoderLayer",)
    forward = with_series(Qwen2_5_VLForConditionalGeneration.forward)

    def __init__(self, config: ClinicalQwen2_5_VLConfig) -> None:
        if "sliding_attention" in (config.text_config.layer_types or ()):
            raise UserError(
                Problem(
                    what="this checkpoint uses sliding-window attention, which packs would ignore",
                    where="model.path",
                    expected="full attention in every layer",
                    mend="set use_sliding_window to false in the checkpoint's config.json, if it was trained so",
                )
            )
        super().__init__(config)

    @staticmethod
    def frame(geometries: Sequence[Geometry | None]) -> AbsoluteFrame:
        """The numbers in which boxes on these pictures are written."""
        return AbsoluteFrame(geometries)

    def image_features(self, pixel_values: Tensor, grids: Tensor) -> ImageFeatures:
        """pixel_values [N, patch] and grids [I, 3] -> features of all images, in prompt order."""
        features = self.get_image_features(pixel_values, grids, return_dict=True).pooler_output
        return ImageFeatures(torch.cat(tuple(features)))

    def row_options(self, embeds: Tensor, images: ImageFeatures | None, slots: Tensor | None) -> dict[str, Any]:
        """No mask: a pack's own attention knows what sees what."""
        return {"attention_mask": {"full_attention": None}}

    @classmethod
    def tiny_config(cls, size: tiny.TinySize, token_ids: Mapping[str, int], vocabulary: int) -> Any:
        """The config of `model: {name: tiny}`."""
        own = {"patch_size": 14, "window_size": 112, "fullatt_block_indexes": [size.vision_layers - 1]}
        return cls.config_class(
            text_config=tiny.text_config(size, token_ids, vocabulary),
            vision_config=tiny.vision_config(size) | own,
            **tiny.special_ids(token_ids),
        )
