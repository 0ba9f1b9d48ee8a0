"""What the command `eval` does, as a function: exceptions instead of exits."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qoqmed.build import load, splits
from qoqmed.errors import Problem, UserError
from qoqmed.evaluating import evaluate_split
from qoqmed.metrics.predictions import write_predictions
from qoqmed.types import Sampling


def evaluate(
    target: str | Path, overrides: Sequence[str] = (), *, split: str | None = None, predictions: Path | None = None
) -> dict[str, Any]:
    """Generate greedily on a split (`test` where the recipe has one, else `valid`), then the metrics.

    predictions: a file to write the predictions to. Returns {"overall", "domains", "datasets"}.
    """
    if predictions is not None:
        _check_new(Path(predictions))
    actor, recipe = load(target, overrides)
    actor.handle.policy.eval()
    found = splits(recipe)
    chosen = split or ("test" if "test" in found else "valid")
    if chosen not in found:
        mend = f"name data sets in data.{chosen}"
        raise UserError(Problem(f"the recipe has no split {chosen!r}", got=", ".join(found) or "none", mend=mend))
    rollout = recipe.rollout
    sampling = Sampling(1, max_new_tokens=rollout.max_new_tokens)
    config = recipe.evaluation
    skipped: set[str] = set()
    try:
        result, made = evaluate_split(
            actor,
            found[chosen],
            config,
            sampling,
            split=chosen,
            when="eval",
            global_step=0,
            seed=recipe.seed,
            skip=lambda error: skipped.update(str(problem) for problem in error.problems),
        )
    finally:
        actor.close()
    if skipped:
        warnings.warn("\n".join([f"{len(skipped)} cases were left out (data.on_error: skip)", *sorted(skipped)]))
    if predictions is not None:
        write_predictions(predictions, made)
    return dict(result.greedy or result.sampled or {})


def _check_new(path: Path) -> None:
    """Raises UserError where a file cannot be made at `path` without taking another one's place."""
    if path.exists():
        mend = "name another file, or remove this one first"
        raise UserError(Problem("nothing is overwritten", "--predictions", str(path), "a file that is not there", mend))
    if not path.absolute().parent.is_dir():
        raise UserError(Problem("there is no such folder", "--predictions", str(path.parent), mend="make it first"))
