"""DRPO, Domain-aware Relative Policy Optimization (QoQ-Med, Sec. 3.3 and App. B).

    s   = (r - mean_q) / (std_q + eps)                            GRPO's, within each question                       (1)
    T_g = max(sqrt(N_g) mu_g, eps),  T_c likewise                 of domains, and of k-means clusters inside them    (2)
    s'  = s / (T_g T_c)                                                                                              (3)
    k_q = sum of KL(pi_old || pi_ref) over a question's rollouts                                                     (4)
    s'' = s' t / (t + max(s' k_q, 0)),  t the 0.9 quantile of s' k_q                                                 (5)
    A   = s'' / std(s'')

Clusters: k-means of a domain's reward vectors [N_g, G], k by the elbow (App. B.1). Where the paper is open:
- Statistics are those of one step, over all ranks; standard deviations are unbiased; eps is 1e-6.
- The KL of a rollout is the k3 estimate, summed over its tokens. Where t <= 0 nothing is damped.
- Damping touches positive advantages only, so that the mean per question is 0 before it and not after.
- A question whose rewards are all equal gets exactly 0. `cluster: false` and `max_clusters: 1` both mean T_c = 1.
- An invalid rollout gets 0 and is in no statistic; in its question's vector it is the mean of the valid ones. Questions
  with fewer than two valid rollouts are dropped, N_g included.
- Rewards must not be negative, or T would be eps: with a penalty among them, mu is of the table's `difficulty`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import sqrt
from typing import Any

import torch
from torch import Tensor

from qoqmed.advantages.groups import EPS, Groups, domain_rows, group_scalars, share, standardise, top_question_share
from qoqmed.advantages.table import Advantages, ClusterStats, Diagnostics, DomainStats, RewardTable
from qoqmed.errors import Problem, UserError
from qoqmed.kmeans import Elbow, elbow, one_thread
from qoqmed.registry.arguments import check, within
from qoqmed.types import Needs

ALARM = 1e3  # a ratio of scales over this is warned of


@dataclass(frozen=True)
class _Domain:
    """stats: without their share. questions [N] long. temperatures [N] float64: T_g T_c of each question."""

    stats: DomainStats
    questions: Tensor
    temperatures: Tensor


def _temperature(n: int, mean: float) -> float:
    return max(sqrt(n) * mean, EPS)


def _vectors(name: str, questions: Tensor, table: RewardTable, groups: Groups) -> Tensor:
    """Reward vectors [N, G] of a domain's questions [N], invalid rollouts filled with the mean of the valid ones."""
    rows = torch.isin(table.question, questions).nonzero()[:, 0]
    rows = rows[table.question[rows].argsort(stable=True)]
    sizes = table.question[rows].bincount(minlength=len(table.questions))[questions]
    small, large = int(sizes.argmin()), int(sizes.argmax())
    if sizes[small] != sizes[large]:
        got = [f"{table.questions[int(questions[i])]!r} has {int(sizes[i])}" for i in (small, large)]
        raise UserError(
            Problem(
                "DRPO clusters questions by their reward vectors, which must be equally long",
                where=f"domain {name!r}",
                got=f"question {got[0]}, {got[1]}",
                expected="the same number of rollouts for every question of a domain",
                mend="set cluster to false, or give the missing rollouts as invalid",
            )
        )
    filled = torch.where(table.valid, table.reward, groups.means[table.question])
    return filled[rows].view(len(questions), -1)


def _refuse_negative(table: RewardTable, difficulty: Tensor) -> None:
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


def _scale_ratio(table: RewardTable, groups: Groups, temperatures: Tensor) -> tuple[float, tuple[str, ...]]:
    """Largest over smallest 1 / (T_g T_c), of the questions where it multiplies an advantage; a warning over ALARM."""
    acting = (groups.kept & ~groups.equal).nonzero()[:, 0]
    if not len(acting):
        return 1.0, ()
    hard, easy = int(acting[temperatures[acting].argmin()]), int(acting[temperatures[acting].argmax()])
    ratio = float(temperatures[easy] / temperatures[hard])
    hardest, easiest = (f"{table.questions[q]!r} ({table.domains[q]})" for q in (hard, easy))
    warning = f"DRPO weighs question {hardest} {ratio:.3g} times as much as {easiest}"
    return ratio, (warning,) if ratio > ALARM else ()


