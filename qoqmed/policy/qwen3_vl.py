"""Backbone Qwen3-VL (transformers' `Qwen3VLForConditionalGeneration`): all that depends on its architecture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from qoqmed.boxes import RelativeFrame
from qoqmed.geometry import Geometry
from qoqmed.policy import tiny
from qoqmed.policy.clinical import Clinical, with_series
from qoqmed.policy.pictures import ImageFeatures, Pictures


class ClinicalQwen3VLConfig(Qwen3VLConfig):
    """Qwen3-VL's config with `encoders` (see `qoqmed.policy.clinical`)."""

    model_type = "qoqmed_qwen3_vl"
    encoders: dict[str, Any] | None = None


class ClinicalQwen3VL(Clinical, Pictures, Qwen3VLForConditionalGeneration):
    """Qwen3-VL with encoders of further modalities. Boxes run from 0 to 1000 along both sides.

    Features of several vision layers are added to the image tokens in the first decoder layers (DeepStack).
    """

    config_class = ClinicalQwen3VLConfig
    plain_type: ClassVar[str] = "qwen3_vl"
    plain_class: ClassVar[Any] = Qwen3VLForConditionalGeneration
    block_names: ClassVar[tuple[str, ...]] = ("Qwen3VLTextDecoderLayer",)
    forward = with_series(Qwen3VLForConditionalGeneration.forward)

    @staticmethod
    def frame(geometries: Sequence[Geometry | None]) -> RelativeFrame:
        """The numbers in which boxes are written, on whatever picture."""
        return RelativeFrame()

    def image_features(self, pixel_values: Tensor, grids: Tensor) -> ImageFeatures:
        """pixel_values [N, patch] and grids [I, 3] -> features of all images, in prompt order."""
        out = self.get_image_features(pixel_values, grids, return_dict=True)
        layers = out.deepstack_features  # transformers 5.19 gives them by image, 5.17 of all images together
        deep = tuple(layer if isinstance(layer, Tensor) else torch.cat(tuple(layer)) for layer in layers)
        return ImageFeatures(torch.cat(tuple(out.pooler_output)), deep)

    def row_options(self, embeds: Tensor, images: ImageFeatures | None, slots: Tensor | None) -> dict[str, Any]:
        """Where the images stand, and what DeepStack adds there."""
        if images is None or slots is None:
            return {}
        seen = torch.zeros(len(embeds), dtype=torch.bool, device=embeds.device).index_fill(0, slots, True)
        return {"visual_pos_masks": seen[None], "deepstack_visual_embeds": list(images.deep)}

    @classmethod
    def tiny_config(cls, size: tiny.TinySize, token_ids: Mapping[str, int], vocabulary: int) -> Any:
        """The config of `model: {name: tiny, backbone: qwen3_vl}`."""
        own = {"patch_size": 16, "num_position_embeddings": 64, "deepstack_visual_indexes": [0]}
        text = tiny.text_config(size, token_ids, vocabulary) | {"head_dim": size.hidden // size.heads}
        text["rope_parameters"]["mrope_interleaved"] = True
        return cls.config_class(
            text_config=text,
            vision_config=tiny.vision_config(size) | own,
            **tiny.special_ids(token_ids),
        )
