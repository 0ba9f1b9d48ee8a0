"""Packs as pure layout, by hand and against the definition of who sees whom."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qoqmed.packing import PADDING, Layout, Prompt, lay_out, pack, prompt_pack
from qoqmed.types import Case, Group, Rollout, Target


def lengths(prompt: int, response: int) -> st.SearchStrategy[list[tuple[int, list[int]]]]:
    """(prompt, its responses) of each group, up to so many tokens."""
    responses = st.lists(st.integers(1, response), max_size=4)
    return st.lists(st.tuples(st.integers(1, prompt), responses), min_size=1, max_size=4)


def prompt(length: int, start: int | None = None, name: str = "a", first: int = 100) -> Prompt:
    """Tokens first, first + 1, ..; `start` below `length`, as behind pictures, gives positions that end before it."""
    start = length if start is None else start
    positions = torch.arange(length).clamp(max=start - 1).expand(3, -1)
    return Prompt(name, first + torch.arange(length), positions, start)


def group(prompt: Prompt, lengths: Sequence[int], trainable: tuple[bool, ...] = ()) -> Group:
    """Response i has the tokens 1000 i, 1000 i + 1, .."""
    case = Case(prompt.case_id, "ecg", "synthetic", "diagnosis", "?", (), (), Target())
    rollouts = [Rollout(case.id, i, tuple(range(1000 * i, 1000 * i + n)), "") for i, n in enumerate(lengths)]
    return Group(case, prompt, tuple(rollouts), trainable=trainable)


def lay(groups: Sequence[tuple[int, Sequence[int]]]) -> Layout:
    return lay_out([length for length, _ in groups], [own for _, own in groups])


def batch_rows(layout: Layout) -> tuple[Tensor, int]:
    """The row index of each place in the batches' outputs, put end to end, and how many places there are."""
    parts = [b.index.flatten() for b in layout.prompts] + [b.own.flatten() for b in layout.responses]
    flat = torch.cat(parts)
    return flat, len(flat)


def seen(layout: Layout) -> Tensor:
    """[S, S] bool: row q, as its output is taken from the batches, attends column k."""
    size = len(layout.order)
    rows: list[Tensor] = []  # of each place in the outputs, in their order
    for batch in layout.prompts:
        for index in batch.index:
            for last in range(len(index)):
                rows.append(torch.zeros(size, dtype=torch.bool).index_fill_(0, index[: last + 1], True))
    for batch in layout.responses:
        reach = torch.cat([batch.prompt, batch.own], 1)
        for index, mask in zip(reach, batch.mask[:, 0], strict=True):
            rows += [torch.zeros(size, dtype=torch.bool).index_fill_(0, index[allowed], True) for allowed in mask]
    return torch.stack(rows)[layout.order]


def defined(groups: Sequence[tuple[int, Sequence[int]]]) -> Tensor:
    """[S, S] bool, token by token: q attends k if k is not later and is of q's prompt or of q's own response."""
    owners = [
        owner
        for g, (length, own) in enumerate(groups)
        for owner in [(g, -1)] * length + [(g, i) for i, n in enumerate(own) for _ in range(n)]
    ]
    size = len(owners)
    return torch.tensor(
        [
            [k <= q and owners[k][0] == owners[q][0] and owners[k][1] in (-1, owners[q][1]) for k in range(size)]
            for q in range(size)
        ]
    )


def test_who_sees_whom_by_hand() -> None:
    """A prompt of two tokens, responses of one and two; then a prompt of one token and a response of one."""
    x, o = True, False
    expected = [
        [x, o, o, o, o, o, o],
        [x, x, o, o, o, o, o],
        [x, x, x, o, o, o, o],
        [x, x, o, x, o, o, o],
        [x, x, o, x, x, o, o],
        [o, o, o, o, o, x, o],
        [o, o, o, o, o, x, x],
    ]
    groups = [(2, [1, 2]), (1, [1])]
    assert seen(lay(groups)).tolist() == expected
    assert defined(groups).tolist() == expected


@given(lengths(8, 10))
def test_who_sees_whom_is_as_defined(groups: list[tuple[int, list[int]]]) -> None:
    assert torch.equal(seen(lay(groups)), defined(groups))


