"""One number out of an evaluation, by a path such as `overall/f1`, `ecg/recall` or `ecg/ptbxl/f1`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qoqmed.errors import Problem, RecipeError, near
from qoqmed.types import Evaluation


def lookup(evaluation: Evaluation, path: str, where: str = "") -> float:
    """`overall/METRIC`, `DOMAIN/METRIC` or `DOMAIN/DATASET/METRIC`, of the greedy results where there are any, else of
    the sampled ones. RecipeError where there is no such figure; where: the YAML path that names it.
    """
    results = evaluation.sampled if evaluation.greedy is None else evaluation.greedy
    known = _figures(results or {})
    if path not in known:
        shown = [name for name in known if name.startswith("overall/")]
        expected = (
            f"such as {', '.join(shown)}" if shown else f"none: the split {evaluation.split} has no labelled case"
        )
        raise RecipeError(Problem("no metric has this path", where, path, expected, near(path, list(known))))
    return known[path]


def _figures(results: Mapping[str, Any]) -> dict[str, float]:
    sections = {"overall": results.get("overall", {})} | dict(results.get("domains", {}))
    sections |= results.get("datasets", {})
    return {f"{section}/{name}": float(value) for section, row in sections.items() for name, value in row.items()}
