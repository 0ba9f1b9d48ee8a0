"""Packs: groups laid out in one row, each prompt once, followed by its responses.

    [prompt a][response a1]..[response aG][prompt b][response b1]..

Positions of every response continue from its prompt's end; a response sees its prompt and itself. This is the only
place where padding, masks and positions are made. Attention runs over `Layout.prompts` and `Layout.responses`:
batches of index rows, bucketed by length so that little of them is padding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from qoqmed.geometry import Geometry
from qoqmed.types import Group

PADDING = 1.25  # a bucket may cost this much more than its unpadded rows


@dataclass(frozen=True)
class Prompt:
    """A case's encoded question, made once per case and shared by the engine and the trainer.

    token_ids: [P] long, placeholders expanded. positions: [3, P] long (time, row, column). start: the position of a
    response's first token. pixel_values: [N, patch] float32. grids: [I, 3] long, patches in time, row and column.
    image_slots: [n] long, the prompt's indices that receive image features. series: modality -> [S, ...] prepared
    tensors; series_slots: modality -> [S * tokens] long. geometries: one per medium, or None (not spatial, left out).
    """

    case_id: str
    token_ids: Tensor
    positions: Tensor
    start: int
    pixel_values: Tensor | None = None
    grids: Tensor | None = None
    image_slots: Tensor | None = None
    series: Mapping[str, Tensor] = field(default_factory=dict)
    series_slots: Mapping[str, Tensor] = field(default_factory=dict)
    geometries: tuple[Geometry | None, ...] = ()


@dataclass(frozen=True)
class Causal:
    """Prompts as a batch: index [B, L] into the row, padded at the right with the prompt's last token."""

    index: Tensor


@dataclass(frozen=True)
class Suffix:
    """Responses as a batch: own [B, R] and prompt [B, L] index the row; mask [B, 1, R, L + R], True attends."""

    own: Tensor
    prompt: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Layout:
    """The attention of one row. order [S]: where each token stands in the batches' outputs, put end to end."""

    prompts: tuple[Causal, ...]
    responses: tuple[Suffix, ...]
    order: Tensor
    prompt_starts: tuple[int, ...]
    prompt_lengths: tuple[int, ...]


@dataclass(frozen=True)
class Pack:
    """One row of S tokens with N response tokens.

    token_ids [S], positions [3, S]. targets [N]: the response tokens; sources [N]: the row index whose hidden state
    predicts each (the first token of a response: the prompt's last). response [N]: the token's place in `members`.
    members: (group, rollout) indices of the responses, by the order given to `pack`. lengths [n]; trainable [n] bool.
    Media fields are those of the prompts, put end to end; slots are indices into the row.
    """

    layout: Layout
    token_ids: Tensor
    positions: Tensor
    sources: Tensor
    targets: Tensor
    response: Tensor
    members: tuple[tuple[int, int], ...]
    lengths: Tensor
    trainable: Tensor
    pixel_values: Tensor | None
    grids: Tensor | None
    image_slots: Tensor | None
    series: Mapping[str, Tensor]
    series_slots: Mapping[str, Tensor]

    def to(self, device: torch.device) -> Pack:
        """The same pack with every tensor on `device`."""
        return self if self.token_ids.device == device else _move(self, device)


def pack(groups: Sequence[Group], tokens_per_pack: int, whole: bool = False) -> list[Pack]:
    """Lay out groups in order, a new row when the next group would pass `tokens_per_pack`.

    A group that is longer than a whole row is split between responses, its prompt repeated, or with `whole` gets a row
    of its own, as a single response that is longer does.
    """
    rows: list[list[tuple[int, list[int]]]] = []
    used = tokens_per_pack
    for g, chunk, tokens in _chunks(groups, math.inf if whole else tokens_per_pack):
        if used + tokens > tokens_per_pack:
            rows.append([])
            used = 0
        rows[-1].append((g, chunk))
        used += tokens
    return [_row(groups, row) for row in rows]


