"""What an estimator did to the rewards of a step: the exchange format's answer, and beside it what led to it.

Added to it: `questions` (scale, cluster, share of |advantage|), of each domain `share`, `hit_cap`, `inertias` and
`removed`, of each cluster `scale` and `share`, `kl.removed`, `undamped`, `tokens`, `returns`, `scalars`, `warnings`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isnan
from typing import Any

import torch
from torch import Tensor

from qoqmed.advantages.exchange import to_result
from qoqmed.advantages.table import Advantages, RewardTable


@dataclass(frozen=True)
class _Questions:
    """Of each question, [Q] float64. scale: NaN where it did not count. relative: the scale over the smallest one of a
    question with an advantage, NaN without. share: of the sum of |advantage|. mean: of the valid rewards, or NaN."""

    scale: Tensor
    relative: Tensor
    share: Tensor
    mean: Tensor

    @classmethod
    def of(cls, table: RewardTable, advantages: Advantages) -> _Questions:
        zeros = torch.zeros(len(table.questions), dtype=torch.float64)
        size = zeros.index_add(0, table.question, _sizes(table, advantages))
        scales = advantages.diagnostics.scales
        scale = torch.ones_like(zeros) if scales is None else scales
        acting = size > 0
        smallest = scale[acting].min() if acting.any() else 1.0
        rows = table.question[table.valid]
        total, n = zeros.index_add(0, rows, table.reward[table.valid]), rows.bincount(minlength=len(zeros))
        share = size / size.sum() if acting.any() else zeros
        return cls(scale, torch.where(acting, scale / smallest, torch.nan), share, total / n)


def explain(table: RewardTable, advantages: Advantages) -> dict[str, Any]:
    """The result that `qoqmed advantage` shows, in plain dicts, lists and numbers; docs/formats.md has its fields."""
    diagnostics, found = advantages.diagnostics, _Questions.of(table, advantages)
    place = {question: index for index, question in enumerate(table.questions)}
    result = to_result(table, advantages)
    clusters: dict[str, int] = {}
    for name, stats in diagnostics.domains.items():
        domain = result["domains"][name]
        own = [index for index, of in enumerate(table.domains) if of == name]
        domain |= {
            "share": float(found.share[own].sum()),
            "hit_cap": stats.hit_cap,
            "inertias": list(stats.inertias),
            "removed": _removed(table, advantages, own),
        }
        for index, cluster in enumerate(domain["clusters"]):
            members = [place[question] for question in cluster["questions"]]
            scale = _plain(found.scale[members[0]]) if members else None  # of questions of past steps alone
            cluster |= {"scale": scale, "share": float(found.share[members].sum())}
            clusters |= dict.fromkeys(cluster["questions"], index)
    result["questions"] = {
        question: {
            "domain": table.domains[index],
            "cluster": clusters.get(question),
            "mean_reward": _plain(found.mean[index]),
            "scale": _plain(found.scale[index]),
            "relative_scale": _plain(found.relative[index]),
            "share": float(found.share[index]),
        }
        for question, index in place.items()
    }
    result["kl"]["removed"] = _removed(table, advantages, list(place.values()))
    undamped = diagnostics.undamped
    return result | {
        "undamped": None if undamped is None else undamped.tolist(),
        "tokens": _by_rollout(advantages.tokens, table),
        "returns": _by_rollout(advantages.returns, table),
        "scalars": dict(diagnostics.scalars),
        "warnings": list(advantages.warnings),
    }


def _sizes(table: RewardTable, advantages: Advantages) -> Tensor:
    """|advantage| of each rollout, [R]; the mean over its tokens where they differ, which would cancel otherwise."""
    if advantages.tokens is None or table.lengths is None:
        return advantages.values.abs()
    rollout = torch.arange(len(table.lengths)).repeat_interleave(table.lengths)
    return torch.zeros_like(advantages.values).index_add(0, rollout, advantages.tokens.abs()) / table.lengths


def _removed(table: RewardTable, advantages: Advantages, questions: list[int]) -> float | None:
    """The part of some questions' positive advantage that damping by KL took; None for an estimator without it."""
    undamped = advantages.diagnostics.undamped
    if undamped is None:
        return None if advantages.diagnostics.kl_threshold is None else 0.0
    rows = torch.isin(table.question, torch.tensor(questions))
    before, after = (float(values[rows].clamp(min=0).sum()) for values in (undamped, advantages.values))
    return max(1 - after / before, 0.0) if before else 0.0


def _by_rollout(values: Tensor | None, table: RewardTable) -> list[list[float]] | None:
    """[N] of tokens -> a list for each rollout."""
    if values is None or table.lengths is None:
        return None
    return [part.tolist() for part in torch.split(values, table.lengths.tolist())]


def _plain(value: Tensor) -> float | None:
    number = float(value)
    return None if isnan(number) else number
