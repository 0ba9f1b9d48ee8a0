"""`qoqmed reward check`: every reward of a recipe on adversarial responses, before a policy finds out what they pay.

Rewards run in processes of their own, under a time limit: one that hangs or crashes is a finding. No model is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from qoqmed import config, registry
from qoqmed.actor import complete
from qoqmed.adversaries import adversaries, flood, guesses
from qoqmed.build import OnDemand, make_reward, routing
from qoqmed.config.deep import BESIDE
from qoqmed.config.schema import Node, Recipe
from qoqmed.contracts import Dataset, Task
from qoqmed.datasets.ablation import leave_out
from qoqmed.errors import DataError, Problem, UserError
from qoqmed.media.cache import MediaCache
from qoqmed.reading import MAX_BOXES
from qoqmed.reward_trial import Response, Trial, Tried, frame_of
from qoqmed.rewards.pool import Pooled
from qoqmed.tasks import form
from qoqmed.types import Case

SEARCHED = 10_000  # rows of a data set in which cases of different domains are looked for
GOLD, GUESS = "the gold answer", "an honest guess"  # to compare with
FLOOD = f"the right answer, {MAX_BOXES} boxes"


@dataclass(frozen=True)
class Checked:
    """cases: their ids. synthetic: they are made up. references: gold answer, guess, the right answer with a flood of
    boxes. tried: the highest score first."""

    cases: tuple[str, ...]
    synthetic: bool
    threshold: float
    references: tuple[Tried, ...]
    tried: tuple[Tried, ...]

    @property
    def high(self) -> tuple[Tried, ...]:
        return tuple(one for one in self.tried if one.score is not None and one.score >= self.threshold)

    @property
    def best(self) -> dict[str, Tried]:
        """By reward: the adversarial response that it pays most for."""
        names = dict.fromkeys(name for one in self.tried for name in one.rewards)
        return {name: max(self.tried, key=lambda one: one.rewards[name] or 0.0) for name in names}

    @property
    def broken(self) -> tuple[Tried, ...]:
        return tuple(one for one in (*self.references, *self.tried) if one.broken)

    @property
    def passed(self) -> bool:
        return not self.high and not self.broken


def check_rewards(
    recipe: str | Path,
    overrides: Sequence[str] = (),
    *,
    count: int = 8,
    threshold: float = 0.7,
    timeout_s: float = 10.0,
    synthetic: bool = False,
) -> Checked:
    """Raises UserError for a recipe without rewards, and for rows that are no cases.

    count: training cases, of as many domains as there are. synthetic: made-up cases instead, which are taken, too,
    where a data file of the recipe is not there. threshold: mean score from which an adversarial response is too good.
    timeout_s: of one response and reward, where the recipe has no limit of its own.
    """
    loaded = config.load(recipe, overrides, deep=True, files=False)
    if not loaded.rewards:
        raise UserError(Problem("the recipe has no rewards", str(recipe), expected="one reward at least"))
    made_up = synthetic or not _there(loaded)
    made = {"size": count, "seed": 1, "balanced": True, **_task(loaded)}
    nodes = [Node("synthetic", made)] if made_up else _nodes(loaded)
    cases = _cases(_datasets(nodes, loaded.data.root), loaded, count)
    weights = {key: reward.weight for key, reward in loaded.rewards.items()}
    limited = {key: replace(one, timeout_s=one.timeout_s or timeout_s) for key, one in loaded.rewards.items()}
    questions = OnDemand("domains", lambda name: registry.make("domains", Node(name)).phrasings[0])
    tasks: Mapping[str, Task] = OnDemand("tasks", lambda name: registry.make("tasks", Node(name), questions=questions))
    rewards = {key: make_reward(key, one) for key, one in limited.items()}
    trial = Trial(rewards, weights, routing(loaded.rewards), tasks)
    try:
        trial("", [(cases[0], "")])  # starts the processes, whose seconds are nobody's
        references = [trial(name, responses) for name, responses in _references(cases, tasks).items() if responses]
        tried = [trial(name, responses) for name, responses in _hostile(cases, tasks).items()]
    finally:
        for reward in rewards.values():
            if isinstance(reward, Pooled):
                reward.close()
    tried.sort(key=lambda one: -float("inf") if one.score is None else one.score, reverse=True)
    return Checked(tuple(case.id for case in cases), made_up, threshold, tuple(references), tuple(tried))


def _references(cases: Sequence[Case], tasks: Mapping[str, Task]) -> dict[str, list[Response]]:
    out: dict[str, list[Response]] = {GOLD: [], GUESS: [], FLOOD: []}
    for case in cases:
        frame = frame_of(case)
        out[FLOOD] += [(case, flood(case, frame))] if case.target.labels and form.pictures(case) else []
        out[GUESS] += [(case, text) for text in guesses(case, frame)]
        try:
            out[GOLD].append((case, tasks[case.task].target(case, frame)))
        except DataError:  # a case that can be judged need not have a gold answer: its mask has no pixel
            continue
    return out


def _hostile(cases: Sequence[Case], tasks: Mapping[str, Task]) -> dict[str, list[Response]]:
    out: dict[str, list[Response]] = {}
    for case in cases:
        for name, text in adversaries(case, tasks[case.task], frame_of(case)).items():
            out.setdefault(name, []).append((case, text))
    return out


def _nodes(recipe: Recipe) -> list[Node]:
    return [*recipe.data.train, *(node for stage in recipe.stages for node in stage.data.train or ())]


def _task(recipe: Recipe) -> dict[str, str]:
    """For made-up cases: the task that all of the recipe's data sets name; none where they differ."""
    named = {node.arguments.get("task") for node in _nodes(recipe)}
    return {"task": task} if len(named) == 1 and isinstance(task := named.pop(), str) else {}


def _there(recipe: Recipe) -> bool:
    paths = [node.arguments["path"] for node in _nodes(recipe) if isinstance(node.arguments.get("path"), str)]
    return all((Path(recipe.data.root) / path).exists() for path in paths)


def _datasets(nodes: Sequence[Node], root: str) -> list[Dataset]:
    out = []
    for node in nodes:
        own = {key: value for key, value in node.arguments.items() if key not in BESIDE["datasets"]}
        out.append(registry.make("datasets", replace(node, arguments=own), root=root))
    return out


def _cases(datasets: Sequence[Dataset], recipe: Recipe, count: int) -> list[Case]:
    """The first of each domain, then the second, and so on."""
    places: dict[str, list[tuple[Dataset, int]]] = {}
    for dataset in datasets:
        for index in range(min(len(dataset), SEARCHED)):
            held = places.setdefault(dataset.domains[index], [])
            held += [(dataset, index)] if len(held) < count else []
    rounds = (held[turn] for turn in range(count) for held in places.values() if turn < len(held))
    kept = None if recipe.data.modalities == "all" else recipe.data.modalities
    media, root = MediaCache(0), Path(recipe.data.root)
    found = [complete(leave_out(dataset[index], kept), root, media) for dataset, index in islice(rounds, count)]
    if not found:
        raise UserError(Problem("the recipe has no training cases", "data.train", mend="--synthetic makes cases up"))
    return found