def prompt_pack(prompts: Sequence[Prompt]) -> Pack:
    """Prompts alone in one row, for the engine's prefill: no responses, no targets."""
    return _assemble(prompts, [[] for _ in prompts], [], [])


def _chunks(groups: Sequence[Group], budget: float) -> Iterator[tuple[int, list[int], int]]:
    for g, group in enumerate(groups):
        prompt, chunk, tokens = len(group.prompt.token_ids), list[int](), len(group.prompt.token_ids)
        for i, rollout in enumerate(group.rollouts):
            length = len(rollout.token_ids)
            if chunk and tokens + length > budget:
                yield g, chunk, tokens
                chunk, tokens = [], prompt
            chunk.append(i)
            tokens += length
        yield g, chunk, tokens


def _row(groups: Sequence[Group], row: Sequence[tuple[int, list[int]]]) -> Pack:
    members = [(g, i) for g, chunk in row for i in chunk]
    trainable = [groups[g].trained[i] for g, i in members]
    responses = [[torch.tensor(groups[g].rollouts[i].token_ids) for i in chunk] for g, chunk in row]
    return _assemble([groups[g].prompt for g, _ in row], responses, members, trainable)


def _assemble(
    prompts: Sequence[Prompt],
    responses: Sequence[Sequence[Tensor]],
    members: Sequence[tuple[int, int]],
    trainable: Sequence[bool],
) -> Pack:
    tokens, positions, sources, starts, at = list[Tensor](), list[Tensor](), list[Tensor](), list[int](), 0
    for prompt, own in zip(prompts, responses, strict=True):
        starts.append(at)
        tokens.append(prompt.token_ids)
        positions.append(prompt.positions)
        last = at + len(prompt.token_ids) - 1
        at = last + 1
        for response in own:
            n = len(response)
            tokens.append(response)
            positions.append(torch.arange(prompt.start, prompt.start + n).expand(3, -1))
            sources.append(torch.cat([torch.tensor([last]), torch.arange(at, at + n - 1)]))
            at += n
    flat = [response for own in responses for response in own]
    lengths = torch.tensor([len(response) for response in flat], dtype=torch.long)
    empty = torch.zeros(0, dtype=torch.long)
    modalities = sorted({modality for prompt in prompts for modality in prompt.series})
    return Pack(
        layout=lay_out([len(p.token_ids) for p in prompts], [[len(r) for r in own] for own in responses]),
        token_ids=torch.cat(tokens),
        positions=torch.cat(positions, 1),
        sources=torch.cat(sources) if sources else empty,
        targets=torch.cat(flat) if flat else empty,
        response=torch.repeat_interleave(torch.arange(len(flat)), lengths),
        members=tuple(members),
        lengths=lengths,
        trainable=torch.tensor(trainable, dtype=torch.bool),
        pixel_values=_cat([p.pixel_values for p in prompts]),
        grids=_cat([p.grids for p in prompts]),
        image_slots=_cat([_shift(p.image_slots, s) for p, s in zip(prompts, starts, strict=True)]),
        series={m: torch.cat([p.series[m] for p in prompts if m in p.series]) for m in modalities},
        series_slots={
            m: torch.cat([p.series_slots[m] + s for p, s in zip(prompts, starts, strict=True) if m in p.series])
            for m in modalities
        },
    )


def lay_out(prompts: Sequence[int], responses: Sequence[Sequence[int]]) -> Layout:
    """Lengths of the prompts and of each one's responses, in row order -> the batches that attention runs over."""
    starts, spans, at = list[int](), list[tuple[int, int, int]](), 0  # span: group, start, length
    for g, (length, own) in enumerate(zip(prompts, responses, strict=True)):
        starts.append(at)
        at += length
        for n in own:
            spans.append((g, at, n))
            at += n
    order, base = torch.empty(at, dtype=torch.long), 0
    causal, suffix = list[Causal](), list[Suffix]()
    for batch in _buckets([(n, 0) for n in prompts]):
        index = _rows([starts[g] for g in batch], [prompts[g] for g in batch])
        base = _place(order, index, [prompts[g] for g in batch], base)
        causal.append(Causal(index))
    for batch in _buckets([(n, prompts[g]) for g, _, n in spans]):
        chosen = [spans[i] for i in batch]
        index = _rows([start for _, start, _ in chosen], [n for _, _, n in chosen])
        base = _place(order, index, [n for _, _, n in chosen], base)
        before = [prompts[g] for g, _, _ in chosen]
        prompt = _rows([starts[g] for g, _, _ in chosen], before)
        suffix.append(Suffix(index, prompt, _suffix_mask(before, index.shape[1])))
    return Layout(tuple(causal), tuple(suffix), order, tuple(starts), tuple(prompts))


