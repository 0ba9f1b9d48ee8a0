"""What an estimator reads (`RewardTable`) and what it returns (`Advantages`), for one step over all ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class RewardTable:
    """R rollouts of Q questions, N tokens in all.

    questions: [Q], sorted by global sample index. domains: [Q]. question [R] long: index into `questions`; a question's
    rollouts keep their order. reward [R] float64: combined, any value where invalid. valid [R] bool: False leaves a
    rollout out of every statistic. kl [R] float64, nats: sequence KL of the sampling policy against the reference.
    difficulty [R] float64: non-negative task rewards, for mean rewards where a penalty is among them; None: `reward`.
    baseline [Q] float64: reward of each question's greedy response, NaN where it has none (`Needs.greedy`).

    Of tokens, the rollouts' put end to end, and only where `Needs.tokens` asks: lengths [R] long: tokens of each.
    penalty [N] float64: what the KL to the reference takes from each token's reward, its weight included; None where
    it takes nothing (elsewhere `reward` has it taken off). values [N] float64: of the value head (`Needs.values`).
    """

    questions: tuple[str, ...]
    domains: tuple[str, ...]
    question: Tensor
    reward: Tensor
    valid: Tensor
    kl: Tensor | None = None
    difficulty: Tensor | None = None
    baseline: Tensor | None = None
    lengths: Tensor | None = None
    penalty: Tensor | None = None
    values: Tensor | None = None


@dataclass(frozen=True)
class ClusterStats:
    """n questions of like rewards. mean_reward: what set the temperature (the difficulty where the table has one)."""

    n: int
    mean_reward: float
    temperature: float
    questions: tuple[str, ...]


@dataclass(frozen=True)
class DomainStats:
    """n: questions that counted. share: of the sum of |advantage| over all domains.

    clusters: from the hardest. hit_cap: no elbow was found. inertias: of k = 1, 2, ... as far as tried.
    An estimator without temperatures says 1.
    """

    n: int
    mean_reward: float
    temperature: float
    clusters: tuple[ClusterStats, ...] = ()
    hit_cap: bool = False
    share: float = 0.0
    inertias: tuple[float, ...] = ()


@dataclass(frozen=True)
class Diagnostics:
    """domains: those with a question that counted. kl_threshold: DRPO's t, None where nothing is damped by KL.

    scalars: everything to log that is one number; `frac_reward_zero_std` and `dropped_groups` from every estimator.
    scales [Q] float64: what each question's values were multiplied with, 1 / (T_g T_c); NaN where it did not count;
    None where all are 1. undamped [R] float64: the advantages without KL damping, in the unit of `Advantages.values`
    (divided by the same standard deviation); None where nothing is damped.
    """

    domains: Mapping[str, DomainStats]
    kl_threshold: float | None = None
    scalars: Mapping[str, float] = field(default_factory=dict)
    scales: Tensor | None = None
    undamped: Tensor | None = None


@dataclass(frozen=True)
class Advantages:
    """values [R] float64, 0 where a rollout is invalid. warnings: what a user should be told, a sentence each.

    tokens [N] float64: advantages of tokens, where they differ within a response; `values` are then their means.
    returns [N] float64: what the value head learns.
    """

    values: Tensor
    diagnostics: Diagnostics
    warnings: tuple[str, ...] = ()
    tokens: Tensor | None = None
    returns: Tensor | None = None
