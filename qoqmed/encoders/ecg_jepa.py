"""ECG-JEPA's encoder (Kim 2024, arXiv:2410.08559), exact in shape and names, so that the published weights fit.

Eight leads of 10 s at 250 Hz become 8 x 50 patches of 0.2 s, lead-major. A token attends to the tokens of its own lead
and of its own time patch only. Positions are added before every block, not once. Names such as `W_P` and
`encoder_blocks.blocks.0` are no taste: they are the format of the published file (`qoqmed convert ecg-jepa`).

Deviations: positions are a buffer and no frozen parameter, so that nothing can train them; no stochastic depth, which
training from nothing had (0.1); leads in another order take their positions along.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from qoqmed.encoders import weights as weights_file
from qoqmed.errors import Problem
from qoqmed.media import ecg
from qoqmed.registry.arguments import check, one_of, within

LEADS = ("I", "II", "V1", "V2", "V3", "V4", "V5", "V6")  # the order of the published positions
RATE_HZ, WINDOW_S = 250.0, 10.0
PATCHES, PATCH = 50, 50  # patches of a lead, samples of a patch
POOLS = ("mean", "none", "lead")


class EcgJepa(nn.Module):
    """weights: a safetensors file from `qoqmed convert ecg-jepa`; null: random ones.

    pool: `mean` gives one token, as released; `lead` the mean over leads, one token a time patch (50); `none` all
    (50 a lead, lead-major). leads: of I, II and V1 to V6, in the order of the input's rows; fewer restrict positions
    and attention. width, depth, heads: other than the published ones are for tests.
    """

    modality = "ecg"
    placeholder = "<|ecg_pad|>"
    pos_embed: Tensor

    def __init__(
        self,
        weights: str | None = None,
        pool: str = "mean",
        leads: Sequence[str] = LEADS,
        width: int = 768,
        depth: int = 12,
        heads: int = 16,
    ) -> None:
        super().__init__()
        check(
            one_of("pool", pool, POOLS),
            *(one_of("lead", lead, LEADS) for lead in leads),
            within("leads", len(leads), low=1),
            None if len(set(leads)) == len(leads) else Problem("a lead is named twice", got=", ".join(leads)),
            within("depth", depth, low=1),
            within("heads", heads, low=1),
            within("width", width, low=4),
            _divides(width, 4),
            _divides(width, max(heads, 1)),
        )
        self.pool, self.leads, self.width = pool, tuple(leads), width
        self.num_tokens = {"mean": 1, "lead": PATCHES, "none": PATCHES * len(leads)}[pool]
        self.register_buffer("pos_embed", positions(width))
        self.W_P = nn.Linear(PATCH, width)
        self.encoder_blocks = Blocks(width, depth, heads)
        self.norm = nn.LayerNorm(width)
        if weights is None:
            self._initialise()
        elif not self.pos_embed.is_meta:  # on meta: a shell that is filled from elsewhere
            weights_file.load(self, weights, mend="qoqmed convert ecg-jepa FILE OUT makes one of the published file")

    def load(self, path: Path, options: Mapping[str, Any]) -> np.ndarray:
        """An ECG file -> [L, 2500] millivolts. options: see `media.ecg.load`."""
        return ecg.load(path, self.leads, RATE_HZ, WINDOW_S, options)

    def prepare(self, array: np.ndarray) -> Tensor:
        """[12, any T] or [L, any T] millivolts at 250 Hz -> float32 [L, 2500]. Raises MediaError for NaN."""
        signal = ecg.pick_leads(array, self.leads)
        ecg.require_finite(signal, self.leads, "array")
        return torch.from_numpy(np.ascontiguousarray(ecg.fit(signal, PATCHES * PATCH), dtype=np.float32))

    def forward(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """[B, L, 2500] -> features [B, N, D] and a mask [B, N], True everywhere: every token is real."""
        tokens = self.W_P(batch.reshape(len(batch), -1, PATCH))  # [B, L, T] -> [B, L * 50, 50] -> [B, L * 50, D]
        tokens = self.norm(self.encoder_blocks(tokens, self._positions(), crosses(len(self.leads), batch.device)))
        if self.pool == "mean":
            tokens = tokens.mean(1, keepdim=True)
        elif self.pool == "lead":
            tokens = tokens.reshape(len(tokens), len(self.leads), PATCHES, self.width).mean(1)
        return tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)

    def _positions(self) -> Tensor:
        """[L * 50, D] of the leads that are read, in the weights' dtype."""
        by_lead = self.pos_embed.to(self.W_P.weight.dtype).reshape(len(LEADS), PATCHES, self.width)
        return torch.cat([by_lead[LEADS.index(lead)] for lead in self.leads])

    def _initialise(self) -> None:
        """As the published training began: truncated normal of 0.02, what ends a branch scaled down by its depth."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for number in range(len(self.encoder_blocks.blocks)):
            for last in ("attn.proj", "mlp.fc2"):
                weight = self.get_parameter(f"encoder_blocks.blocks.{number}.{last}.weight")
                weight.data.div_(math.sqrt(2.0 * (number + 1)))


class Blocks(nn.Module):
    """Pre-norm transformer blocks, with positions added before each."""

    def __init__(self, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(depth)])

    def forward(self, tokens: Tensor, places: Tensor, mask: Tensor) -> Tensor:
        """tokens [B, N, D], places [N, D], mask [N, N], True where a row may attend to a column."""
        for block in self.blocks:
            tokens = block(tokens + places, mask)
        return tokens


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width), Attention(width, heads)
        self.norm2, self.mlp = nn.LayerNorm(width), Mlp(width)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        tokens = tokens + self.attn(self.norm1(tokens), mask)
        added: Tensor = tokens + self.mlp(self.norm2(tokens))
        return added


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        split = self.qkv(tokens).reshape(*tokens.shape[:2], 3, self.heads, -1)  # [B, N, 3 * D] -> [B, N, 3, H, D / H]
        query, key, value = split.permute(2, 0, 3, 1, 4)  # each [B, H, N, D / H]
        mixed = scaled_dot_product_attention(query, key, value, attn_mask=mask)
        projected: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))  # [B, H, N, D / H] -> [B, N, D]
        return projected


class Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        projected: Tensor = self.fc2(gelu(self.fc1(tokens)))
        return projected


def positions(width: int) -> Tensor:
    """[400, D] float32, 2-D sine-cosine: the first half of the width encodes the time patch, the second the lead.

    Each half is [sin | cos] of the index times 10000^(-i / (D / 4)), i from 0 below D / 4.
    """
    quarter = width // 4
    rates = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    index = torch.arange(len(LEADS) * PATCHES)
    angles = [place[:, None] * rates for place in (index % PATCHES, index // PATCHES)]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1).float()


def crosses(leads: int, device: torch.device) -> Tensor:
    """[N, N] bool, True where two of the lead-major tokens share their lead or their time patch."""
    index = torch.arange(leads * PATCHES, device=device)
    lead, time = index // PATCHES, index % PATCHES
    return (lead[:, None] == lead) | (time[:, None] == time)


def _divides(width: int, parts: int) -> Problem | None:
    expected = f"a multiple of {parts}"
    return None if width % parts == 0 else Problem("width does not fit", got=str(width), expected=expected)