class DRPO:
    """cluster: scale by clusters too. max_clusters, elbow_tolerance, restarts, seed: of `qoqmed.kmeans.elbow`.

    kl_damping: (4) and (5), with t the `kl_quantile` quantile.
    """

    def __init__(
        self,
        cluster: bool = True,
        max_clusters: int = 10,
        elbow_tolerance: float = 0.10,
        kl_damping: bool = True,
        kl_quantile: float = 0.9,
        restarts: int = 10,
        seed: int = 0,
    ) -> None:
        check(
            within("max_clusters", max_clusters, low=1),
            within("elbow_tolerance", elbow_tolerance, low=0),
            within("kl_quantile", kl_quantile, low=0, high=1),
            within("restarts", restarts, low=1),
        )
        self.max_clusters = max_clusters if cluster else 1
        self.elbow_tolerance, self.restarts, self.seed = elbow_tolerance, restarts, seed
        self.kl_damping, self.kl_quantile = kl_damping, kl_quantile
        self.needs = Needs(group=2, reference=kl_damping, kl=kl_damping)

    @one_thread()
    def estimate(self, table: RewardTable) -> Advantages:
        """Advantages of a table whose difficulty, or else rewards, are not negative."""
        difficulty = table.reward if table.difficulty is None else table.difficulty
        _refuse_negative(table, difficulty)
        groups = standardise(table)  # (1)
        rows = domain_rows(table, groups)
        parts = {name: self._domain(name, rows[name], table, groups, difficulty) for name in rows}  # (2)
        temperatures = difficulty.new_ones(len(table.questions))
        for part in parts.values():
            temperatures[part.questions] = part.temperatures
        scaled = groups.values / temperatures[table.question]  # (3)
        damped, threshold = self._damp(scaled, table, groups)  # (4), (5)
        spread = float(damped[groups.counted].std()) if groups.counted.any() else 0.0
        values = damped / spread if spread > 0 else torch.zeros_like(damped)
        domains = {name: replace(part.stats, share=share(values, rows[name])) for name, part in parts.items()}
        ratio, warnings = _scale_ratio(table, groups, temperatures)
        if self.kl_damping and table.kl is None:
            warnings += ("DRPO damps by KL, but the table has none: the damping is left out",)
        scalars = group_scalars(groups) | {
            "scale_ratio": ratio,
            "hit_cap": sum(stats.hit_cap for stats in domains.values()) / max(len(domains), 1),
            "damped": float((damped != scaled).sum()) / max(int(groups.counted.sum()), 1),
            "top_question_share": top_question_share(values, table),
        }
        return Advantages(values, Diagnostics(domains, threshold, scalars), warnings)

    def _domain(self, name: str, rows: Tensor, table: RewardTable, groups: Groups, difficulty: Tensor) -> _Domain:
        """Equation (2) of one domain; `rows` are its rollouts that count."""
        questions, own = torch.unique(table.question[rows], return_inverse=True)
        mean = float(difficulty[rows].mean())
        temperature = _temperature(len(questions), mean)
        found = self._elbow(name, questions, table, groups)
        assignment = torch.zeros_like(questions) if found is None else found.clustering.assignment
        temperatures = difficulty.new_full((len(questions),), temperature)
        clusters: list[ClusterStats] = []
        for index in range(1 if found is None else found.k):
            members = assignment == index
            mu = float(difficulty[rows[members[own]]].mean())
            t = 1.0 if found is None else _temperature(int(members.sum()), mu)
            temperatures[members] *= t
            names = tuple(table.questions[q] for q in questions[members].tolist())
            clusters.append(ClusterStats(len(names), mu, t, names))
        stats = DomainStats(
            n=len(questions),
            mean_reward=mean,
            temperature=temperature,
            clusters=tuple(sorted(clusters, key=lambda cluster: cluster.mean_reward)),
            hit_cap=found is not None and found.hit_cap,
            inertias=() if found is None else found.inertias,
        )
        return _Domain(stats, questions, temperatures)

    def _elbow(self, name: str, questions: Tensor, table: RewardTable, groups: Groups) -> Elbow | None:
        """None: all questions of the domain are one cluster, of T_c = 1."""
        if self.max_clusters == 1:
            return None
        vectors = _vectors(name, questions, table, groups)
        return elbow(vectors, self.max_clusters, self.elbow_tolerance, self.seed, self.restarts)

    def _damp(self, scaled: Tensor, table: RewardTable, groups: Groups) -> tuple[Tensor, float | None]:
        """s'' and t; t is None where there is nothing to damp by."""
        if not self.kl_damping or table.kl is None or not groups.counted.any():
            return scaled, None
        kl = torch.where(groups.counted, table.kl, 0.0)
        per_question = kl.new_zeros(len(table.questions)).index_add_(0, table.question, kl)
        z = scaled * per_question[table.question]
        threshold = float(z[groups.counted].quantile(self.kl_quantile))
        return (scaled * threshold / (threshold + z.clamp(min=0)) if threshold > 0 else scaled), threshold

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing is kept from step to step."""
