"""One number out of an evaluation's results, by a path such as `overall/f1` or `domains/ecg/recall`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from qoqmed.errors import Problem, RecipeError, near
from qoqmed.types import Evaluation


def lookup(results: Mapping[str, Any], path: str, where: str = "") -> float:
    """`overall/METRIC`, `domains/NAME/METRIC`, `datasets/DOMAIN/NAME/METRIC`. where: the YAML path that names it."""
    known = dict(_paths(results))
    if path not in known:
        shown = ", ".join(name for name in known if name.startswith("overall/"))
        raise RecipeError(Problem("no metric has this path", where, path, f"such as {shown}", near(path, list(known))))
    return known[path]


def results_of(evaluation: Evaluation) -> Mapping[str, Any]:
    """The greedy results where there are any, else the sampled ones."""
    results = evaluation.sampled if evaluation.greedy is None else evaluation.greedy
    assert results is not None
    return results


def _paths(results: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, value in results.items():
        if isinstance(value, Mapping):
            yield from _paths(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", float(value)
