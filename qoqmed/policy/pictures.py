"""What the Qwen vision-language models share: how pictures become tokens, and where everything stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from qoqmed.geometry import Geometry, fit
from qoqmed.policy.attention import NAME, Segments

if TYPE_CHECKING:
    from transformers import PreTrainedModel as Host
else:
    Host = object


@dataclass(frozen=True)
class ImageFeatures:
    """tokens [n, D] of all images of a row. deep: further [n, D], to be added in the first decoder layers."""

    tokens: Tensor
    deep: tuple[Tensor, ...] = ()


class Pictures(Host):
    """Mixin of a backbone, which adds `row_options(embeds, images, slots)`: what its language model wants besides."""

    image_tokens: ClassVar[tuple[str, str, str]] = ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>")
    media_tokens: ClassVar[tuple[str, ...]] = (
        "<|vision_start|>",
        "<|vision_end|>",
        "<|vision_pad|>",
        "<|image_pad|>",
        "<|video_pad|>",
    )
    attention: ClassVar[Mapping[str, str]] = {"": "sdpa", "text_config": NAME, "vision_config": "sdpa"}

    @property
    def language_part(self) -> nn.Module:
        return self.model.language_model  # type: ignore[no-any-return]

    @property
    def vision_part(self) -> nn.Module:
        return self.model.visual  # type: ignore[no-any-return]

    @property
    def patch(self) -> int:
        """Side of a vision patch, in pixels."""
        return int(self.config.vision_config.patch_size)

    @property
    def merge(self) -> int:
        """Patches along a side of one vision token."""
        return int(self.config.vision_config.spatial_merge_size)

    def geometry(self, width: int, height: int, min_pixels: int, max_pixels: int) -> Geometry:
        """The size that an image of `width` x `height` pixels gets. Raises ValueError for absurd aspect ratios."""
        return fit(width, height, patch=self.patch, merge=self.merge, min_pixels=min_pixels, max_pixels=max_pixels)

    def positions(self, token_ids: Tensor, is_image: Tensor, grids: Tensor | None) -> Tensor:
        """Positions [3, P] of a prompt [P] (transformers' own rule); other placeholders take text-like positions."""
        base: Any = self.model
        positions, _ = base.get_rope_index(token_ids[None], is_image.int()[None], image_grid_thw=grids)
        return positions[:, 0]  # type: ignore[no-any-return]

    def hidden(
        self,
        embeds: Tensor,
        positions: Tensor,
        segments: Segments,
        images: ImageFeatures | None = None,
        slots: Tensor | None = None,
    ) -> Tensor:
        """embeds [S, D], positions [3, S] of one row -> last hidden states [S, D]. slots [n]: where `images` went."""
        out = self.language_part(
            inputs_embeds=embeds[None],
            position_ids=positions[:, None],
            use_cache=False,
            segments=segments,
            **self.row_options(embeds, images, slots),
        )
        return out.last_hidden_state[0]  # type: ignore[no-any-return]
