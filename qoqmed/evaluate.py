"""What the commands `eval`, `metrics`, `advantage` and `score` do, as functions: exceptions instead of exits."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from qoqmed import registry
from qoqmed.advantages.exchange import from_rows, to_result
from qoqmed.boxes import AbsoluteFrame
from qoqmed.build import load, splits
from qoqmed.config.schema import Node
from qoqmed.errors import DataError, Problem, UserError
from qoqmed.evaluating import evaluate_split
from qoqmed.geometry import Geometry
from qoqmed.media import masks
from qoqmed.media.refusals import of_row
from qoqmed.metrics.predictions import read_predictions, write_predictions
from qoqmed.rewards.combine import combine, judge
from qoqmed.types import Box, Case, Mask, Medium, Rollout, Sampling, Target


def evaluate(
    target: str | Path, overrides: Sequence[str] = (), *, split: str | None = None, predictions: Path | None = None
) -> dict[str, Any]:
    """Generate greedily on a split (`test` where the recipe has one, else `valid`), then the metrics.

    predictions: a file to write the predictions to. Returns {"overall", "domains", "datasets"}.
    """
    actor, recipe = load(target, overrides)
    found = splits(recipe)
    chosen = split or ("test" if "test" in found else "valid")
    if chosen not in found:
        mend = f"name data sets in data.{chosen}"
        raise UserError(Problem(f"the recipe has no split {chosen!r}", got=", ".join(found) or "none", mend=mend))
    rollout = recipe.rollout
    sampling = Sampling(1, max_new_tokens=rollout.max_new_tokens)
    config = recipe.evaluation
    result, made = evaluate_split(
        actor, found[chosen], config, sampling, split=chosen, when="eval", global_step=0, seed=recipe.seed
    )
    if predictions is not None:
        write_predictions(predictions, made)
    return dict(result.greedy or result.sampled or {})


def metrics(path: str | Path, metric: str = "clinical") -> dict[str, Any]:
    """Metrics of a predictions file (JSON Lines, see docs/formats.md). Raises DataError with every wrong line."""
    made = registry.make("metrics", Node(metric, where="--metric"))
    made.update(read_predictions(Path(path)))
    return dict(made.compute())


def estimate(path: str | Path, estimator: str, arguments: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Replay an estimator on a rewards file: advantages in input order, and what every domain and cluster got."""
    table = from_rows([row for _, row in _rows(Path(path))])
    made = registry.make("advantages", Node(estimator, dict(arguments or {}), "--estimator"))
    return to_result(table, made.estimate(table))


def score(path: str | Path, rewards: Mapping[str, float] | None = None) -> list[dict[str, Any]]:
    """Rewards of a responses file, with reasons, one result a line of it.

    rewards: weights by plugin name; the paper's accuracy 0.6, iou 0.2, format 0.2 where none are given.
    """
    weights = dict(rewards or {"accuracy": 0.6, "iou": 0.2, "format": 0.2})
    made = {name: registry.make("rewards", Node(name, where=name)) for name in weights}
    task = registry.make("tasks", Node("diagnosis"))
    cases, rollouts, readings = [], [], []
    for where, row in _rows(Path(path)):
        case = _responded(row, where, Path(path).parent)
        frame = AbsoluteFrame([Geometry(row["width"], row["height"], row["width"], row["height"], 1, 1)])
        cases.append(case)
        rollouts.append(Rollout(case.id, 0, (), row["response"]))
        readings.append(task.read(row["response"], case, frame))
    return [
        {
            "id": case.id,
            "score": combine(verdicts, weights),
            "rewards": {name: verdict.value for name, verdict in verdicts.items()},
            "reasons": {name: verdict.reason for name, verdict in verdicts.items()},
        }
        for case, verdicts in zip(cases, judge(made, cases, rollouts, readings), strict=True)
    ]


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file:line, object) of a JSON Lines file."""
    if not path.is_file():
        raise DataError(Problem("the file does not exist", where=str(path)))
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(Problem(f"not JSON: {error}", where=f"{path}:{number}")) from error
        if not isinstance(row, dict):
            raise DataError(Problem("not a JSON object", where=f"{path}:{number}", got=line[:60]))
        yield f"{path}:{number}", row


RESPONSE_FIELDS: Mapping[str, type] = {
    "id": str,
    "response": str,
    "target": list,
    "label_space": list,
    "width": int,
    "height": int,
}


def _responded(row: Mapping[str, Any], where: str, folder: Path) -> Case:
    problems = [
        Problem(f"{name} is missing or of the wrong type", where, repr(row.get(name)), kind.__name__)
        for name, kind in RESPONSE_FIELDS.items()
        if not isinstance(row.get(name), kind)
    ]
    if problems:
        raise DataError(problems)
    width, height = row["width"], row["height"]
    boxes = tuple(Box(x1 / width, y1 / height, x2 / width, y2 / height) for x1, y1, x2, y2 in row.get("boxes") or ())
    mask = None
    if row.get("mask"):
        with of_row(where):
            mask = Mask(array=masks.load(Mask(row["mask"]), folder))
    target = Target(labels=tuple(row["target"]), boxes=boxes or None, mask=mask)
    media = (Medium("image", path=row["id"]),)  # never opened: it says that boxes have a picture to lie on
    return Case(row["id"], "", "", "diagnosis", "", media, tuple(row["label_space"]), target)
