"""The exchange format of `qoqmed advantage`: reward rows in, advantages out (docs: "Exchange formats", a promise).

A row is `{"question": str, "domain": str, "reward": float, "kl": float?}`, one rollout each. Questions count in the
order of their first row. Also read: a `null` reward (an invalid rollout); `"difficulty": float?`; of the tokens of a
response `"tokens": int?`, `"penalty": [float]?`, `"values": [float]?`; and `"baseline": float?`, the same in every row
of a question. What they mean: `RewardTable`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from math import nan
from typing import Any

import torch
from torch import Tensor

from qoqmed.advantages.table import Advantages, ClusterStats, DomainStats, RewardTable
from qoqmed.errors import DataError, Problem
from qoqmed.types import Needs

Rows = Sequence[Mapping[str, Any]]

NUMBERS = ("reward", "kl", "difficulty", "baseline")
NOT_NEGATIVE = ("kl", "difficulty")
LISTS = ("penalty", "values")  # a number a token
WHOLE = ("kl", "difficulty", "tokens", *LISTS)  # in every row or in none


def _is_number(value: Any) -> bool:
    """Finite as a float, which a long integer need not be."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _row_problems(row: Mapping[str, Any], where: str) -> Iterator[Problem]:
    for key in ("question", "domain"):
        if not isinstance(row.get(key), str):
            yield Problem(f"{key} is missing or not a text", where, got=repr(row.get(key)), expected="a string")
    if "reward" not in row:
        yield Problem("reward is missing", where, expected="a finite number, or null where invalid")
    for key in NUMBERS:
        value = row.get(key)
        if value is not None and not _is_number(value):
            yield Problem(f"{key} is not a finite number", where, got=_short(value))
        elif value is not None and key in NOT_NEGATIVE and value < 0:
            yield Problem(f"{key} is negative", where, got=repr(value))
    yield from _token_problems(row, where)


def _token_problems(row: Mapping[str, Any], where: str) -> Iterator[Problem]:
    """Of the keys that tell of a response's tokens: their number is `tokens`, or else what the lists agree on."""
    tokens = row.get("tokens")
    if tokens is not None and (isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1):
        yield Problem("tokens is no number of tokens", where, got=repr(tokens), expected="a whole number from 1")
        return
    for key in LISTS:
        value = row.get(key)
        if value is None:
            continue
        if not isinstance(value, list) or not value or not all(map(_is_number, value)):
            yield Problem(f"{key} is not a list of finite numbers", where, got=_short(value), expected="one a token")
        elif tokens is None:
            tokens = len(value)
        elif len(value) != tokens:
            yield Problem(f"{key} is of another length", where, got=f"{len(value)} numbers", expected=f"{tokens}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _question_problems(rows: Rows, places: Sequence[str]) -> Iterator[Problem]:
    """What the rows of one question must agree on."""
    first: dict[str, Mapping[str, Any]] = {}
    for row, place in zip(rows, places, strict=True):
        question = row.get("question")
        if not isinstance(question, str):  # told already
            continue
        before = first.setdefault(question, row)
        for key, what in (("domain", "is in two domains"), ("baseline", "has two baselines")):
            if row.get(key) != before.get(key):
                got = f"{_short(row.get(key))}, and {_short(before.get(key))} before"
                yield Problem(f"question {question!r} {what}", place, got=got)


def from_rows(rows: Rows, places: Sequence[str] = (), problems: Sequence[Problem] = ()) -> RewardTable:
    """Rows -> a table whose rollouts are in the rows' order. Raises DataError with every fault found.

    places: what to call each row, such as file:line; "row 1", .. where they are not given. problems: found already.
    """
    if not rows and not problems:
        raise DataError(Problem("no rows", expected="a rollout a line"))
    places = places or [f"row {index + 1}" for index in range(len(rows))]
    problems = list(problems)
    problems += [problem for row, place in zip(rows, places, strict=True) for problem in _row_problems(row, place)]
    problems += _question_problems(rows, places)
    for key in WHOLE:
        values = [row.get(key) for row in rows]
        if None in values and any(value is not None for value in values):
            where = places[values.index(None)]
            problems.append(Problem(f"{key} is missing", where, expected=f"{key} in every row or in none"))
    if problems:
        raise DataError(problems)
    domains = {row["question"]: row["domain"] for row in rows}
    order = {question: index for index, question in enumerate(domains)}
    rewards = [row["reward"] for row in rows]
    return RewardTable(
        questions=tuple(domains),
        domains=tuple(domains.values()),
        question=torch.tensor([order[row["question"]] for row in rows]),
        reward=torch.tensor([0.0 if reward is None else reward for reward in rewards], dtype=torch.float64),
        valid=torch.tensor([reward is not None for reward in rewards]),
        kl=_column(rows, "kl"),
        difficulty=_column(rows, "difficulty"),
        baseline=_baseline(rows),
        lengths=_lengths(rows),
        penalty=_column(rows, "penalty"),
        values=_column(rows, "values"),
    )


def _column(rows: Rows, key: str) -> Tensor | None:
    """[R], or [N] of a key that has a list; None where no row has it."""
    if rows[0].get(key) is None:
        return None
    flat = [number for row in rows for number in (row[key] if key in LISTS else (row[key],))]
    return torch.tensor(flat, dtype=torch.float64)


def _lengths(rows: Rows) -> Tensor | None:
    for key in ("tokens", *LISTS):
        if rows[0].get(key) is not None:
            return torch.tensor([row[key] if key == "tokens" else len(row[key]) for row in rows])
    return None


def _baseline(rows: Rows) -> Tensor | None:
    """[Q]; NaN where a question's greedy response has no reward, None where no question has one."""
    found = {row["question"]: row.get("baseline") for row in rows}
    if all(value is None for value in found.values()):
        return None
    return torch.tensor([nan if value is None else value for value in found.values()], dtype=torch.float64)


def require(table: RewardTable, needs: Needs, where: str = "") -> None:
    """Raises DataError with each key that an estimator needs and no row has. What it merely uses it warns of itself."""
    asked = {
        "tokens": (needs.tokens and table.lengths is None, "tokens, a whole number, in every row"),
        "values": (needs.values and table.values is None, "values, a number a token, in every row"),
        "baseline": (needs.greedy and table.baseline is None, "baseline, a number, in every row of a question"),
    }
    problems = [
        Problem(f"the estimator needs {key!r}, which no row has", where, expected=expected, mend="see docs/formats.md")
        for key, (missing, expected) in asked.items()
        if missing
    ]
    if problems:
        raise DataError(problems)


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
