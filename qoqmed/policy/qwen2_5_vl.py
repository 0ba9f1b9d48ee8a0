"""Backbone Qwen2.5-VL (transformers' `Qwen2_5_VLForConditionalGeneration`): all that depends on its architecture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import Qwen2_5_VLForConditionalGeneration

from qoqmed.boxes import AbsoluteFrame
from qoqmed.errors import Problem, UserError
from qoqmed.geometry import Geometry, fit
from qoqmed.policy.attention import NAME, Segments


class Qwen25VL:
    """Adapter: a thin view of one model. Boxes are absolute pixels of the resized image."""

    model_type: ClassVar[str] = "qwen2_5_vl"
    model_class: ClassVar[Any] = Qwen2_5_VLForConditionalGeneration
    block_names: ClassVar[tuple[str, ...]] = ("Qwen2_5_VLDecoderLayer",)
    image_tokens: ClassVar[tuple[str, str, str]] = ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>")
    media_tokens: ClassVar[tuple[str, ...]] = (
        "<|vision_start|>",
        "<|vision_end|>",
        "<|vision_pad|>",
        "<|image_pad|>",
        "<|video_pad|>",
    )
    attention: ClassVar[Mapping[str, str]] = {"": "sdpa", "text_config": NAME, "vision_config": "sdpa"}

    def __init__(self, model: nn.Module) -> None:
        config: Any = model.config
        if "sliding_attention" in (config.text_config.layer_types or ()):
            raise UserError(
                Problem(
                    what="this checkpoint uses sliding-window attention, which packs would ignore",
                    where="model.path",
                    expected="full attention in every layer",
                    mend="set use_sliding_window to false in the checkpoint's config.json, if it was trained so",
                )
            )
        self.model: Any = model

    @property
    def language_model(self) -> nn.Module:
        return self.model.model.language_model  # type: ignore[no-any-return]

    @property
    def vision(self) -> nn.Module:
        return self.model.model.visual  # type: ignore[no-any-return]

    @property
    def head(self) -> nn.Linear:
        return self.model.lm_head  # type: ignore[no-any-return]

    @property
    def hidden_size(self) -> int:
        return int(self.model.config.text_config.hidden_size)

    @property
    def patch(self) -> int:
        return int(self.model.config.vision_config.patch_size)

    @property
    def merge(self) -> int:
        return int(self.model.config.vision_config.spatial_merge_size)

    def geometry(self, width: int, height: int, min_pixels: int, max_pixels: int) -> Geometry:
        """The size that an image of `width` x `height` pixels gets. Raises ValueError for absurd aspect ratios."""
        return fit(width, height, patch=self.patch, merge=self.merge, min_pixels=min_pixels, max_pixels=max_pixels)

    @staticmethod
    def frame(geometries: Sequence[Geometry | None]) -> AbsoluteFrame:
        return AbsoluteFrame(geometries)

    def embed(self, token_ids: Tensor) -> Tensor:
        """[S] long -> [S, D]."""
        return self.model.get_input_embeddings()(token_ids)  # type: ignore[no-any-return]

    def image_features(self, pixel_values: Tensor, grids: Tensor) -> Tensor:
        """pixel_values [N, patch] and grids [I, 3] -> features [tokens of all images, D], in prompt order."""
        features = self.model.get_image_features(pixel_values, grids, return_dict=True).pooler_output
        return torch.cat(tuple(features))

    def positions(self, token_ids: Tensor, is_image: Tensor, grids: Tensor | None) -> Tensor:
        """Positions [3, P] of a prompt [P] (transformers' own rule); other placeholders take text-like positions."""
        kinds = is_image.int()[None]
        positions, _ = self.model.model.get_rope_index(token_ids[None], kinds, image_grid_thw=grids)
        return positions[:, 0]  # type: ignore[no-any-return]

    def hidden(self, embeds: Tensor, positions: Tensor, segments: Segments) -> Tensor:
        """embeds [S, D] and positions [3, S] of one row -> last hidden states [S, D]."""
        out = self.language_model(
            inputs_embeds=embeds[None],
            position_ids=positions[:, None],
            attention_mask={"full_attention": None},
            use_cache=False,
            segments=segments,
        )
        return out.last_hidden_state[0]  # type: ignore[no-any-return]
