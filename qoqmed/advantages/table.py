"""What an estimator reads (`RewardTable`) and what it returns (`Advantages`), for one step over all ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class RewardTable:
    """R rollouts of Q questions.

    questions: [Q], sorted by global sample index. domains: [Q]. question [R] long: index into `questions`; a question's
    rollouts keep their order. reward [R] float64: combined, any value where invalid. valid [R] bool: False leaves a
    rollout out of every statistic. kl [R] float64, nats: sequence KL of the sampling policy against the reference.
    difficulty [R] float64: non-negative task rewards, for mean rewards where a penalty is among them; None: `reward`.
    """

    questions: tuple[str, ...]
    domains: tuple[str, ...]
    question: Tensor
    reward: Tensor
    valid: Tensor
    kl: Tensor | None = None
    difficulty: Tensor | None = None


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
    """

    domains: Mapping[str, DomainStats]
    kl_threshold: float | None = None
    scalars: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Advantages:
    """values [R] float64, 0 where a rollout is invalid. warnings: what a user should be told, a sentence each."""

    values: Tensor
    diagnostics: Diagnostics
    warnings: tuple[str, ...] = ()
