"""The clinical policy: a vision-language backbone, encoders of other modalities with linear projectors, one forward.

The forward takes a pack and gives log-probs and entropies of its response tokens, never logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qoqmed.logprobs import token_log_probs
from qoqmed.packing import Pack, Prompt, prompt_pack
from qoqmed.policy.attention import Decode, Packed, Prefill, Segments
from qoqmed.policy.qwen2_5_vl import Qwen25VL


@dataclass(frozen=True)
class TokenScores:
    """Per response token of a pack, in its order: log_probs [N] float32 (nats); entropies [N] float32 or None."""

    log_probs: Tensor
    entropies: Tensor | None


@dataclass(frozen=True)
class Prefix:
    """Prompts ready for decoding: hidden [P, D] of their last tokens, their keys and values, the next positions [P]."""

    hidden: Tensor
    cache: Prefill
    lengths: Tensor
    starts: Tensor


class ClinicalPolicy(nn.Module):
    """Hosts the backbone (`model`), `encoders` and `projectors` by modality.

    banned: [V] bool buffer, True for ids that are neither sampled nor in the softmax.
    """

    banned: Tensor

    def __init__(
        self, backbone: Qwen25VL, encoders: Mapping[str, nn.Module], banned: Tensor, logprob_chunk: int = 512
    ) -> None:
        super().__init__()
        self.model: nn.Module = backbone.model
        self.encoders = nn.ModuleDict(dict(encoders))
        self.projectors = nn.ModuleDict(
            {name: nn.Linear(int(encoder.width), backbone.hidden_size) for name, encoder in encoders.items()}  # type: ignore[arg-type]
        )
        self.register_buffer("banned", banned, persistent=False)
        self.logprob_chunk = logprob_chunk
        self.autocast = False  # bfloat16 arithmetic on weights of another type, in sampling and training alike

    @property
    def backbone(self) -> Qwen25VL:
        return Qwen25VL(self.model)

    @property
    def device(self) -> torch.device:
        return self.banned.device

    def forward(
        self, pack: Pack, temperature: float = 1.0, entropy: bool = False, entropy_grad: bool = False
    ) -> TokenScores:
        """Log-probs (and entropies) of the pack's response tokens: softmax(logits / temperature) without banned ids."""
        pack = pack.to(self.device)
        with self._arithmetic():
            hidden = self.hidden(pack, Packed(pack.layout))[pack.sources]  # [N, D]
            log_probs, entropies = token_log_probs(
                hidden,
                self.backbone.head.weight,
                pack.targets,
                temperature=temperature,
                banned=self.banned,
                chunk=self.logprob_chunk,
                entropy=entropy or entropy_grad,
                entropy_grad=entropy_grad,
            )
        return TokenScores(log_probs, entropies)

    def _arithmetic(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast)

    def hidden(self, pack: Pack, segments: Segments) -> Tensor:
        """Last hidden states [S, D] of the row; media features are put into prompts only, once per case."""
        backbone = self.backbone
        embeds = backbone.embed(pack.token_ids)
        if pack.pixel_values is not None and pack.grids is not None and pack.image_slots is not None:
            features = backbone.image_features(pack.pixel_values.to(embeds.dtype), pack.grids)
            embeds = embeds.index_copy(0, pack.image_slots, features.to(embeds.dtype))
        for modality, series in pack.series.items():
            encoder, projector = self.encoders[modality], self.projectors[modality]
            features, _ = encoder(series.to(next(encoder.parameters(), series).dtype))  # [B, n, D']
            tokens = projector(features.to(projector.weight.dtype)).flatten(0, 1)  # [B * n, D]
            embeds = embeds.index_copy(0, pack.series_slots[modality], tokens.to(embeds.dtype))
        return backbone.hidden(embeds, pack.positions, segments)

    @torch.no_grad()
    def prefill(self, prompts: Sequence[Prompt]) -> Prefix:
        """Run the prompts once; every response of a group decodes from this."""
        pack = prompt_pack(prompts).to(self.device)
        cache = Prefill(pack.layout)
        with self._arithmetic():
            hidden = self.hidden(pack, cache)
        lengths = torch.tensor(pack.layout.prompt_lengths, device=self.device)
        last = torch.tensor(pack.layout.prompt_starts, device=self.device) + lengths - 1
        starts = torch.tensor([prompt.start for prompt in prompts], device=self.device)
        return Prefix(hidden[last], cache, lengths, starts)

    @torch.no_grad()
    def decode(self, token_ids: Tensor, positions: Tensor, cache: Decode) -> Tensor:
        """One token of each response: token_ids [R], positions [R] -> hidden [R, D]; advances the cache by a step."""
        with self._arithmetic():
            hidden = self.backbone.hidden(self.backbone.embed(token_ids), positions.expand(3, -1), cache)
        cache.step += 1
        return hidden

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [R, D] -> float32 logits [R, V] with banned ids at -inf."""
        with self._arithmetic():
            logits: Tensor = self.backbone.head(hidden)
        logits = logits.float()
        return logits.masked_fill(self.banned, -torch.inf)

    def part(self, name: str) -> list[nn.Parameter]:
        """Parameters of `language_model` (with embeddings and head), `vision`, `encoders[.x]` or `projectors[.x]`."""
        head, _, rest = name.partition(".")
        if head == "language_model":
            inside = [*self.backbone.language_model.parameters(), *self.backbone.head.parameters()]
        elif head == "vision":
            inside = list(self.backbone.vision.parameters())
        else:
            group: nn.ModuleDict = getattr(self, head)
            names = list(group) if rest in ("", "*") else [rest]
            inside = [parameter for key in names for parameter in group[key].parameters()]
        return inside
