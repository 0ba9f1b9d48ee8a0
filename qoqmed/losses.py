"""Losses over the response tokens of one micro-batch: clipped surrogate, importance ratio, KL estimators, aggregation.

Everything is a sum over tokens divided by a total of the whole minibatch, so that the results of its micro-batches,
on every rank, add up to the value (and the gradient) of the minibatch at once. A strategy that averages gradients over
ranks must therefore multiply the loss by the number of ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

AGGREGATES = ("sequence", "token", "dr_grpo")
KL_ESTIMATORS = ("k1", "k2", "k3")
IMPORTANCE = ("token", "sequence", "none")
LOG_RATIO = 20.0  # importance ratios are held within exp(+-20), as verl does: one token must not make a mean infinite


@dataclass(frozen=True)
class TokenTable:
    """The N response tokens of a micro-batch, flat, and the totals of the minibatch that it is a part of.

    log_probs [N] float, nats, with gradient. entropies [N] float, nats, with gradient where the objective weighs them.
    old_log_probs [N]: of the policy that the ratio is taken to; None: the current one (ratio 1, first update).
    reference_log_probs [N]: of the frozen start policy. advantages [N]: of tokens; most estimators give one a response.
    behaviour_log_probs [N]: of the engine that sampled the tokens; None: nobody did (gold answers).
    values [N] float32, with gradient: of the value head before each token. old_values [N]: before the step's updates.
    returns [N]: what the values learn.
    response [N] long: the token's response, 0..n-1 within this table. lengths [n] long: tokens of each response.
    group [n] long: the group that each response is of; those of one group are next to each other.
    sequences_total, tokens_total: trainable responses and their tokens in the minibatch, all micro-batches and ranks.
    max_length: tokens, the constant of "dr_grpo" (the recipe's max_new_tokens).
    """

    log_probs: Tensor
    response: Tensor
    lengths: Tensor
    sequences_total: float
    tokens_total: float
    max_length: int
    entropies: Tensor | None = None
    old_log_probs: Tensor | None = None
    reference_log_probs: Tensor | None = None
    advantages: Tensor | None = None
    behaviour_log_probs: Tensor | None = None
    values: Tensor | None = None
    old_values: Tensor | None = None
    returns: Tensor | None = None
    group: Tensor | None = None


@dataclass(frozen=True)
class Loss:
    """value: scalar with gradient, this table's share of the minibatch's loss.

    sums: name -> (sum, count), detached float64 scalars: add both over micro-batches and ranks, then divide.
    smallest, largest: name -> detached scalar: the extreme over micro-batches and ranks counts.
    """

    value: Tensor
    sums: Mapping[str, tuple[Tensor, Tensor]]
    smallest: Mapping[str, Tensor] = field(default_factory=dict)
    largest: Mapping[str, Tensor] = field(default_factory=dict)

    def means(self) -> dict[str, float]:
        """sum / count of each statistic, of this table alone; left out where the count is 0."""
        return {name: float(total / count) for name, (total, count) in self.sums.items() if count > 0}


def clipped_surrogate(
    log_ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float, dual_clip: float | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """-min(ratio A, clip(ratio, 1 - clip_low, 1 + clip_high) A) of each token, ratio = exp(log_ratio). All [N].

    dual_clip: where A < 0 the loss is at most -dual_clip A, and beyond it has no gradient (Ye et al. 2020, eq. 5).
    Returns the loss and two bool indicators of clipping that acts: low (A < 0) and high (A > 0).
    """
    ratio = torch.exp(log_ratio.clamp(-LOG_RATIO, LOG_RATIO))
    loss = -torch.minimum(ratio * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages)
    if dual_clip is not None:
        loss = torch.where(advantages < 0, torch.minimum(loss, -dual_clip * advantages), loss)
    return loss, (ratio < 1 - clip_low) & (advantages < 0), (ratio > 1 + clip_high) & (advantages > 0)


def sequence_ratio(log_ratio: Tensor, table: TokenTable) -> Tensor:
    """Mean of a response's log ratios, for each of its tokens: [N] -> [N] (GSPO, arXiv 2507.18071, eq. 7)."""
    means = log_ratio.new_zeros(len(table.lengths)).index_add(0, table.response, log_ratio) / table.lengths
    return means[table.response]


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float | None) -> tuple[Tensor, Tensor]:
    """max((v - R)^2, (clip(v, old - clip, old + clip) - R)^2) / 2 of each token, [N]; where the clip acts, [N] bool.

    PPO's clipped value loss as TRL and verl have it. clip None: (v - R)^2 / 2.
    """
    plain = (values - returns).square()
    if clip is None:
        return 0.5 * plain, torch.zeros_like(plain, dtype=torch.bool)
    held = (values.clamp(old_values - clip, old_values + clip) - returns).square()
    return 0.5 * torch.maximum(plain, held), held > plain


