"""Chunked log-probs against torch's own log_softmax of all logits at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from qoqmed.logprobs import token_log_probs

N, D, V = 13, 6, 23
BANNED = torch.tensor([3, 20, 21])


def inputs(dtype: torch.dtype = torch.float32, n: int = N, frozen: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(n, D, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(V, D, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(not frozen)
    targets = torch.randint(4, 20, (n,), generator=generator)
    return hidden, weight, targets


def oracle(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float = 1.0, banned: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """A vocabulary with banned tokens is one without them."""
    allowed = torch.tensor([v for v in range(len(weight)) if banned is None or v not in banned])
    logits = ((hidden @ weight.T).float() / temperature)[:, allowed]
    log_p = logits.log_softmax(-1)
    return log_p[torch.arange(len(targets)), torch.searchsorted(allowed, targets)], -(log_p.exp() * log_p).sum(-1)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("banned", [None, BANNED])
@pytest.mark.parametrize("chunk", [1, 5, 512])
def test_values_and_gradients(frozen: bool, banned: Tensor | None, chunk: int) -> None:
    hidden, weight, targets = inputs(frozen=frozen)
    at = [hidden] if frozen else [hidden, weight]
    up = torch.randn(2, N, generator=torch.Generator().manual_seed(1))
    found = token_log_probs(hidden, weight, targets, 0.7, banned, chunk, entropy_grad=True)
    expected = oracle(hidden, weight, targets, 0.7, banned)
    torch.testing.assert_close(found, expected)
    gradients = torch.autograd.grad(found, at, list(up))
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, at, list(up)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("frozen", [False, True])
def test_gradcheck(frozen: bool) -> None:
    hidden, weight, targets = inputs(torch.float64, n=4, frozen=frozen)

    def both(*at: Tensor) -> Any:
        return token_log_probs(at[0], weight if frozen else at[1], targets, 1.3, BANNED, 3, entropy_grad=True)

    assert gradcheck(both, (hidden,) if frozen else (hidden, weight))


def test_float64_stays() -> None:
    log_probs, entropies = token_log_probs(*inputs(torch.float64), entropy=True)
    assert entropies is not None
    assert log_probs.dtype == entropies.dtype == torch.float64


@pytest.mark.parametrize("frozen", [False, True])
def test_bf16_has_a_softmax_in_float32(frozen: bool) -> None:
    """Values equal the softmax in float32 of bf16 logits; gradients are as exact as autograd's own in bf16."""
    hidden, weight, targets = inputs(torch.bfloat16, frozen=frozen)
    log_probs, _ = token_log_probs(hidden, weight, targets, chunk=5)
    expected, _ = oracle(hidden, weight, targets)
    assert log_probs.dtype == torch.float32
    torch.testing.assert_close(log_probs, expected)
    at = [hidden] if frozen else [hidden, weight]
    for mine, theirs in zip(
        torch.autograd.grad(log_probs.sum(), at), torch.autograd.grad(expected.sum(), at), strict=True
    ):
        assert mine.dtype == torch.bfloat16
        torch.testing.assert_close(mine, theirs, rtol=2e-2, atol=2e-2)


def test_autocast_is_as_a_linear_under_autocast() -> None:
    hidden, weight, targets = inputs()
    with torch.autocast("cpu", torch.bfloat16):
        log_probs, _ = token_log_probs(hidden, weight, targets, chunk=5)
        expected = torch.nn.functional.linear(hidden, weight).float().log_softmax(-1).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(log_probs, expected)
    mine, theirs = torch.autograd.grad(log_probs.sum(), weight), torch.autograd.grad(expected.sum(), weight)
    assert mine[0].dtype == torch.float32
    torch.testing.assert_close(mine, theirs, rtol=2e-2, atol=2e-2)


def test_banned_mask_is_as_banned_indices() -> None:
    mask = torch.zeros(V, dtype=torch.bool)
    mask[BANNED] = True
    by_mask = token_log_probs(*inputs(), banned=mask, entropy=True)
    torch.testing.assert_close(by_mask, token_log_probs(*inputs(), banned=BANNED, entropy=True), rtol=0, atol=0)


def test_banned_tokens_have_no_probability_and_no_gradient() -> None:
    hidden, weight, targets = inputs()
    everything = torch.tensor([v for v in range(V) if v not in BANNED])
    repeated = hidden.detach()[:1].expand(len(everything), D)
    log_probs, _ = token_log_probs(repeated, weight, everything, banned=BANNED)
    assert log_probs.exp().sum().item() == pytest.approx(1.0)
    log_probs, entropies = token_log_probs(hidden, weight, targets, banned=BANNED, entropy_grad=True)
    assert entropies is not None
    (log_probs.sum() + entropies.sum()).backward()
    assert weight.grad is not None
    assert (weight.grad[BANNED] == 0).all()
    assert (weight.grad[4] != 0).all()


def test_a_banned_target_is_named() -> None:
    hidden, weight, targets = inputs()
    targets[7] = 20
    with pytest.raises(ValueError, match="the first is token 20 at position 7"):
        token_log_probs(hidden, weight, targets, banned=BANNED)


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_temperature_must_be_positive(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature"):
        token_log_probs(*inputs(), temperature=temperature)


def test_entropy_is_detached_unless_asked() -> None:
    log_probs, entropies = token_log_probs(*inputs(), entropy=True)
    assert entropies is not None
    assert log_probs.requires_grad
    assert not entropies.requires_grad
    assert token_log_probs(*inputs())[1] is None


def test_without_gradients() -> None:
    with torch.no_grad():
        quiet, _ = token_log_probs(*inputs(frozen=True))
    loud, _ = token_log_probs(*inputs())
    assert not quiet.requires_grad
    torch.testing.assert_close(quiet, loud.detach(), rtol=0, atol=0)


def test_no_tokens() -> None:
    hidden, weight, targets = inputs(n=0)
    log_probs, entropies = token_log_probs(hidden, weight, targets, banned=BANNED, entropy=True)
    assert entropies is not None
    assert log_probs.shape == entropies.shape == (0,)
    log_probs.sum().backward()
    assert weight.grad is not None
    assert (weight.grad == 0).all()


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        self.elements = max([self.elements, *sizes])
        return out


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("tokens", [64, 256])
def test_memory_is_flat_in_tokens_times_vocabulary(frozen: bool, tokens: int) -> None:
    chunk, vocabulary = 8, 1000
    hidden = torch.randn(tokens, 4, requires_grad=True)
    weight = torch.randn(vocabulary, 4, requires_grad=not frozen)
    targets = torch.randint(30, 900, (tokens,))
    with Largest() as largest:
        log_probs, entropies = token_log_probs(hidden, weight, targets, 0.9, BANNED, chunk, entropy_grad=True)
        assert entropies is not None
        (log_probs.sum() + entropies.sum()).backward()
    assert largest.elements == chunk * vocabulary
    with Largest() as control:
        oracle(hidden, weight, targets)
    assert control.elements >= tokens * vocabulary