@given(lengths(8, 10))
def test_order_finds_every_token_once(groups: list[tuple[int, list[int]]]) -> None:
    """Places are distinct, and the place of token t holds token t."""
    layout = lay(groups)
    flat, places = batch_rows(layout)
    size = sum(length + sum(own) for length, own in groups)
    assert len(layout.order) == size == len(set(layout.order.tolist()))
    assert layout.order.max() < places
    assert torch.equal(flat[layout.order], torch.arange(size))


def test_order_is_a_permutation_where_nothing_is_padded() -> None:
    layout = lay([(3, [2, 2]), (3, [2])])
    assert sorted(layout.order.tolist()) == list(range(12))
    assert [batch.index.tolist() for batch in layout.prompts] == [[[0, 1, 2], [7, 8, 9]]]
    assert [batch.own.tolist() for batch in layout.responses] == [[[3, 4], [5, 6], [10, 11]]]


@given(lengths(60, 60))
def test_buckets_keep_within_the_padding_allowed(groups: list[tuple[int, list[int]]]) -> None:
    """Scores that attention computes for a batch against those its rows need alone."""
    layout = lay(groups)
    for prompts in layout.prompts:
        lengths = [len(set(row.tolist())) for row in prompts.index]
        assert prompts.index.numel() * prompts.index.shape[1] <= PADDING * sum(n * n for n in lengths)
    for batch in layout.responses:
        own = [len(set(row.tolist())) for row in batch.own]
        before = [len(set(row.tolist())) for row in batch.prompt]
        needed = sum(n * (n + p) for n, p in zip(own, before, strict=True))
        assert batch.mask.numel() <= PADDING * needed


def test_a_short_answer_to_a_long_prompt_is_no_bucket_for_a_long_one_to_a_short_prompt() -> None:
    """10 x 1010 and 96 x 106 scores cost the same alone; together they would be padded to 96 x 1096."""
    assert len(lay([(1000, [10]), (10, [96])]).responses) == 2


def test_equal_lengths_share_a_bucket() -> None:
    layout = lay([(30, [8] * 4), (30, [8] * 4)])
    assert [tuple(batch.index.shape) for batch in layout.prompts] == [(2, 30)]
    assert [tuple(batch.own.shape) for batch in layout.responses] == [(8, 8)]


def test_pack_by_hand() -> None:
    """Two prompts; the first ends at position 1 though it has 4 tokens, as pictures do."""
    a, b = group(prompt(4, 2, "a"), [2, 1], (True, False)), group(prompt(2, name="b"), [3])
    (item,) = pack([a, b], 100)
    assert item.token_ids.tolist() == [100, 101, 102, 103, 0, 1, 1000, 100, 101, 0, 1, 2]
    assert item.positions.tolist() == [[0, 1, 1, 1, 2, 3, 2, 0, 1, 2, 3, 4]] * 3
    assert item.targets.tolist() == [0, 1, 1000, 0, 1, 2]
    assert item.sources.tolist() == [3, 4, 3, 8, 9, 10]  # the prompt's last row, then the token before
    assert item.response.tolist() == [0, 0, 1, 2, 2, 2]
    assert item.members == ((0, 0), (0, 1), (1, 0))
    assert item.lengths.tolist() == [2, 1, 3]
    assert item.trainable.tolist() == [True, False, True]
    assert item.layout.prompt_starts == (0, 7) and item.layout.prompt_lengths == (4, 2)
    assert item.pixel_values is None and item.image_slots is None and not item.series


@given(lengths(40, 60), st.integers(1, 300))
def test_every_token_of_every_response_is_predicted_once(groups: list[tuple[int, list[int]]], budget: int) -> None:
    """By the last row of its own prompt or by the token before it; positions go on from the prompt's `start`."""
    made = [group(prompt(length, length + 5, first=10**6 * (g + 1)), own) for g, (length, own) in enumerate(groups)]
    packs = pack(made, budget)
    members = [member for item in packs for member in item.members]
    assert members == [(g, i) for g, (_, own) in enumerate(groups) for i in range(len(own))]
    for item in packs:
        assert len(item.members) == len(item.lengths) == len(item.trainable)
        for number, (g, i) in enumerate(item.members):
            mine = item.response == number
            targets, sources = item.targets[mine], item.sources[mine]
            assert targets.tolist() == list(made[g].rollouts[i].token_ids)
            assert item.token_ids[sources[0]] == made[g].prompt.token_ids[-1]
            assert torch.equal(item.token_ids[sources[1:]], targets[:-1])
            start = groups[g][0] + 5
            assert item.positions[:, sources[1:]].tolist() == [list(range(start, start + len(targets) - 1))] * 3


