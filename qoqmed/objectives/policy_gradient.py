"""The clipped policy-gradient objective of GRPO and DRPO (QoQ-Med, Sec. 3.3, J_GRPO and J_DRPO).

    J = mean over groups, mean over a group's responses, mean over a response's tokens of
        w min(phi A, clip(phi, 1 - clip_low, 1 + clip_high) A) - kl_weight KL(pi || pi_ref),   phi = pi / pi_old
    w = min(pi_old / pi_engine, importance_cap)

w is no part of the paper. The engine that samples computes log-probs otherwise than the trainer: truncated importance
sampling (Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training") makes the samples
count as pi_old's. It weighs the surrogate alone, as in TRL and verl, and has no gradient. Where both agree it is 1.

Where the estimator of A is chosen is no concern of this file. Deviations from the paper, each by an argument: separate
low and high clipping and no loss of cut-off responses (DAPO, arXiv 2503.14476), dual clipping (Ye et al. 2020), phi of
whole responses (GSPO, arXiv 2507.18071), other aggregations (DAPO's tokens, Dr. GRPO), an entropy bonus, the KL in the
reward, a value loss (PPO). At the defaults they act only through w and "mean over responses": the responses of the
whole minibatch, which is the paper's nested mean where groups are equally large. Responses whose reward is invalid are
left out of the loss.
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
    sequence_ratio,
    token_mean,
    value_loss,
    whole,
)
from qoqmed.registry.arguments import check, one_of, within
from qoqmed.types import Case, Group, Needs

RATIO = "sampling/importance_ratio"
RATIOS = ("token", "sequence")


class PolicyGradient:
    """Sample a group per case, judge it, and follow the advantages.

    clip_low, clip_high: the ratio counts within [1 - clip_low, 1 + clip_high]. dual_clip: bounds the loss where A < 0,
    above 1; null: not. ratio: "token", or "sequence" for GSPO's, whose clips are far smaller (3e-4, 4e-4).
    kl_weight: of the KL to the frozen start policy; 0 needs no reference. kl: its estimator: k2 or k3 in the loss, or
    k1, which has no gradient, in the reward. aggregate: "sequence", "token" or "dr_grpo". entropy_weight: bonus.
    epochs: passes over a step's groups. minibatch: groups per update, 0 for all. mask_truncated: responses that were
    cut off count in the estimate and not in the loss. importance: w of each token, of each response ("sequence"), or
    "none"; at most importance_cap. value_weight, value_clip (null: none): of the value loss, where the estimator trains
    values.
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
        ratio: str = "token",
        dual_clip: float | None = None,
        mask_truncated: bool = False,
        value_weight: float = 0.5,
        value_clip: float | None = 0.2,
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
            one_of("ratio", ratio, RATIOS),
            within("dual_clip", 1.0 if dual_clip is None else dual_clip, low=1),
            within("value_weight", value_weight, low=0),
            within("value_clip", 0.0 if value_clip is None else value_clip, low=0),
        )
        self.clip_low, self.clip_high = clip_low, clip_high
        self.kl_weight, self.kl = kl_weight, kl
        self.aggregate, self.entropy_weight = aggregate, entropy_weight
        self.epochs, self.minibatch = epochs, minibatch
        self.importance, self.importance_cap = importance, importance_cap
        self.ratio, self.dual_clip, self.mask_truncated = ratio, dual_clip, mask_truncated
        self.value_weight, self.value_clip = value_weight, value_clip
        self.reward_kl_weight = kl_weight if kl == "k1" else 0.0
        self.needs = Needs(reference=kl_weight > 0, rollouts=True)

    def collect(self, cases: Sequence[Case], actor: Actor) -> list[Group]:
        prompts = actor.prompts(cases)
        rollouts = actor.generate(cases, prompts)
        groups = [
            Group(case, prompt, tuple(sampled)) for case, prompt, sampled in zip(cases, prompts, rollouts, strict=True)
        ]
        judged = actor.judge(groups)
        return [replace(group, trainable=self._trainable(group)) for group in judged]

    def _trainable(self, group: Group) -> tuple[bool, ...]:
        return tuple(
            reward is not None and not (self.mask_truncated and rollout.finish_reason == "length")
            for rollout, reward in zip(group.rollouts, group.rewards, strict=True)
        )

    def loss(self, tokens: TokenTable) -> Loss:
        """`tokens` holds advantages; the engine's log-probs, or w is left out; reference log-probs where kl_weight > 0;
        entropies where entropy_weight counts; values and returns where the estimator trains values."""
        assert tokens.advantages is not None
        old = tokens.log_probs.detach() if tokens.old_log_probs is None else tokens.old_log_probs
        log_ratio = tokens.log_probs - old
        if self.ratio == "sequence":
            log_ratio = sequence_ratio(log_ratio, tokens)
        clips = (self.clip_low, self.clip_high, self.dual_clip)
        values, low, high = clipped_surrogate(log_ratio, tokens.advantages, *clips)
        sums, smallest, largest = {"clip_ratio/low": token_mean(low), "clip_ratio/high": token_mean(high)}, {}, {}
        if tokens.behaviour_log_probs is not None and len(values):
            weight = importance_ratio(old - tokens.behaviour_log_probs, tokens, self.importance)
            smallest, largest = {f"{RATIO}/min": weight.min()}, {f"{RATIO}/max": weight.max()}
            sums[f"{RATIO}/mean"] = token_mean(weight)
            if self.importance != "none":
                values = values * weight.clamp(max=self.importance_cap)
                sums[f"{RATIO}/capped"] = token_mean(weight > self.importance_cap)
        if tokens.reference_log_probs is not None:
            divergence = kl(self.kl, tokens.log_probs, tokens.reference_log_probs)
            in_loss = self.kl_weight and not self.reward_kl_weight
            values = values + self.kl_weight * divergence if in_loss else values
            sums["kl"] = token_mean(divergence)
        if tokens.entropies is not None:
            values = values - self.entropy_weight * tokens.entropies if self.entropy_weight else values
            sums["entropy"] = token_mean(tokens.entropies)
        value = aggregate(values, tokens, self.aggregate)
        sums["loss"] = whole(value, tokens)
        if tokens.values is not None and tokens.returns is not None:
            assert tokens.old_values is not None
            errors, held = value_loss(tokens.values, tokens.old_values, tokens.returns, self.value_clip)
            value = value + self.value_weight * aggregate(errors, tokens, "token")
            sums |= {"value/loss": token_mean(errors), "value/clipped": token_mean(held)}
            sums |= {"value/mean": token_mean(tokens.values), "value/return": token_mean(tokens.returns)}
        return Loss(value, sums, smallest, largest)
