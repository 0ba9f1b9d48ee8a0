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

Beyond the paper, none at default:
- `sort_rewards`: each vector is sorted before k-means. Else its order is the order in which rollouts were sampled, and
  questions of like rewards in another order lie apart.
- `window`: a domain's questions in so many past steps join those of the current one in (2): N_g and N_c count them, mu
  is over all their valid rollouts, k-means is over all their vectors; a question that came twice counts twice. (1),
  (3), (4), (5) and the last line are of the current step, and so are all advantages.
- `max_ratio`: scales 1 / (T_g T_c) are cut from above, at so many times the smallest one that acts (that of a question
  whose rewards differ): the order stays, common domains keep their scales. 1 leaves no scales at all.
"""

from __future__ import annotations

from dataclasses import replace
from math import nan
from typing import Any

import torch
from torch import Tensor

from qoqmed.advantages.drpo_scales import Clusters, cap, refuse_negative, scale_ratio, step_questions, temperatures
from qoqmed.advantages.drpo_window import Window
from qoqmed.advantages.groups import (
    Groups,
    domain_rows,
    group_scalars,
    grouped,
    share,
    standardised,
    top_question_share,
)
from qoqmed.advantages.table import Advantages, Diagnostics, DomainStats, RewardTable
from qoqmed.kmeans import one_thread
from qoqmed.registry.arguments import check, within
from qoqmed.types import Needs


class DRPO:
    """cluster: scale by clusters too. max_clusters, elbow_tolerance, restarts, seed: of `qoqmed.kmeans.elbow`.

    kl_damping: (4) and (5), with t the `kl_quantile` quantile. sort_rewards: cluster sorted rewards. window: past steps
    in the statistics. max_ratio: of the largest scale to the smallest, at most; None: no cap.
    """

    def __init__(
        self,
        cluster: bool = True,
        max_clusters: int = 10,
        elbow_tolerance: float = 0.10,
        kl_damping: bool = True,
        kl_quantile: float = 0.9,
        sort_rewards: bool = False,
        window: int = 0,
        max_ratio: float | None = None,
        restarts: int = 10,
        seed: int = 0,
    ) -> None:
        check(
            within("max_clusters", max_clusters, low=1),
            within("elbow_tolerance", elbow_tolerance, low=0),
            within("kl_quantile", kl_quantile, low=0, high=1),
            within("window", window, low=0),
            None if max_ratio is None else within("max_ratio", max_ratio, low=1),
            within("restarts", restarts, low=1),
        )
        self.clusters = Clusters(max_clusters if cluster else 1, elbow_tolerance, restarts, seed, sort_rewards)
        self.kl_damping, self.kl_quantile = kl_damping, kl_quantile
        self.max_ratio, self.window = max_ratio, Window(window)
        self.needs = Needs(group=2, reference=kl_damping, kl=kl_damping)

    @one_thread()
    def estimate(self, table: RewardTable) -> Advantages:
        """Advantages of a table whose difficulty, or else rewards, are not negative. With a window, it moves on."""
        groups = grouped(table)
        stats, scales = self._scales(table, groups)  # (2)
        scaled = torch.where(groups.counted, standardised(table, groups) * scales[table.question], 0.0)  # (1), (3)
        damped, threshold = self._damp(scaled, table, groups)  # (4), (5)
        spread = float(damped[groups.counted].std()) if groups.counted.any() else 0.0
        unit = 1 / spread if spread > 0 else 0.0
        values = damped * unit
        rows = domain_rows(table, groups)
        domains = {name: replace(one, share=share(values, rows[name])) for name, one in stats.items()}
        ratio, warnings = scale_ratio(table, scales, groups.kept & ~groups.equal)
        if self.kl_damping and table.kl is None:
            warnings += ("DRPO damps by KL, but the table has none: the damping is left out",)
        scalars = group_scalars(groups) | {
            "scale_ratio": ratio,
            "hit_cap": sum(one.hit_cap for one in domains.values()) / max(len(domains), 1),
            "damped": float((damped != scaled).sum()) / max(int(groups.counted.sum()), 1),
            "top_question_share": top_question_share(values, table),
        }
        undamped = None if damped is scaled else scaled * unit
        return Advantages(values, Diagnostics(domains, threshold, scalars, scales, undamped), warnings)

    def _scales(self, table: RewardTable, groups: Groups) -> tuple[dict[str, DomainStats], Tensor]:
        """Equation (2): statistics by domain, and 1 / (T_g T_c) [Q], capped; NaN for questions that do not count."""
        difficulty = table.reward if table.difficulty is None else table.difficulty
        refuse_negative(table, difficulty)
        step = step_questions(table, groups, difficulty, self.clusters)
        scales = difficulty.new_full((len(table.questions),), nan)
        stats = {}
        for name, (index, now) in step.items():
            names = [table.questions[q] for q in index.tolist()]
            stats[name], of_each = temperatures(self.window.pooled(name, now), names, self.clusters)
            scales[index] = 1 / of_each
        self.window.push({name: now for name, (_, now) in step.items()})
        return stats, cap(scales, groups.kept & ~groups.equal, self.max_ratio)

    def _damp(self, scaled: Tensor, table: RewardTable, groups: Groups) -> tuple[Tensor, float | None]:
        """s'' and t; t is None where there is nothing to damp by, and s'' is s' itself where nothing is damped."""
        if not self.kl_damping or table.kl is None or not groups.counted.any():
            return scaled, None
        kl = torch.where(groups.counted, table.kl, 0.0)
        per_question = kl.new_zeros(len(table.questions)).index_add_(0, table.question, kl)
        z = scaled * per_question[table.question]
        threshold = float(z[groups.counted].quantile(self.kl_quantile))
        damped = torch.where(z > 0, scaled * threshold / (threshold + z), scaled) if threshold > 0 else scaled
        return damped, threshold

    def state_dict(self) -> dict[str, Any]:
        """Of the window: lists and floats, which JSON keeps exactly; empty without a window."""
        return self.window.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.window.load_state_dict(state)