@given(lengths(40, 60), st.integers(1, 300))
def test_rows_keep_to_the_budget(groups: list[tuple[int, list[int]]], budget: int) -> None:
    """A row passes it only where a single response with its prompt does (or a prompt alone)."""
    for item in pack([group(prompt(length), own) for length, own in groups], budget):
        assert len(item.token_ids) <= budget or len(item.members) <= 1


def test_a_group_longer_than_the_budget_repeats_its_prompt() -> None:
    """Budget 12, prompt 4, responses of 3, 5, 4 and 9 tokens: 4+3+5 = 12, 4+4 = 8, and 4+9 = 13 in a row of its own."""
    first, second, third = pack([group(prompt(4), [3, 5, 4, 9])], 12)
    assert [item.members for item in (first, second, third)] == [((0, 0), (0, 1)), ((0, 2),), ((0, 3),)]
    assert [len(item.token_ids) for item in (first, second, third)] == [12, 8, 13]
    for item in (first, second, third):
        assert item.token_ids[:4].tolist() == [100, 101, 102, 103]


def test_groups_fill_a_row_in_order_until_the_budget_is_passed() -> None:
    packs = pack([group(prompt(2), [3]), group(prompt(2), [3]), group(prompt(2), [4])], 10)
    assert [item.members for item in packs] == [((0, 0), (1, 0)), ((2, 0),)]


def test_no_groups_make_no_packs() -> None:
    assert pack([], 10) == []


def test_media_are_put_end_to_end_and_their_slots_shifted() -> None:
    a = Prompt(
        "a",
        torch.arange(5),
        torch.arange(5).expand(3, -1),
        5,
        pixel_values=torch.full((4, 2), 1.0),
        grids=torch.tensor([[1, 2, 2]]),
        image_slots=torch.tensor([2]),
        series={"ecg": torch.full((1, 3), 1.0)},
        series_slots={"ecg": torch.tensor([3, 4])},
    )
    b = prompt(3, name="b")
    c = Prompt(
        "c",
        torch.arange(6),
        torch.arange(6).expand(3, -1),
        6,
        pixel_values=torch.full((8, 2), 3.0),
        grids=torch.tensor([[1, 2, 4]]),
        image_slots=torch.tensor([1, 2]),
        series={"ecg": torch.full((1, 3), 3.0)},
        series_slots={"ecg": torch.tensor([4, 5])},
    )
    (item,) = pack([group(a, [2]), group(b, [1, 1]), group(c, [1])], 100)
    start = 5 + 2 + 3 + 2  # of prompt c
    assert item.pixel_values is not None and item.pixel_values[:, 0].tolist() == [1.0] * 4 + [3.0] * 8
    assert item.grids is not None and item.grids.tolist() == [[1, 2, 2], [1, 2, 4]]
    assert item.image_slots is not None and item.image_slots.tolist() == [2, start + 1, start + 2]
    assert item.series["ecg"][:, 0].tolist() == [1.0, 3.0]
    assert item.series_slots["ecg"].tolist() == [3, 4, start + 4, start + 5]


def test_prompts_alone_have_no_targets() -> None:
    item = prompt_pack([prompt(3), prompt(2)])
    assert item.token_ids.tolist() == [100, 101, 102, 100, 101]
    assert item.members == () and len(item.targets) == len(item.sources) == 0
    assert item.layout.responses == () and item.layout.prompt_starts == (0, 3)


@pytest.mark.parametrize("trainable", [(), (True, True)])
def test_responses_train_unless_told_otherwise(trainable: tuple[bool, ...]) -> None:
    (item,) = pack([group(prompt(2), [1, 1], trainable)], 10)
    assert item.trainable.tolist() == [True, True]
