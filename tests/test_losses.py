"""Losses by hand, and micro-batches that add up to the whole."""

from __future__ import annotations

from math import log

import pytest
import torch
from torch import Tensor

from qoqmed.losses import (
    AGGREGATES,
    Loss,
    TokenTable,
    aggregate,
    clipped_surrogate,
    kl,
    token_mean,
    whole,
)

LENGTHS = [3, 1, 4, 2]


def tables(values: Tensor, parts: list[list[int]]) -> list[tuple[Tensor, TokenTable]]:
    """The four responses of LENGTHS, whose tokens are `values`, in micro-batches: `parts` lists responses of each."""
    split = values.split(LENGTHS)
    out = []
    for part in parts:
        lengths = torch.tensor([LENGTHS[i] for i in part], dtype=torch.long)
        mine = torch.cat([split[i] for i in part]) if part else values[:0]
        response = torch.repeat_interleave(torch.arange(len(part)), lengths)
        table = TokenTable(mine, response, lengths, sequences_total=4, tokens_total=10, max_length=8)
        out.append((mine, table))
    return out


def test_clipped_surrogate_by_hand() -> None:
    ratio = torch.tensor([0.5, 0.5, 1.5, 1.5, 1.1, 0.7])
    advantages = torch.tensor([2.0, -2.0, 2.0, -2.0, 1.0, 0.0])
    loss, low, high = clipped_surrogate(ratio.log(), advantages, clip_low=0.2, clip_high=0.3)
    # 0.5 * 2 unclipped; 0.8 * -2 clipped; 1.3 * 2 clipped; 1.5 * -2 unclipped; inside; no advantage
    torch.testing.assert_close(loss, torch.tensor([-1.0, 1.6, -2.6, 3.0, -1.1, 0.0]))
    assert low.tolist() == [False, True, False, False, False, False]
    assert high.tolist() == [False, False, True, False, False, False]


def test_a_clipped_token_has_no_gradient_and_an_on_policy_one_has_its_advantage() -> None:
    log_probs = torch.tensor([log(0.5), 0.0], requires_grad=True)
    clipped_surrogate(log_probs, torch.tensor([-2.0, 3.0]), 0.2, 0.2)[0].sum().backward()
    assert log_probs.grad is not None
    assert log_probs.grad.tolist() == [0.0, -3.0]


def test_kl_estimators_by_hand() -> None:
    log_probs = torch.tensor([log(0.4), log(0.5)], requires_grad=True)
    reference = torch.tensor([log(0.2), log(0.5)])
    torch.testing.assert_close(kl("k1", log_probs, reference), torch.tensor([log(2.0), 0.0]))
    torch.testing.assert_close(kl("k2", log_probs, reference), torch.tensor([log(2.0) ** 2 / 2, 0.0]))
    torch.testing.assert_close(kl("k3", log_probs, reference), torch.tensor([0.5 - 1 + log(2.0), 0.0]))
    kl("k3", log_probs, reference).sum().backward()
    torch.testing.assert_close(log_probs.grad, torch.tensor([1 - 0.5, 0.0]))


def test_kl_estimators_expect_the_divergence() -> None:
    """k1 and k3 are unbiased: sum over the vocabulary of p * k is KL(p || q) exactly. k3 is never negative."""
    p, q = torch.tensor([0.7, 0.2, 0.1]).double(), torch.tensor([0.3, 0.3, 0.4]).double()
    exact = (p * (p / q).log()).sum()
    for name in ("k1", "k3"):
        torch.testing.assert_close((p * kl(name, p.log(), q.log())).sum(), exact)
    assert (kl("k3", p.log(), q.log()) >= 0).all()


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="k1, k2, k3"):
        kl("k4", torch.zeros(1), torch.zeros(1))
    values, table = tables(torch.zeros(10), [[0, 1, 2, 3]])[0]
    with pytest.raises(ValueError, match="sequence, token, dr_grpo"):
        aggregate(values, table, "mean")


@pytest.mark.parametrize(
    ("how", "expected"), [("sequence", (2 + 4 + 6.5 + 9.5) / 4), ("token", 5.5), ("dr_grpo", 55 / 32)]
)
def test_aggregates_by_hand(how: str, expected: float) -> None:
    values, table = tables(torch.arange(1.0, 11.0), [[0, 1, 2, 3]])[0]
    assert float(aggregate(values, table, how)) == pytest.approx(expected)


@pytest.mark.parametrize("how", AGGREGATES)
def test_micro_batches_add_up(how: str) -> None:
    """Value, gradient and statistics: one table, four of a response each, uneven ones, and an empty one."""

    def run(parts: list[list[int]]) -> tuple[Tensor, Tensor, Tensor]:
        values = torch.arange(1.0, 11.0, dtype=torch.float64).requires_grad_()
        losses = []
        for mine, table in tables(values, parts):
            value = aggregate(mine.square(), table, how)
            losses.append(Loss(value, {"loss": whole(value, table), "mean": token_mean(mine)}))
        torch.stack([loss.value for loss in losses]).sum().backward()
        assert values.grad is not None
        totals = torch.stack([torch.stack([torch.stack(pair) for pair in loss.sums.values()]) for loss in losses]).sum(
            0
        )
        return torch.stack([loss.value for loss in losses]).sum(), values.grad, totals[:, 0] / totals[:, 1]

    once = run([[0, 1, 2, 3]])
    torch.testing.assert_close(once[2][0], once[0].detach())
    for parts in ([[0], [1], [2], [3]], [[3, 0, 2], [1]], [[0, 1], [], [2, 3]]):
        torch.testing.assert_close(run(parts), once)


def test_means_leave_out_what_was_not_seen() -> None:
    loss = Loss(torch.tensor(0.0), {"a": token_mean(torch.tensor([1.0, 2.0])), "b": token_mean(torch.zeros(0))})
    assert loss.means() == {"a": 1.5}


def test_a_ratio_that_overflows_has_a_finite_gradient() -> None:
    log_ratio = torch.tensor([100.0, 100.0, -100.0], requires_grad=True)
    loss, _, _ = clipped_surrogate(log_ratio, torch.tensor([-1.0, 1.0, 0.0]), 0.2, 0.2, dual_clip=3.0)
    assert loss.tolist() == pytest.approx([3.0, -1.2, 0.0])
    loss.sum().backward()
    assert log_ratio.grad is not None and log_ratio.grad.tolist() == [0.0, 0.0, 0.0]
