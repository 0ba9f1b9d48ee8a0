"""Rewards of saved responses: the responses format (docs/formats.md), read, judged and combined as in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qoqmed import config, registry
from qoqmed.boxes import AbsoluteFrame
from qoqmed.build import make_reward, routing
from qoqmed.config.schema import Node, RewardConfig
from qoqmed.contracts import Reward, Task
from qoqmed.datasets import fields
from qoqmed.datasets.attributes import check_attributes
from qoqmed.errors import DataError, Problem, UserError, near
from qoqmed.geometry import SIZES, Geometry
from qoqmed.json_lines import Placed, rows
from qoqmed.media import masks
from qoqmed.media.refusals import of_row
from qoqmed.rewards.combine import combine, judge
from qoqmed.rewards.pool import Pooled
from qoqmed.types import MASK_SOURCE, Case, Mask, Medium, Reading, Rollout, Target, Verdict

PAPER = {"accuracy": 0.6, "iou": 0.2, "format": 0.2}  # QoQ-Med's weights
UNITS = {"width": "pixels", "height": "pixels", "tokens": "tokens"}
Response = tuple[Case, Rollout, Reading, tuple[int, int]]  # with the width and height of its picture
NEEDED = ("id", "response", "target", "label_space", "width", "height")


@dataclass(frozen=True)
class Scored:
    """One response. size_px: width and height that its boxes are read in. score: None without an applicable reward,
    and where one that counts is invalid."""

    case: Case
    rollout: Rollout
    reading: Reading
    size_px: tuple[int, int]
    verdicts: Mapping[str, Verdict]
    weights: Mapping[str, float]
    score: float | None


def chosen(
    rewards: Mapping[str, float | None] | None, recipe: str | Path | None, overrides: Sequence[str] = ()
) -> Mapping[str, RewardConfig]:
    """The rewards to judge with: a recipe's, or some of them; without one plugins by name (weight 1), or the paper's.

    rewards: weights by name, None for the recipe's own. Raises UserError for a recipe without these rewards.
    """
    if recipe is None:
        named = PAPER if rewards is None else rewards
        return {name: _weighted(RewardConfig(name, where=name), weight) for name, weight in named.items()}
    known = config.load(recipe, overrides, files=False).rewards
    names = list(known) if rewards is None else list(rewards)
    missing = [name for name in names if name not in known]
    if missing or not names:
        what = f"the recipe has no reward {missing[0]!r}" if missing else "the recipe has no rewards"
        hint = near(missing[0], list(known)) if missing else ""
        raise UserError(Problem(what, str(recipe), expected=", ".join(known) or "rewards in the recipe", mend=hint))
    return {name: _weighted(known[name], (rewards or {}).get(name)) for name in names}


def named(texts: Sequence[str]) -> dict[str, float | None]:
    """NAME or NAME=WEIGHT, each -> weights by name. Raises UserError."""
    out: dict[str, float | None] = {}
    for text in texts:
        name, sign, weight = text.partition("=")
        value = config.parse(f"{name}={weight}")[1] if sign else None
        if sign and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise UserError(Problem("no weight of a reward", f"--reward {text}", repr(value), "NAME or NAME=WEIGHT"))
        out[name] = value
    return out


def _weighted(reward: RewardConfig, weight: float | None) -> RewardConfig:
    if weight is None:
        return reward
    if not 0 <= weight < float("inf"):
        raise UserError(Problem("no weight of a reward", reward.name, repr(weight), "a number of at least 0"))
    return replace(reward, weight=float(weight))


def score_file(path: Path, rewards: Mapping[str, RewardConfig], only: str | None = None) -> list[Scored]:
    """Every response of a file, in its order. only: those of this id, the others are not read. Raises DataError with
    every wrong line."""
    found = rows(path)
    wanted = [(where, row) for where, row in found if only is None or row.get("id") == only]
    if not found:
        raise DataError(Problem("no responses", str(path), expected="one JSON object a line"))
    if not wanted:
        ids = [str(row.get("id")) for _, row in found]
        raise DataError(Problem("no response has this id", str(path), repr(only), mend=near(str(only), ids)))
    responses = _read(wanted, path.parent)
    made = {key: make_reward(key, reward) for key, reward in rewards.items()}
    try:
        return _scored(responses, made, rewards)
    finally:
        for reward in made.values():
            if isinstance(reward, Pooled):
                reward.close()


def _read(placed: Sequence[Placed], folder: Path) -> list[Response]:
    """Raises UserError with every wrong line."""
    tasks: dict[str, Task] = {}
    responses, problems = [], list[Problem]()
    for where, row in placed:
        try:
            case, rollout, size_px = _response(row, where, folder)
            if case.task not in tasks:
                tasks[case.task] = registry.make("tasks", Node(case.task, where=f"{where} task"))
        except UserError as error:
            problems += error.problems
            continue
        frame = AbsoluteFrame([Geometry(*size_px, *size_px, 1, 1)])
        responses.append((case, rollout, tasks[case.task].read(rollout.text, case, frame), size_px))
    if problems:
        raise DataError(problems)
    return responses


def _scored(
    responses: Sequence[Response],
    made: Mapping[str, Reward],
    rewards: Mapping[str, RewardConfig],
) -> list[Scored]:
    routes = routing(rewards)
    weights = {key: reward.weight for key, reward in rewards.items()}
    cases, rollouts, readings, _ = zip(*responses, strict=True)
    verdicts = judge(made, cases, rollouts, readings, routes)
    out = []
    for (case, rollout, reading, size_px), own in zip(responses, verdicts, strict=True):
        here = routes.weights(weights, case.domain)
        out.append(Scored(case, rollout, reading, size_px, own, here, combine(own, here, routes.shares)))
    return out


def _response(row: Mapping[str, Any], where: str, folder: Path) -> tuple[Case, Rollout, tuple[int, int]]:
    """A line of the responses format. Raises DataError with file:line."""
    given = {name: value for name, value in row.items() if value is not None}
    missing = [name for name in NEEDED if name not in given]
    with of_row(where):
        if missing:
            hint = near(missing[0], list(row))
            raise fields.wrong(f"{', '.join(missing)} missing", expected=", ".join(NEEDED), mend=hint)
        case_id = fields.text(given, "id", required=True)
        response, domain, reference = (fields.text(given, name) for name in ("response", "domain", "text"))
        task = fields.text(given, "task") or "diagnosis"
        space = fields.space(given) or ()
        labels = fields.labels({"labels": list(fields.texts(given, "target") or ())}, space)
        width, height = _whole(given, "width"), _whole(given, "height")
        boxes, mask = None, None
        if "boxes" in given:
            boxes = fields.boxes({"width": width, "height": height, "boxes_px": given["boxes"]}, 0)
        if "mask" in given:
            inside = masks.load(Mask(fields.text(given, "mask")), folder)
            mask = Mask(array=masks.fit(inside, width, height, given["mask"]))
        tokens = _whole(given, "tokens") if "tokens" in given else 0
        attributes = given.get("attributes", {})
        if not isinstance(attributes, dict):
            raise fields.wrong("'attributes' is no object", repr(attributes))
        drawn_by = fields.text(given, "mask_source").strip()
        attributes = {SIZES: [[width, height]]} | ({MASK_SOURCE: drawn_by} if drawn_by and mask else {}) | attributes
    media = (Medium("image", path=case_id),)  # never opened: it says that boxes have a picture to lie on
    target = Target(labels=labels, text=reference or None, boxes=boxes, mask=mask)
    case = Case(case_id, domain, "", task, "", media, space, target, attributes=attributes)
    with of_row(where):
        check_attributes(case)
    return case, Rollout(case_id, 0, (0,) * tokens, response), (width, height)


def _whole(given: Mapping[str, Any], name: str) -> int:
    value = given[name]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise fields.wrong(f"{name!r} is no number of {UNITS[name]}", repr(value), "a whole number from 1")
    return value
