"""ECG-JEPA's encoder in plain torch, written from the description of the published model, not from the implementation.

Tokens are walked as (lead, patch) pairs, attention is an explicit softmax over the allowed ones, LayerNorm and GELU are
spelled out. Slow; compare in float64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def tokens(weights: Mapping[str, Tensor], signal: Tensor, heads: int, leads: Sequence[int] = range(8)) -> Tensor:
    """signal [B, L, 2500], leads: places in I, II, V1..V6 of the rows -> [B, L * 50, D] after the last norm."""
    places = [(lead, patch) for lead in leads for patch in range(50)]
    cut = [signal[:, row, 50 * patch : 50 * patch + 50] for row in range(len(leads)) for patch in range(50)]
    x = torch.stack(cut, dim=1) @ weights["W_P.weight"].T + weights["W_P.bias"]
    pos = torch.stack([weights["pos_embed"][50 * lead + patch] for lead, patch in places])
    reach = torch.tensor([[a[0] == b[0] or a[1] == b[1] for b in places] for a in places])
    depth = sum(name.endswith("attn.qkv.weight") for name in weights)
    for number in range(depth):
        own = {
            name.removeprefix(f"encoder_blocks.blocks.{number}."): tensor
            for name, tensor in weights.items()
            if name.startswith(f"encoder_blocks.blocks.{number}.")
        }
        x = x + pos
        x = x + attention(own, layer_norm(x, own["norm1.weight"], own["norm1.bias"]), reach, heads)
        inner = layer_norm(x, own["norm2.weight"], own["norm2.bias"]) @ own["mlp.fc1.weight"].T + own["mlp.fc1.bias"]
        inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
        x = x + inner @ own["mlp.fc2.weight"].T + own["mlp.fc2.bias"]
    return layer_norm(x, weights["norm.weight"], weights["norm.bias"])


def attention(own: Mapping[str, Tensor], x: Tensor, reach: Tensor, heads: int) -> Tensor:
    width = x.shape[-1]
    size = width // heads
    joint = x @ own["attn.qkv.weight"].T
    queries, keys, values = joint[..., :width], joint[..., width : 2 * width], joint[..., 2 * width :]
    out = []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        scores = queries[..., part] @ keys[..., part].transpose(1, 2) / math.sqrt(size)
        weight = torch.where(reach, scores.exp(), 0.0)
        out.append(weight / weight.sum(-1, keepdim=True) @ values[..., part])
    return torch.cat(out, dim=-1) @ own["attn.proj.weight"].T + own["attn.proj.bias"]


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight + bias
