"""The clipped policy-gradient objective of GRPO and DRPO (QoQ-Med, Sec. 3.3, J_GRPO and J_DRPO).

    J = mean over groups, mean over a group's responses, mean over a response's tokens of
        w min(phi A, clip(phi, 1 - clip_low, 1 + clip_high) A) - kl_weight KL(pi || pi_ref),   phi = pi / pi_old
    w = min(pi_old / pi_engine, importance_cap)

w is no part of the paper. The engine that samples computes log-probs otherwise than the trainer: truncated importance
sampling (Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training") makes the samples
count as pi_old's. It weighs the surrogate alone, as in TRL and verl, and has no gradient. Where both agree it is 1.

Where the estimator of A is chosen is no concern of this file. Deviations from the paper, each by an argument: separate
low and high clipping (DAPO), other aggregations (DAPO's tokens, Dr. GRPO), an entropy bonus. At the defaults they act
only through w and "mean over responses": the responses of the whole minibatch, which is the paper's nested mean where
groups are equally large. Responses whose reward is invalid are left out of the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from qoqmed.contracts import Actor
from qoqmed.losses import (
    AGGREGATES,
    IMPORTANCE,
    KL_ESTIMATORS,
    Loss,
    TokenTable,
    aggregate,
    clipped_surrogate,
    importance_ratio,
    kl,
    token_mean,
    whole,
)
from qoqmed.registry.arguments import check, one_of, within
from qoqmed.types import Case, Group, Needs

RATIO = "sampling/importance_ratio"


class PolicyGradient:
    """Sample a group per case, judge it, and follow the advantages.

    clip_low, clip_high: the ratio counts within [1 - clip_low, 1 + clip_high]. kl_weight: of the KL to the frozen start
    policy in the loss; 0 needs no reference. kl: its estimator, k1, k2 or k3. aggregate: "sequence", "token" or
    "dr_grpo". entropy_weight: bonus. epochs: passes over a step's groups. minibatch: groups per update, 0 for all.
    importance: w of each token, of each response ("sequence"), or "none"; at most importance_cap.
    """

    def __init__(
        self,
        clip_low: float = 0.2,
        clip_high: float = 0.2,
        kl_weight: float = 1e-4,
        kl: str = "k3",
        aggregate: str = "sequence",
        entropy_weight: float = 0.0,
        epochs: int = 1,
        minibatch: int = 0,
        importance: str = "token",
        importance_cap: float = 2.0,
    ) -> None:
        check(
            within("clip_low", clip_low, low=0, high=1),
            within("clip_high", clip_high, low=0),
            within("kl_weight", kl_weight, low=0),
            one_of("kl", kl, KL_ESTIMATORS),
            one_of("aggregate", aggregate, AGGREGATES),
            within("entropy_weight", entropy_weight),
            within("epochs", epochs, low=1),
            within("minibatch", minibatch, low=0),
            one_of("importance", importance, IMPORTANCE),
            within("importance_cap", importance_cap, low=1),
        )
        self.clip_low, self.clip_high = clip_low, clip_high
        self.kl_weight, self.kl = kl_weight, kl
        self.aggregate, self.entropy_weight = aggregate, entropy_weight
        self.epochs, self.minibatch = epochs, minibatch
        self.importance, self.importance_cap = importance, importance_cap
        self.needs = Needs(reference=kl_weight > 0, rollouts=True)

    def collect(self, cases: Sequence[Case], actor: Actor) -> list[Group]:
        prompts = actor.prompts(cases)
        rollouts = actor.generate(cases, prompts)
        groups = [
            Group(case, prompt, tuple(sampled)) for case, prompt, sampled in zip(cases, prompts, rollouts, strict=True)
        ]
        judged = actor.judge(groups)
        return [replace(group, trainable=tuple(reward is not None for reward in group.rewards)) for group in judged]

    def loss(self, tokens: TokenTable) -> Loss:
        """`tokens` holds advantages; the engine's log-probs, or w is left out; reference log-probs where kl_weight > 0;
        entropies where entropy_weight counts."""
        assert tokens.advantages is not None
        old = tokens.log_probs.detach() if tokens.old_log_probs is None else tokens.old_log_probs
        values, low, high = clipped_surrogate(tokens.log_probs, old, tokens.advantages, self.clip_low, self.clip_high)
        sums, smallest, largest = {"clip_ratio/low": token_mean(low), "clip_ratio/high": token_mean(high)}, {}, {}
        if tokens.behaviour_log_probs is not None and len(values):
            ratio = importance_ratio(old - tokens.behaviour_log_probs, tokens, self.importance)
            smallest, largest = {f"{RATIO}/min": ratio.min()}, {f"{RATIO}/max": ratio.max()}
            sums[f"{RATIO}/mean"] = token_mean(ratio)
            if self.importance != "none":
                values = values * ratio.clamp(max=self.importance_cap)
                sums[f"{RATIO}/capped"] = token_mean(ratio > self.importance_cap)
        if tokens.reference_log_probs is not None:
            divergence = kl(self.kl, tokens.log_probs, tokens.reference_log_probs)
            values = values + self.kl_weight * divergence if self.kl_weight else values
            sums["kl"] = token_mean(divergence)
        if tokens.entropies is not None:
            values = values - self.entropy_weight * tokens.entropies if self.entropy_weight else values
            sums["entropy"] = token_mean(tokens.entropies)
        value = aggregate(values, tokens, self.aggregate)
        return Loss(value, {"loss": whole(value, tokens)} | sums, smallest, largest)
