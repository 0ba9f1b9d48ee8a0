"""Attention over segments, registered through transformers' attention interface under the name "segments".

A model set to it takes one more forward keyword, `segments`: an object whose `attend` replaces the whole attention of a
layer. Without that keyword (vision blocks, `generate`) it is transformers' own SDPA.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask

from qoqmed.packing import Layout

NAME = "segments"


class Segments(Protocol):
    """query [1, H, S, d], key and value [1, K, S, d] with rotary positions applied -> [1, H, S, d]."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor: ...


def segment_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    segments: Segments | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function that transformers calls; see its AttentionInterface for the arguments."""
    if segments is None:
        out, _ = sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
        return out, None
    assert scaling is not None
    out = segments.attend(int(module.layer_idx), query, key, value, scaling)  # type: ignore[arg-type]
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, segment_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)


def repeat_heads(x: Tensor, heads: int) -> Tensor:
    """[B, K, L, d] -> [B, H, L, d]: each key head serves H / K query heads."""
    b, k, length, d = x.shape
    if k == heads:
        return x
    return x[:, :, None].expand(b, k, heads // k, length, d).reshape(b, heads, length, d)


class Packed:
    """Attention of a packed row: causal within each prompt; each response sees its prompt and itself."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """See `Segments.attend`; exact up to rounding against each response alone after its prompt."""
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # [S, heads, d]
        heads, outs = query.shape[1], []
        for prompts in self.layout.prompts:
            own_q, own_k, own_v = (_take(x, prompts.index, heads) for x in (q, k, v))
            outs.append(_flat(F.scaled_dot_product_attention(own_q, own_k, own_v, is_causal=True, scale=scale)))
        for batch in self.layout.responses:
            reach = torch.cat([batch.prompt, batch.own], 1)  # [B, L + R]
            own_q, far_k, far_v = _take(q, batch.own, heads), _take(k, reach, heads), _take(v, reach, heads)
            outs.append(_flat(F.scaled_dot_product_attention(own_q, far_k, far_v, attn_mask=batch.mask, scale=scale)))
        return torch.cat(outs)[self.layout.order].transpose(0, 1)[None]


def _take(x: Tensor, index: Tensor, heads: int) -> Tensor:
    """[S, K, d] at index [B, L] -> [B, H, L, d]."""
    rows = x.index_select(0, index.flatten()).view(*index.shape, *x.shape[1:])  # [B, L, K, d]
    return repeat_heads(rows.transpose(1, 2), heads)


def _flat(x: Tensor) -> Tensor:
    """[B, H, L, d] -> [B * L, H, d]."""
    return x.transpose(1, 2).flatten(0, 1)


class Prefill:
    """Attention of prompts alone that keeps their keys and values for decoding."""

    def __init__(self, layout: Layout) -> None:
        self.packed = Packed(layout)
        self.index = _padded(layout)  # [P, L]
        self.keys: list[Tensor] = []  # a layer: [P, K, L, d]
        self.values: list[Tensor] = []

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """See `Segments.attend`."""
        self.keys.append(key[0][:, self.index].transpose(0, 1))
        self.values.append(value[0][:, self.index].transpose(0, 1))
        return self.packed.attend(layer, query, key, value, scale)


def _padded(layout: Layout) -> Tensor:
    """[P, L] row indices of the prompts, padded at the right."""
    device = layout.order.device
    lengths = torch.tensor(layout.prompt_lengths, device=device)[:, None]
    starts = torch.tensor(layout.prompt_starts, device=device)[:, None]
    return starts + torch.minimum(torch.arange(int(lengths.max()), device=device), lengths - 1)


def _by_prompt(x: Tensor, g: int) -> Tensor:
    """[P * G, K, rep, n] -> [P, K, G * rep, n]: a group's queries side by side, so that its prompt is read once."""
    rows, k, rep, n = x.shape
    return x.reshape(rows // g, g, k, rep, n).transpose(1, 2).reshape(rows // g, k, g * rep, n)


def _by_row(x: Tensor, g: int) -> Tensor:
    """The inverse of `_by_prompt`."""
    prompts, k, both, n = x.shape
    return x.view(prompts, k, g, both // g, n).transpose(1, 2).reshape(prompts * g, k, both // g, n)


class Decode:
    """Attention of one new token of each response, over its group's prompt (stored once) and its own past.

    Rows are a grid of P prompts x G responses, all at the same step.
    """

    def __init__(self, prefill: Prefill, lengths: Tensor, n: int, capacity: int) -> None:
        self.n, self.step = n, 0
        self.prompt_keys, self.prompt_values = prefill.keys, prefill.values
        k = self.prompt_keys[0]
        longest = k.shape[2]
        self.unseen = (torch.arange(longest, device=k.device) >= lengths[:, None])[:, None, None]  # [P, 1, 1, L]
        shape = (len(lengths) * n, k.shape[1], capacity, k.shape[3])
        self.keys = [k.new_zeros(shape) for _ in self.prompt_keys]
        self.values = [k.new_zeros(shape) for _ in self.prompt_keys]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """See `Segments.attend`, with S = P * G."""
        past, own_k, own_v = self.step + 1, self.keys[layer], self.values[layer]
        own_k[:, :, self.step] = key[0].transpose(0, 1)
        own_v[:, :, self.step] = value[0].transpose(0, 1)
        heads, rows, d = query.shape[1:]
        k_heads = key.shape[1]
        q = query[0].transpose(0, 1).reshape(rows, k_heads, heads // k_heads, d) * scale
        far = _by_prompt(q, self.n) @ self.prompt_keys[layer].transpose(2, 3)  # [P, K, G * rep, L]
        far = _by_row(far.masked_fill(self.unseen, -torch.inf), self.n)  # [R, K, rep, L]
        near = q @ own_k[:, :, :past].transpose(2, 3)  # [R, K, rep, past]
        weights = torch.cat([far, near], 3).float().softmax(3).to(value.dtype)
        longest = far.shape[3]
        out = _by_row(_by_prompt(weights[..., :longest], self.n) @ self.prompt_values[layer], self.n)
        out = out + weights[..., longest:] @ own_v[:, :, :past]  # [R, K, rep, d]
        return out.reshape(rows, heads, d).transpose(0, 1)[None]

    def keep(self, prompts: Tensor, rows: Tensor, n: int) -> None:
        """Go on with a smaller grid: `prompts` [P'] of the old prompts, `rows` [P' * n] of the old rows."""
        past = self.step
        self.n = n
        self.unseen = self.unseen[prompts]
        for layer in range(len(self.keys)):
            self.prompt_keys[layer] = self.prompt_keys[layer][prompts]
            self.prompt_values[layer] = self.prompt_values[layer][prompts]
            for store in (self.keys, self.values):
                fresh = store[layer].new_empty((len(rows), *store[layer].shape[1:]))
                fresh[:, :, :past] = store[layer][rows][:, :, :past]
                store[layer] = fresh