def importance_ratio(log_ratio: Tensor, table: TokenTable, how: str) -> Tensor:
    """log pi_old - log pi_engine of each token [N] -> what a token weighs as one of pi_old's, [N], detached, uncapped.

    "token": pi_old / pi_engine of the token. "sequence": of its whole response, the product over its tokens (Yao et al.
    2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training", and verl). The product, not the
    geometric mean: it alone is the ratio of the response's two probabilities, which makes the estimate unbiased.
    """
    gap = log_ratio.detach().double()
    if how == "sequence":
        gap = gap.new_zeros(len(table.lengths)).index_add_(0, table.response, gap)[table.response]
    return gap.clamp(-LOG_RATIO, LOG_RATIO).exp().to(log_ratio.dtype)


def kl(estimator: str, log_probs: Tensor, reference: Tensor) -> Tensor:
    """Estimate of KL(policy || reference) of each token sampled from the policy, nats, [N] -> [N]; differentiable.

    k1 = log p - log ref (unbiased; as a loss its expected gradient is 0: it belongs in the reward); k2 = k1^2 / 2 (as a
    loss: the gradient of the reverse KL); k3 = exp(-k1) + k1 - 1 (unbiased and never negative). Schulman 2020,
    "Approximating KL divergence".
    """
    log_ratio = log_probs - reference
    if estimator == "k1":
        return log_ratio
    if estimator == "k2":
        return 0.5 * log_ratio.square()
    if estimator == "k3":
        return torch.expm1(-log_ratio) + log_ratio
    raise ValueError(f"unknown KL estimator {estimator!r}: expected one of {', '.join(KL_ESTIMATORS)}")


def aggregate(values: Tensor, table: TokenTable, how: str) -> Tensor:
    """Values of tokens [N] -> this table's share of the minibatch's value, a scalar.

    "sequence": mean over each response's tokens, then over responses (GRPO). "token": mean over all tokens (DAPO).
    "dr_grpo": sum over tokens / (responses * max_length), so that length does not weigh (Dr. GRPO, Liu et al. 2025).
    """
    if how == "sequence":
        return (values / table.lengths[table.response]).sum() / table.sequences_total
    if how == "token":
        return values.sum() / table.tokens_total
    if how == "dr_grpo":
        return values.sum() / (table.sequences_total * table.max_length)
    raise ValueError(f"unknown aggregate {how!r}: expected one of {', '.join(AGGREGATES)}")


def token_mean(values: Tensor) -> tuple[Tensor, Tensor]:
    """(sum, count) of a mean over tokens: an entry of `Loss.sums`. values: [N], float or bool."""
    return values.detach().double().sum(), torch.tensor(float(len(values)), dtype=torch.float64, device=values.device)


def whole(value: Tensor, table: TokenTable) -> tuple[Tensor, Tensor]:
    """(sum, count) that add up to an aggregated value over the minibatch's tables: an entry of `Loss.sums`."""
    count = torch.tensor(float(len(table.lengths)), dtype=torch.float64, device=value.device)
    return value.detach().double() * table.sequences_total, count
