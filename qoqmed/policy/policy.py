"""The clinical policy: a vision-language backbone, encoders of other modalities with linear projectors, one forward.

The forward takes a pack and gives log-probs and entropies of its response tokens, never logits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from qoqmed.logprobs import token_log_probs
from qoqmed.packing import Pack, Prompt, prompt_pack
from qoqmed.policy import lora
from qoqmed.policy.attention import Decode, Packed, Prefill, Segments


@dataclass(frozen=True)
class TokenScores:
    """Per response token of a pack, in its order, [N] float32: log_probs (nats); entropies, or None; values, of the
    state before the token, where the policy has a value head."""

    log_probs: Tensor
    entropies: Tensor | None
    values: Tensor | None = None


@dataclass(frozen=True)
class Prefix:
    """Prompts ready for decoding: hidden [P, D] of their last tokens, their keys and values, the next positions [P]."""

    hidden: Tensor
    cache: Prefill
    lengths: Tensor
    starts: Tensor


class ClinicalPolicy(nn.Module):
    """Hosts the clinical model: a plugin of `qoqmed.backbones` with its encoders and projectors.

    banned: [V] bool buffer, True for ids that are neither sampled nor in the softmax. value_head: of hidden states,
    where something needs values; no part of the model that is exported.
    """

    banned: Tensor

    def __init__(self, model: Any, banned: Tensor, logprob_chunk: int = 512) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("banned", banned, persistent=False)
        self.logprob_chunk = logprob_chunk
        self.value_head: nn.Linear | None = None
        self.attention = "auto"  # or eager: matrix products and softmax, to check the fast kernels against
        self.autocast = False  # bfloat16 arithmetic on weights of another type, in sampling and training alike

    def add_value_head(self) -> None:
        """Values of 0 to begin with."""
        head = self.model.lm_head.weight
        self.value_head = nn.Linear(head.shape[1], 1, device=head.device, dtype=head.dtype)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)

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
                self.model.lm_head.weight,
                pack.targets,
                temperature=temperature,
                banned=self.banned,
                chunk=self.logprob_chunk,
                entropy=entropy or entropy_grad,
                entropy_grad=entropy_grad,
            )
        return TokenScores(log_probs, entropies, self._values(hidden))

    def _values(self, hidden: Tensor) -> Tensor | None:
        """[N, D] -> [N] float32."""
        if self.value_head is None:
            return None
        head = self.value_head
        kind = torch.promote_types(hidden.dtype, torch.float32)
        return nn.functional.linear(hidden.to(kind), head.weight.to(kind), head.bias.to(kind))[:, 0]

    @contextmanager
    def _arithmetic(self) -> Iterator[None]:
        plain = sdpa_kernel(SDPBackend.MATH) if self.attention == "eager" else nullcontext()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast), plain:
            yield

    def hidden(self, pack: Pack, segments: Segments) -> Tensor:
        """Last hidden states [S, D] of the row; media features are put into prompts only, once per case."""
        model, images = self.model, None
        embeds = model.get_input_embeddings()(pack.token_ids)
        if pack.pixel_values is not None and pack.grids is not None and pack.image_slots is not None:
            images = model.image_features(pack.pixel_values.to(embeds.dtype), pack.grids)
            embeds = embeds.index_copy(0, pack.image_slots, images.tokens.to(embeds.dtype))
        for modality, values in pack.series.items():
            features = model.series_features(modality, values)
            embeds = embeds.index_copy(0, pack.series_slots[modality], features.to(embeds.dtype))
        if torch.is_grad_enabled() and not embeds.requires_grad:
            embeds.requires_grad_()  # all ranks run backward through all layers, whichever media their packs have
        hidden: Tensor = model.hidden(embeds, pack.positions, segments, images, pack.image_slots)
        return hidden

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
            embeds = self.model.get_input_embeddings()(token_ids)
            hidden: Tensor = self.model.hidden(embeds, positions.expand(3, -1), cache)
        cache.step += 1
        return hidden

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [R, D] -> float32 logits [R, V] with banned ids at -inf."""
        with self._arithmetic():
            logits: Tensor = self.model.lm_head(hidden)
        logits = logits.float()
        return logits.masked_fill(self.banned, -torch.inf)

    def roots_of(self, part: str) -> list[nn.Module]:
        """Modules of `language_model` (with embeddings and head), `vision`, `encoders[.x]` or `projectors[.x]`."""
        head, _, rest = part.partition(".")
        if head == "language_model":
            return [self.model.language_part, self.model.lm_head]
        if head == "vision":
            return [self.model.vision_part]
        group: nn.ModuleDict = getattr(self.model, head)
        return [group[key] for key in (list(group) if rest in ("", "*") else [rest])]

    def part(self, name: str) -> list[nn.Parameter]:
        """The parameters that train when this part does: its adapters, where it has any, else all of them."""
        named = [item for root in self.roots_of(name) for item in root.named_parameters()]
        adapters = [parameter for key, parameter in named if lora.MARK in f".{key}"]
        return adapters or [parameter for _, parameter in named]
