"""What the commands `metrics`, `advantage` and `score` do, as functions on files; no model is loaded for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qoqmed import registry
from qoqmed.advantages.exchange import from_rows, require
from qoqmed.config.schema import Node
from qoqmed.json_lines import read
from qoqmed.metrics.predictions import read_predictions
from qoqmed.report.advantage_explained import explain
from qoqmed.report.advantage_picture import draw, picture_file


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
    found, problems = read(Path(path))
    table = from_rows([row for _, row in found], [place for place, _ in found], problems)
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
    from qoqmed.report.score_view import score_row
    from qoqmed.scoring import chosen, score_file

    return [score_row(one) for one in score_file(Path(path), chosen(rewards, recipe, overrides))]
