"""Log-probabilities and entropies of tokens: a fused linear + log-softmax, in chunks, with its own backward.

The logits of N tokens over V words are never held at once: forward and backward walk over chunks of tokens, so at
most [chunk, V] exists; the backward recomputes the logits. Where the head is frozen (LoRA), d log p / d hidden is
made in the forward instead, and the backward holds no matrix product.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

NEVER = -1e30  # logit of a banned token: its probability is exactly 0, and 0 * NEVER is 0 where 0 * -inf is not


@dataclass(frozen=True)
class _Head:
    """What turns hidden states into logits, beside the weight. banned: [B] indices. grads: see `token_log_probs`."""

    temperature: float
    banned: Tensor | None
    chunk: int
    entropy: bool
    entropy_grad: bool
    grad_in_forward: bool

    def spans(self, n: int) -> Iterator[slice]:
        return (slice(start, min(n, start + self.chunk)) for start in range(0, n, self.chunk))

    def logits(self, hidden: Tensor, weight: Tensor) -> Tensor:
        """[n, D], [V, D] -> [n, V] of the softmax's precision: float32, or float64 where the inputs are."""
        precise = torch.promote_types(hidden.dtype, torch.float32)
        logits = (hidden @ weight.t()).to(precise)
        if self.temperature != 1.0:
            logits.div_(self.temperature)
        if self.banned is not None:
            logits.index_fill_(1, self.banned, NEVER)
        return logits


def _grad_logits(
    log_p: Tensor, targets: Tensor, entropy: Tensor | None, grad: Tensor | float, grad_entropy: Tensor | float | None
) -> Tensor:
    """d (grad . log p[target] + grad_entropy . H) / d logits, [n, V]; overwrites `log_p` [n, V].

    d log p[y] / d z = onehot(y) - p;   d H / d z = -p (log p + H).
    """
    rows = torch.arange(len(targets), device=targets.device)
    if entropy is None or grad_entropy is None:
        out = log_p.exp_().mul_(-grad)
    else:
        p = log_p.exp()
        out = log_p.add_(entropy[:, None]).mul_(-grad_entropy).sub_(grad).mul_(p)
    out[rows, targets] += grad[:, 0] if isinstance(grad, Tensor) else grad
    return out


class _TokenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, head: _Head) -> tuple[Tensor, Tensor | None]:
        """See `token_log_probs`."""
        precise = torch.promote_types(hidden.dtype, torch.float32)
        log_probs, log_z, entropies = hidden.new_empty(3, len(hidden), dtype=precise).unbind()
        grad_hidden = torch.empty_like(hidden) if head.grad_in_forward else None
        grad_entropy = torch.empty_like(hidden) if head.grad_in_forward and head.entropy_grad else None
        for span in head.spans(len(hidden)):
            logits = head.logits(hidden[span], weight)
            log_z[span] = torch.logsumexp(logits, 1)
            log_p = logits.sub_(log_z[span, None])
            log_probs[span] = log_p.gather(1, targets[span, None])[:, 0]
            if head.entropy:
                entropies[span] = -log_p.exp().mul_(log_p).sum(1)
            if grad_entropy is not None:
                unit = _grad_logits(log_p.clone(), targets[span], entropies[span], 0.0, 1.0)
                grad_entropy[span] = (unit.to(weight.dtype) @ weight).div_(head.temperature)
            if grad_hidden is not None:
                unit = _grad_logits(log_p, targets[span], None, 1.0, None)
                grad_hidden[span] = (unit.to(weight.dtype) @ weight).div_(head.temperature)
        ctx.head = head
        ctx.set_materialize_grads(False)
        if head.grad_in_forward:
            ctx.save_for_backward(grad_hidden, grad_entropy)
        else:
            ctx.save_for_backward(hidden, weight, targets, log_z, entropies)
        if head.entropy and not head.entropy_grad:
            ctx.mark_non_differentiable(entropies)
        return log_probs, entropies if head.entropy else None

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, grad_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        """Logits again, a chunk at a time; with a frozen head only a product with what the forward kept."""
        head: _Head = ctx.head
        if head.grad_in_forward:
            unit, unit_entropy = ctx.saved_tensors
            out = torch.zeros_like(unit) if grad is None else unit * grad[:, None].to(unit.dtype)
            if grad_entropy is not None:
                out.addcmul_(unit_entropy, grad_entropy[:, None].to(unit.dtype))
            return out, None, None, None
        hidden, weight, targets, log_z, entropies = ctx.saved_tensors
        grad = torch.zeros_like(log_z) if grad is None else grad
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        # a sum over many chunks: kept in the softmax's precision, whatever the weight's
        grad_weight = torch.zeros_like(weight, dtype=log_z.dtype) if ctx.needs_input_grad[1] else None
        for span in head.spans(len(hidden)):
            log_p = head.logits(hidden[span], weight).sub_(log_z[span, None])
            g = None if grad_entropy is None else grad_entropy[span, None]
            d = _grad_logits(log_p, targets[span], entropies[span], grad[span, None], g)
            d = d.div_(head.temperature).to(weight.dtype)
            if grad_hidden is not None:
                grad_hidden[span] = d @ weight
            if grad_weight is not None and grad_weight.dtype == weight.dtype:
                grad_weight.addmm_(d.t(), hidden[span])
            elif grad_weight is not None:
                grad_weight += d.t() @ hidden[span]
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype), None, None


def _banned_indices(banned: Tensor | None, targets: Tensor, vocabulary: int) -> Tensor | None:
    if banned is None:
        return None
    indices = (banned.nonzero()[:, 0] if banned.dtype == torch.bool else banned).to(targets.device)
    mask = torch.zeros(vocabulary, dtype=torch.bool, device=targets.device).index_fill_(0, indices, True)
    hit = mask[targets].nonzero()[:, 0]
    if len(hit):
        first = int(hit[0])
        raise ValueError(
            f"{len(hit)} target tokens are banned, the first is token {int(targets[first])} at position {first}: "
            "the rollout engine and the trainer must ban the same tokens"
        )
    return indices


def token_log_probs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    temperature: float = 1.0,
    banned: Tensor | None = None,
    chunk: int = 512,
    entropy: bool = False,
    entropy_grad: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """log softmax(hidden @ weight.T / temperature)[targets], and the entropy of that softmax, in nats.

    hidden: [N, D]. weight: [V, D]; the logits are made in its dtype (or autocast's), the softmax in float32.
    targets: [N] long. banned: tokens of probability 0, a bool mask [V] (True: banned) or a long tensor of token ids.
    chunk: tokens at a time; memory is chunk * V. entropy: also return entropies, detached unless `entropy_grad`.
    Returns float32 [N] (float64 where the inputs are) and entropies of the same shape, or None.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    grad_in_forward = torch.is_grad_enabled() and hidden.requires_grad and not weight.requires_grad
    head = _Head(
        temperature=temperature,
        banned=_banned_indices(banned, targets, len(weight)),
        chunk=chunk,
        entropy=entropy or entropy_grad,
        entropy_grad=entropy_grad,
        grad_in_forward=grad_in_forward,
    )
    out = _TokenLogProbs.apply(hidden.to(dtype), weight.to(dtype), targets, head)  # type: ignore[no-untyped-call]
    return cast(tuple[Tensor, Tensor | None], out)
