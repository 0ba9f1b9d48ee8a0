"""What the commands `eval`, `metrics`, `advantage` and `score` do, as functions: exceptions instead of exits."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qoqmed import registry
from qoqmed.advantages.exchange import from_rows, require
from qoqmed.build import load, splits
from qoqmed.config.schema import Node
from qoqmed.errors import Problem, UserError
from qoqmed.evaluating import evaluate_split
from qoqmed.json_lines import rows
from qoqmed.metrics.predictions import read_predictions, write_predictions
from qoqmed.report.advantage_explained import explain
from qoqmed.report.advantage_picture import draw, picture_file
from qoqmed.report.score_view import score_row
from qoqmed.scoring import chosen, score_file
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


def metrics(path: str | Path, metric: str = "clinical") -> dict[str, Any]:
    """Metrics of a predictions file (JSON Lines, see docs/formats.md). Raises DataError with every wrong line."""
    made = registry.make("metrics", Node(metric, where="--metric"))
    made.update(read_predictions(Path(path)))
    return dict(made.compute())


def estimate(
    path: str | Path,
    estimator: str,
    arguments: Mapping[str, Any] | None = None,
    *,
    plot: str | Path | None = None,
) -> dict[str, Any]:
    """Replay an estimator on a rewards file: advantages in input order, and what domains, clusters and questions got.

    plot: a PNG file to draw that into; one that is there is replaced. Raises UserError for wrong input.
    """
    picture = None if plot is None else picture_file(Path(plot), Path(path))
    found = list(rows(Path(path)))
    table = from_rows([row for _, row in found], [place for place, _ in found])
    made = registry.make("advantages", Node(estimator, dict(arguments or {}), "--estimator"))
    require(table, made.needs, str(path))
    result = explain(table, made.estimate(table))
    if picture is not None:
        draw(result, f"{estimator}: {Path(path).name}").savefig(picture)
    return result


def score(
    path: str | Path,
    rewards: Mapping[str, float | None] | None = None,
    *,
    recipe: str | Path | None = None,
    overrides: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Rewards of a responses file, with reasons, one result a line of it.

    rewards: weights by plugin name; the paper's accuracy 0.6, iou 0.2, format 0.2 where none are given. recipe: its
    rewards, or those of them that `rewards` names, a weight of None being the recipe's. Raises UserError.
    """
    return [score_row(one) for one in score_file(Path(path), chosen(rewards, recipe, overrides))]
