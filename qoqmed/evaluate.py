"""What the commands `eval`, `metrics`, `advantage` and `score` do, as functions: exceptions instead of exits."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from qoqmed import registry
from qoqmed.advantages.exchange import from_rows, require
from qoqmed.boxes import AbsoluteFrame
from qoqmed.build import load, splits
from qoqmed.config.schema import Node
from qoqmed.datasets import fields
from qoqmed.errors import DataError, Problem, UserError, near
from qoqmed.evaluating import evaluate_split
from qoqmed.geometry import Geometry
from qoqmed.media import masks
from qoqmed.media.refusals import of_row
from qoqmed.metrics.predictions import read_predictions, write_predictions
from qoqmed.report.advantage_explained import explain
from qoqmed.report.advantage_picture import draw, picture_file
from qoqmed.rewards.combine import combine, judge
from qoqmed.types import Case, Mask, Medium, Rollout, Sampling, Target


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
        actor.engine.close()
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
    found = list(_rows(Path(path)))
    table = from_rows([row for _, row in found], [place for place, _ in found])
    made = registry.make("advantages", Node(estimator, dict(arguments or {}), "--estimator"))
    require(table, made.needs, str(path))
    result = explain(table, made.estimate(table))
    if picture is not None:
        draw(result, f"{estimator}: {Path(path).name}").savefig(picture)
    return result


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
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            expected = "one JSON object a line, in UTF-8"
            raise DataError(Problem(f"not JSON: {error}", where, repr(line[:60])[1:], expected)) from error
        if not isinstance(row, dict):
            raise DataError(Problem("not a JSON object", where, repr(line[:60])[1:], "one JSON object a line"))
        yield where, row


RESPONSE_FIELDS = ("id", "response", "target", "label_space", "width", "height")


def _responded(row: Mapping[str, Any], where: str, folder: Path) -> Case:
    """A line of the responses format as a case. Raises DataError with file:line."""
    given = {name: value for name, value in row.items() if value is not None}
    missing = [name for name in RESPONSE_FIELDS if name not in given]
    with of_row(where):
        if missing:
            hint = near(missing[0], list(row))
            raise fields.wrong(f"{', '.join(missing)} missing", expected=", ".join(RESPONSE_FIELDS), mend=hint)
        case_id = fields.text(given, "id", required=True)
        fields.text(given, "response")
        space = fields.texts(given, "label_space") or ()
        labels = fields.labels({"labels": list(fields.texts(given, "target") or ())}, space)
        for side in ("width", "height"):
            if not isinstance(given[side], int) or given[side] < 1:
                raise fields.wrong(f"{side!r} is no number of pixels", repr(given[side]), "a whole number from 1")
        sizes = {"width": given["width"], "height": given["height"]}
        boxes = fields.boxes(sizes | {"boxes_px": given["boxes"]}, 0) if "boxes" in given else None
        mask = None
        if "mask" in given:
            inside = masks.load(Mask(fields.text(given, "mask")), folder)
            mask = Mask(array=masks.fit(inside, given["width"], given["height"], given["mask"]))
    media = (Medium("image", path=case_id),)  # never opened: it says that boxes have a picture to lie on
    return Case(case_id, "", "", "diagnosis", "", media, space, Target(labels=labels, boxes=boxes, mask=mask))
