"""Temperatures of DRPO (QoQ-Med, Sec. 3.3 and App. B.1): T_g of a domain, T_c of its clusters, and what they scale."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from qoqmed.advantages.drpo_window import Questions
from qoqmed.advantages.groups import EPS, Groups
from qoqmed.advantages.table import ClusterStats, DomainStats, RewardTable
from qoqmed.errors import Problem, UserError
from qoqmed.kmeans import Elbow, elbow

ALARM = 1e3  # a ratio of scales over this is warned of


@dataclass(frozen=True)
class Clusters:
    """How questions are clustered: arguments of `qoqmed.kmeans.elbow`; one cluster at most is none at all.

    ordered: by sorted rewards, so that the order of a question's rollouts does not matter.
    """

    most: int
    tolerance: float
    restarts: int
    seed: int
    ordered: bool

    def find(self, vectors: Tensor) -> Elbow | None:
        """None: all questions of the domain are one cluster, of T_c = 1."""
        return None if self.most == 1 else elbow(vectors, self.most, self.tolerance, self.seed, self.restarts)


def refuse_negative(table: RewardTable, difficulty: Tensor) -> None:
    """Raises UserError where a mean reward could be negative: its square root would have no meaning."""
    bad = ((difficulty < 0) & table.valid).nonzero()[:, 0]
    if len(bad):
        raise UserError(
            Problem(
                "DRPO divides by mean rewards, which must not be negative",
                where=f"question {table.questions[int(table.question[bad[0]])]!r}",
                got=f"{float(difficulty[bad[0]]):g}",
                expected="rewards of 0 or more",
                mend="with a penalty among the rewards, give the task rewards without it as the difficulty",
            )
        )


def step_questions(
    table: RewardTable, groups: Groups, difficulty: Tensor, clusters: Clusters
) -> dict[str, tuple[Tensor, Questions]]:
    """By domain: indices [N] of the questions kept, and what they bring; domains in order of first appearance."""
    counted = torch.where(groups.counted, difficulty, 0.0)
    totals = counted.new_zeros(len(table.questions)).index_add_(0, table.question, counted)
    filled = torch.where(table.valid, table.reward, groups.means[table.question])
    filled = filled[table.question.argsort(stable=True)]
    sizes = table.question.bincount(minlength=len(table.questions))
    starts = sizes.cumsum(0) - sizes
    out = {}
    for domain in dict.fromkeys(table.domains):
        inside = torch.tensor([name == domain for name in table.domains])
        questions = (inside & groups.kept).nonzero()[:, 0]
        if not len(questions):
            continue
        length = 0 if clusters.most == 1 else _same_length(domain, questions, sizes, table)
        vectors = filled[starts[questions][:, None] + torch.arange(length)]  # [N, G]
        vectors = vectors.sort(1).values if clusters.ordered else vectors
        out[domain] = (questions, Questions(totals[questions], groups.counts[questions], vectors))
    return out


def _same_length(domain: str, questions: Tensor, sizes: Tensor, table: RewardTable) -> int:
    own = sizes[questions]
    small, large = int(own.argmin()), int(own.argmax())
    if own[small] != own[large]:
        got = [f"{table.questions[int(questions[i])]!r} has {int(own[i])}" for i in (small, large)]
        raise UserError(
            Problem(
                "DRPO clusters questions by their reward vectors, which must be equally long",
                where=f"domain {domain!r}",
                got=f"question {got[0]}, {got[1]}",
                expected="the same number of rollouts for every question of a domain",
                mend="set cluster to false, or give the missing rollouts as invalid",
            )
        )
    return int(own[small])


def _temperature(n: int, mean: float) -> float:
    return max(sqrt(n) * mean, EPS)


def temperatures(pooled: Questions, names: list[str], clusters: Clusters) -> tuple[DomainStats, Tensor]:
    """Equation (2) of one domain: its statistics without their share, and T_g T_c [N] of the N questions `names`.

    pooled: those questions first, then such as count in the statistics alone.
    """
    mean = pooled.mean()
    of_domain = _temperature(len(pooled.totals), mean)
    found = clusters.find(pooled.vectors)
    assignment = torch.zeros(len(pooled.totals), dtype=torch.long) if found is None else found.clustering.assignment
    own = assignment[: len(names)]
    out = pooled.totals.new_full((len(names),), of_domain)
    told: list[ClusterStats] = []
    for index in range(1 if found is None else found.k):
        members = assignment == index
        n, mu = int(members.sum()), pooled.mean(members)
        t = 1.0 if found is None else _temperature(n, mu)
        out[own == index] *= t
        told.append(ClusterStats(n, mu, t, tuple(names[i] for i in (own == index).nonzero()[:, 0].tolist())))
    stats = DomainStats(
        n=len(pooled.totals),
        mean_reward=mean,
        temperature=of_domain,
        clusters=tuple(sorted(told, key=lambda cluster: cluster.mean_reward)),
        hit_cap=found is not None and found.hit_cap,
        inertias=() if found is None else found.inertias,
    )
    return stats, out


def cap(scales: Tensor, acting: Tensor, max_ratio: float | None) -> Tensor:
    """Scales [Q] of at most `max_ratio` times the smallest of those that act; `acting` [Q] bool."""
    if max_ratio is None or not acting.any():
        return scales
    return scales.clamp(max=max_ratio * float(scales[acting].min()))


def scale_ratio(table: RewardTable, scales: Tensor, acting: Tensor) -> tuple[float, tuple[str, ...]]:
    """Largest over smallest scale [Q] of the questions where it acts; a warning where that is over ALARM."""
    at = acting.nonzero()[:, 0]
    if not len(at):
        return 1.0, ()
    hard, easy = int(at[scales[at].argmax()]), int(at[scales[at].argmin()])
    ratio = float(scales[hard] / scales[easy])
    hardest, easiest = (f"{table.questions[q]!r} ({table.domains[q]})" for q in (hard, easy))
    warning = f"DRPO weighs question {hardest} {ratio:.3g} times as much as {easiest}"
    return ratio, (warning,) if ratio > ALARM else ()
