"""The exchange format of `qoqmed advantage`: reward rows in, advantages out (docs: "Exchange formats", a promise).

A row is `{"question": str, "domain": str, "reward": float, "kl": float?}`, one rollout each; `"difficulty": float?` and
a `null` reward (an invalid rollout) are read too. Questions count in the order of their first row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

import torch

from qoqmed.advantages.table import Advantages, ClusterStats, DomainStats, RewardTable
from qoqmed.errors import DataError, Problem


def _row_problems(row: Mapping[str, Any], where: str) -> list[Problem]:
    problems = [
        Problem(f"{key} is missing or not a text", where, got=repr(row.get(key)), expected="a string")
        for key in ("question", "domain")
        if not isinstance(row.get(key), str)
    ]
    if "reward" not in row:
        problems.append(Problem("reward is missing", where, expected="a finite number, or null where invalid"))
    for key in ("reward", "kl", "difficulty"):
        value = row.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not isfinite(value):
            problems.append(Problem(f"{key} is not a finite number", where, got=repr(value)))
        elif key != "reward" and value < 0:
            problems.append(Problem(f"{key} is negative", where, got=repr(value)))
    return problems


def from_rows(rows: Sequence[Mapping[str, Any]], places: Sequence[str] = ()) -> RewardTable:
    """Rows -> a table whose rollouts are in the rows' order. Raises DataError with every fault found.

    places: what to call each row, such as file:line; "row 1", .. where they are not given.
    """
    if not rows:
        raise DataError(Problem("no rows", expected="a rollout a line"))
    places = places or [f"row {index + 1}" for index in range(len(rows))]
    problems = [problem for row, place in zip(rows, places, strict=True) for problem in _row_problems(row, place)]
    domains: dict[str, str] = {}
    for index, row in enumerate(rows):
        question, domain = str(row.get("question")), str(row.get("domain"))
        if domains.setdefault(question, domain) != domain:
            got = f"{domain!r}, and {domains[question]!r} before"
            problems.append(Problem(f"question {question!r} is in two domains", places[index], got=got))
    optional = {key: [row.get(key) for row in rows] for key in ("kl", "difficulty")}
    for key, values in optional.items():
        if None in values and any(value is not None for value in values):
            where = places[values.index(None)]
            problems.append(Problem(f"{key} is missing", where, expected=f"{key} in every row or in none"))
    if problems:
        raise DataError(problems)
    order = {question: index for index, question in enumerate(domains)}
    rewards = [row["reward"] for row in rows]
    columns = {
        key: None if None in values else torch.tensor(values, dtype=torch.float64) for key, values in optional.items()
    }
    return RewardTable(
        questions=tuple(domains),
        domains=tuple(domains.values()),
        question=torch.tensor([order[row["question"]] for row in rows]),
        reward=torch.tensor([0.0 if reward is None else reward for reward in rewards], dtype=torch.float64),
        valid=torch.tensor([reward is not None for reward in rewards]),
        kl=columns["kl"],
        difficulty=columns["difficulty"],
    )


def _statistics(stats: DomainStats | ClusterStats) -> dict[str, Any]:
    return {"n": stats.n, "mean_reward": stats.mean_reward, "temperature": stats.temperature}


def to_result(table: RewardTable, advantages: Advantages) -> dict[str, Any]:
    """The answer as the exchange format has it: advantages in the order of the table's rollouts."""
    diagnostics = advantages.diagnostics
    return {
        "advantages": advantages.values.tolist(),
        "domains": {
            name: _statistics(stats)
            | {
                "clusters": [
                    _statistics(cluster) | {"questions": list(cluster.questions)} for cluster in stats.clusters
                ]
            }
            for name, stats in diagnostics.domains.items()
        },
        "kl": {"threshold": diagnostics.kl_threshold},
    }
