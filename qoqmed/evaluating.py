"""Generate on a split, read, judge, count: what evaluation in the loop and `qoqmed eval` share."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from qoqmed import registry
from qoqmed.actor import Actor, Admitted, sort_out
from qoqmed.config.schema import EvaluationConfig, Recipe
from qoqmed.contracts import Dataset
from qoqmed.errors import DataError
from qoqmed.feeding import Feeder
from qoqmed.metrics.predictions import prediction_of, write_predictions
from qoqmed.parallel import gather
from qoqmed.report.lookup import lookup
from qoqmed.run import RunFolder
from qoqmed.saving import TrainingState
from qoqmed.types import Evaluation, Group, Prediction, Sampling

if TYPE_CHECKING:
    from lightning.fabric import Fabric


@dataclass(frozen=True)
class Evaluator:
    """The passes of one run. heard: is called after each, when its result is in the state."""

    actor: Actor
    splits: Mapping[str, Sequence[Dataset]]
    sampling: Sampling
    run: RunFolder
    fabric: Fabric
    loggers: Sequence[Any]
    recipe: Recipe
    heard: Callable[[], object]

    def __call__(self, state: TrainingState, when: str, splits: Sequence[str]) -> bool:
        """Metrics of each split that the recipe has; whether `evaluation.best` on `valid` is the best so far."""
        better = False
        for split in splits:
            if split not in self.splits:
                continue
            self.run.beat(f"evaluate {split}", state.global_step)
            result, predictions = evaluate_split(
                self.actor,
                self.splits[split],
                self.recipe.evaluation,
                self.sampling,
                split=split,
                when=when,
                global_step=state.global_step,
                seed=self.recipe.seed,
                skip=self.run.skip,
                rank=self.fabric.global_rank,
                world=self.fabric.world_size,
            )
            state.evaluations.append(result)
            if self.fabric.is_global_zero:
                self.run.record(result)
                write_predictions(self.run.path / f"predictions-{split}.jsonl", predictions)
            for logger in self.loggers:
                kinds = {"greedy": result.greedy, "sampled": result.sampled}
                rows = {f"{split}/{kind}/{k}": v for kind, r in kinds.items() if r for k, v in r["overall"].items()}
                logger.log_metrics(rows, state.global_step)
            self.heard()
            better |= split == "valid" and self._improved(state, result)
        return better

    def _improved(self, state: TrainingState, evaluation: Evaluation) -> bool:
        """Whether `evaluation.best` is the best so far; remembers it. A wrong path is told at the start already."""
        value = lookup(evaluation, self.recipe.evaluation.best, "evaluation.best")
        worse = state.best is not None and value <= state.best
        if state.global_step == 0 or worse or math.isnan(value):
            return False
        state.best = value
        return True


def evaluate_split(
    actor: Actor,
    datasets: Sequence[Dataset],
    config: EvaluationConfig,
    sampling: Sampling,
    *,
    split: str,
    when: str,
    global_step: int,
    seed: int,
    skip: Callable[[DataError], object],
    rank: int = 0,
    world: int = 1,
) -> tuple[Evaluation, list[Prediction]]:
    """One pass, greedy and (where asked for) at temperature 1. The predictions are the greedy ones, of all ranks.

    skip: hears of each case that is left out (`data.on_error: skip`).
    """
    started = time.perf_counter()
    places = _spread([(dataset, index) for dataset in datasets for index in range(len(dataset))], config.limit)
    longest = config.max_new_tokens or sampling.max_new_tokens
    results: dict[str, dict[str, Any] | None] = {"greedy": None, "sampled": None}
    kept: list[Prediction] = []
    count = 0
    for kind, wanted, temperature in (("greedy", config.greedy, 0.0), ("sampled", config.sampled, 1.0)):
        if not wanted:
            continue
        how = Sampling(1, temperature, max_new_tokens=longest)
        batches = list(_batches(places, config.batch, rank, world))
        with Feeder(actor.admit_one, actor.workers, actor.media) as feeder:
            made = (generate(actor, sort_out(items), how, seed, split, skip) for items in feeder.each(batches))
            groups = [_light(group) for batch in made for group in batch]
        everyone = [group for part in gather(groups) for group in part]
        results[kind] = summarise(config, everyone, _predictions(groups))
        predictions = _predictions(everyone)
        kept = kept or predictions
        count = len(everyone)
    seconds = time.perf_counter() - started
    return Evaluation(split, when, global_step, count, results["greedy"], results["sampled"], seconds), kept


def _spread(places: list[tuple[Dataset, int]], limit: int | None) -> list[tuple[Dataset, int]]:
    """At most `limit` of the cases, evenly spaced, so that a file sorted by domain gives of each."""
    if limit is None or limit >= len(places):
        return places
    return [places[i * len(places) // limit] for i in range(limit)]


def _batches(
    places: Sequence[tuple[Dataset, int]], batch: int, rank: int, world: int
) -> Iterator[Sequence[tuple[Dataset, int]]]:
    """This rank's cases; all ranks get the same number of batches, the last one of some may be empty."""
    mine = places[rank::world]
    for start in range(0, -(-len(places) // world), batch):
        yield mine[start : start + batch]


def generate(
    actor: Actor,
    admitted: Admitted,
    sampling: Sampling,
    seed: int,
    split: str,
    skip: Callable[[DataError], object],
) -> list[Group]:
    """One judged rollout a case, in order."""
    if actor.on_error == "stop":
        errors = [error for part in gather(list(admitted.refused)) for error in part]
        if errors:  # of any rank: the others would wait for this one for ever
            raise type(errors[0])([problem for error in errors for problem in error.problems])
    for error in admitted.refused:
        skip(error)
    step = actor.at(admitted, sampling, seed, "evaluation", split)
    rollouts = step.generate(admitted.cases, admitted.prompts)
    together = zip(admitted.cases, admitted.prompts, rollouts, strict=True)
    return step.judge([Group(case, prompt, tuple(own)) for case, prompt, own in together])


def _predictions(groups: Sequence[Group]) -> list[Prediction]:
    """Of the cases that have labels."""
    return [prediction_of(group.case, group.readings[0]) for group in groups if group.case.target.labels]


def summarise(config: EvaluationConfig, groups: Sequence[Group], predictions: Sequence[Prediction]) -> dict[str, Any]:
    """The metrics' results in one mapping, and the mean of every reward, overall and per domain.

    groups: of all ranks. predictions: this rank's, which the metrics add up over ranks themselves.
    """
    out: dict[str, Any] = {"overall": {}, "domains": {}, "datasets": {}}
    for node in config.metrics:
        metric = registry.make("metrics", node)
        metric.update(predictions)
        result = metric.compute()
        out["overall"] |= result["overall"]
        for level in ("domains", "datasets"):
            for name, values in result[level].items():
                out[level].setdefault(name, {}).update(values)
    out["overall"] |= _rewards(groups)
    for domain in dict.fromkeys(group.case.domain for group in groups):
        mine = [group for group in groups if group.case.domain == domain]
        out["domains"].setdefault(domain, {}).update(_rewards(mine))
    return out


def _rewards(groups: Sequence[Group]) -> dict[str, float]:
    """Means over the cases where a reward is applicable: `reward` (combined) and `rewards/<name>`; of the latter
    `rewards/<name>/pseudo_masks` over those that were compared with what no person drew."""
    values: dict[str, list[float]] = {}
    for group in groups:
        if group.rewards[0] is not None:
            values.setdefault("reward", []).append(group.rewards[0])
        for name, verdict in group.verdicts[0].items():
            if verdict.value is not None:
                values.setdefault(f"rewards/{name}", []).append(verdict.value)
                if verdict.source:
                    values.setdefault(f"rewards/{name}/pseudo_masks", []).append(verdict.value)
    return {name: sum(items) / len(items) for name, items in values.items()}


def _light(group: Group) -> Group:
    """Without prompt tensors and media, fit to be sent between ranks."""
    case = replace(group.case, media=(), target=replace(group.case.target, mask=None))
    return replace(group, case=case, prompt=None)  # type: ignore[arg-type]