def _buckets(sizes: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Indices grouped so that each bucket's padded cost stays within PADDING of its own. sizes: (own, before) tokens.

    The cost of one is own * (before + own) scores. The dearest come first, each into the first bucket that it fits.
    """
    buckets, tops = list[list[int]](), list[tuple[int, int, int]]()  # tops: longest own, longest before, cost unpadded
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i][0] * sum(sizes[i])):
        for b, (own, before, cost) in enumerate(tops):
            top = max(own, sizes[i][0]), max(before, sizes[i][1]), cost + sizes[i][0] * sum(sizes[i])
            if (len(buckets[b]) + 1) * top[0] * (top[0] + top[1]) <= PADDING * top[2]:
                buckets[b].append(i)
                tops[b] = top
                break
        else:
            buckets.append([i])
            tops.append((*sizes[i], sizes[i][0] * sum(sizes[i])))
    return buckets


def _rows(starts: Sequence[int], lengths: Sequence[int]) -> Tensor:
    """[B, max length] of row indices; padding repeats the last one."""
    length = torch.tensor(lengths)[:, None]
    return torch.tensor(starts)[:, None] + torch.minimum(torch.arange(int(length.max())), length - 1)


def _place(order: Tensor, index: Tensor, lengths: Sequence[int], base: int) -> int:
    """Write where the real tokens of `index` stand in the concatenated outputs; returns the next free place."""
    real = torch.arange(index.shape[1]) < torch.tensor(lengths)[:, None]
    order[index[real]] = base + torch.arange(index.numel()).view(index.shape)[real]
    return base + index.numel()


def _suffix_mask(prompts: Sequence[int], own: int) -> Tensor:
    """[B, 1, R, L + R] bool: all of the prompt, and of the response what is not later."""
    longest = max(prompts)
    real = torch.arange(longest) < torch.tensor(prompts)[:, None]  # [B, L]
    causal = torch.ones(own, own, dtype=torch.bool).tril()  # [R, R]
    b = len(prompts)
    return torch.cat([real[:, None].expand(b, own, longest), causal.expand(b, own, own)], 2)[:, None]


def _shift(slots: Tensor | None, start: int) -> Tensor | None:
    return None if slots is None else slots + start


def _cat(parts: Sequence[Tensor | None]) -> Tensor | None:
    present = [part for part in parts if part is not None]
    return torch.cat(present) if present else None


def _move(item: Pack, device: torch.device) -> Pack:
    def move(value: Tensor | None) -> Tensor | None:
        return None if value is None else value.to(device, non_blocking=True)

    layout = replace(
        item.layout,
        prompts=tuple(Causal(batch.index.to(device)) for batch in item.layout.prompts),
        responses=tuple(
            Suffix(b.own.to(device), b.prompt.to(device), b.mask.to(device)) for b in item.layout.responses
        ),
        order=item.layout.order.to(device),
    )
    names = ("token_ids", "positions", "sources", "targets", "response", "lengths", "trainable")
    moved: dict[str, Any] = {
        name: move(getattr(item, name)) for name in (*names, "pixel_values", "grids", "image_slots")
    }
    return replace(
        item,
        layout=layout,
        **moved,
        series={name: value.to(device) for name, value in item.series.items()},
        series_slots={name: value.to(device) for name, value in item.series_slots.items()},
    )
