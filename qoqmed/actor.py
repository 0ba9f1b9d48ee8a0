"""The running policy behind an objective: cases admitted, prompts, gold answers, rollouts, readings, verdicts."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from qoqmed.contracts import Dataset, Reward, Rollouts
from qoqmed.datasets.ablation import leave_out
from qoqmed.errors import DataError, Problem
from qoqmed.geometry import SIZES
from qoqmed.media import masks
from qoqmed.media.cache import MediaCache
from qoqmed.media.refusals import of_row
from qoqmed.packing import Prompt
from qoqmed.parallel import gather
from qoqmed.policy.handle import LivePolicy
from qoqmed.policy.prompting import Prompter
from qoqmed.rewards.combine import combine, judge
from qoqmed.rewards.pool import Pooled
from qoqmed.rewards.routing import Routing
from qoqmed.types import BOX_SOURCE, Case, Group, Mask, Needs, Rollout, Sampling, Verdict

PAIR = ("dpo/chosen", "dpo/rejected")  # attributes of a case that brings its pair


def stable_seed(*parts: object) -> int:
    """A seed in [0, 2^62) from the parts' texts: the same on every machine, rank and resume."""
    digest = hashlib.blake2b("\x1f".join(str(part) for part in parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % 2**62


@dataclass(frozen=True)
class Draws:
    """One case id in a step. mine: which of its draws over all ranks, from 0, are this rank's; total: how many."""

    mine: tuple[int, ...]
    total: int

    def stream(self, used: int) -> int:
        """The number of the stream that comes after `used` others of this case on this rank: no rank has it, too."""
        rounds, place = divmod(used, len(self.mine))
        return rounds * self.total + self.mine[place]


ONCE = Draws((0,), 1)


def draws(orders: Sequence[int], cases: Sequence[Case]) -> dict[str, Draws]:
    """By id of this rank's cases; orders: their places in the step. A collective."""
    mine = list(zip(orders, (case.id for case in cases), strict=True))
    places: dict[str, list[int]] = {}
    for order, name in sorted(pair for part in gather(mine) for pair in part):
        places.setdefault(name, []).append(order)
    held = set(orders)
    return {
        name: Draws(tuple(i for i, order in enumerate(places[name]) if order in held), len(places[name]))
        for _, name in mine
    }


@dataclass(frozen=True)
class Admitted:
    """Cases that may be used, their prompts, and what was wrong with the others."""

    cases: tuple[Case, ...]
    prompts: tuple[Prompt, ...]
    refused: tuple[DataError, ...]
    kept: tuple[int, ...] = ()  # places, among the drawn, of the cases


Outcome = tuple[Case, Prompt] | DataError  # of one drawn case


def complete(case: Case, root: Path, media: MediaCache) -> Case:
    """The mask decoded, and boxes taken from it where the row has none."""
    target = case.target
    if target.mask is None:
        return case
    with of_row(case.id):
        shown = dict(enumerate(case.media)).get(target.mask.medium)
        array = media.mask(target.mask, root, shown)
    boxes = target.boxes
    if boxes is None and array.any():
        boxes = masks.boxes_of_mask(array, ", ".join(target.labels or ()), target.mask.medium)
    target = replace(target, mask=Mask(None, array, target.mask.medium), boxes=boxes)
    if boxes is case.target.boxes or not case.mask_source:
        return replace(case, target=target)
    return replace(case, target=target, attributes={**case.attributes, BOX_SOURCE: case.mask_source})


def _fitted(case: Case, prompt: Prompt) -> Case:
    """The sizes of its media, and the mask at that of its picture. Raises MediaError where their shapes differ."""
    if SIZES not in case.attributes:
        sizes = [None if one is None else [one.width, one.height] for one in prompt.geometries]
        case = replace(case, attributes={**case.attributes, SIZES: sizes})
    mask = case.target.mask
    geometry = None if mask is None else dict(enumerate(prompt.geometries)).get(mask.medium)
    if mask is None or mask.array is None or geometry is None:
        return case
    with of_row(case.id):
        array = masks.fit(mask.array, geometry.width, geometry.height)
    return replace(case, target=replace(case.target, mask=replace(mask, array=array)))


def sort_out(outcomes: Sequence[Outcome]) -> Admitted:
    """Those that may be used, and the others."""
    good = [(place, *item) for place, item in enumerate(outcomes) if not isinstance(item, DataError)]
    bad = tuple(item for item in outcomes if isinstance(item, DataError))
    places, cases, prompts = zip(*good, strict=True) if good else ((), (), ())
    return Admitted(cases, prompts, bad, places)


@dataclass(frozen=True)
class Actor:
    """Shared by all steps; `at` gives the one that an objective sees in a step."""

    handle: LivePolicy
    prompter: Prompter
    engine: Rollouts
    rewards: Mapping[str, Reward]
    weights: Mapping[str, float]
    root: Path
    on_error: str = "stop"
    workers: int = 0
    media: MediaCache = field(default_factory=MediaCache)
    modalities: Collection[str] | None = None  # that stay; None: all
    routing: Routing = Routing()  # noqa: RUF009  frozen

    def close(self) -> None:
        """End the engine, and the processes of slow rewards."""
        self.engine.close()
        for reward in self.rewards.values():
            if isinstance(reward, Pooled):
                reward.close()

    def admit(self, drawn: Sequence[tuple[Dataset, int]], needs: Needs = Needs()) -> Admitted:  # noqa: B008
        """Build, check and encode the drawn cases. What follows from refused ones is the caller's, by `on_error`.

        needs: with `gold` or `pair`, refuse a case that has none, too.
        """
        return sort_out([self.admit_one(item, needs) for item in drawn])

    def admit_one(self, item: tuple[Dataset, int], needs: Needs = Needs()) -> Outcome:  # noqa: B008
        """Changes nothing here: loader threads call it."""
        dataset, index = item
        try:
            case = complete(leave_out(dataset[index], self.modalities), self.root, self.media)
            prompt = self.prompter(case)
            case = _fitted(case, prompt)
            if needs.gold:
                self.gold(case, prompt)
            if needs.pair:
                self.pair(case)
            return case, prompt
        except DataError as error:  # kept as a value: what to do with it is `on_error`'s to say
            return error

    def gold(self, case: Case, prompt: Prompt) -> Rollout:
        """The target as a response. Raises DataError, naming the row, where the case lacks what its task needs."""
        return self.response(case, self.prompter.task(case).target(case, self.prompter.frame(prompt)))

    def response(self, case: Case, text: str) -> Rollout:
        """A text as a response that nobody sampled. Raises DataError, naming the row, where it holds special tokens."""
        found = sorted(token for token in self.prompter.special if token in text)
        if found:
            what, mend = "an answer holds a special token of the model", "take it out of the text or the labels"
            raise DataError(Problem(what, where=case.id, got=", ".join(found), mend=mend))
        return Rollout(case.id, 0, self.handle.encode_text(text), text, finish_reason="gold")

    def pair(self, case: Case) -> tuple[Rollout, Rollout]:
        """The row's own responses. Raises DataError, naming the row, for none and for special tokens in them."""
        texts = [case.attributes.get(name) for name in PAIR]
        if None in texts:
            mend = "give the row the fields 'chosen' and 'rejected', or use pairs: sample"
            raise DataError(Problem("the case brings no pair of responses", where=case.id, mend=mend))
        chosen, rejected = (self.response(case, str(text)) for text in texts)
        return chosen, replace(rejected, index=1)

    def at(
        self, admitted: Admitted, sampling: Sampling, *key: object, draws: Mapping[str, Draws] | None = None
    ) -> StepActor:
        """The actor of one step. key: what makes its seeds its own (recipe's seed, stage, step). draws: of cases that
        other ranks may have drawn, too."""
        prompts = {id(case): prompt for case, prompt in zip(admitted.cases, admitted.prompts, strict=True)}
        return StepActor(self, prompts, sampling, key, draws or {})


@dataclass(frozen=True)
class StepActor:
    """Contract `qoqmed.contracts.Actor`, for the cases of one step."""

    actor: Actor
    encoded: Mapping[int, Prompt]  # by id() of the admitted case
    sampling: Sampling
    key: tuple[object, ...]
    draws: Mapping[str, Draws] = field(default_factory=dict)
    seen: Counter[str] = field(default_factory=Counter)
    numbers: dict[str, float] = field(default_factory=lambda: {"time/reward": 0.0, "rollouts/sampled": 0.0})
    judged: list[Group] = field(default_factory=list)

    def prompts(self, cases: Sequence[Case]) -> list[Prompt]:
        return [self.encoded[id(case)] for case in cases]

    def gold(self, case: Case, prompt: Prompt) -> Rollout:
        return self.actor.gold(case, prompt)

    def pair(self, case: Case) -> tuple[Rollout, Rollout]:
        return self.actor.pair(case)

    def generate(self, cases: Sequence[Case], prompts: Sequence[Prompt]) -> list[list[Rollout]]:
        """A case that comes twice in a step draws from two streams, also where it comes on two ranks."""
        seeds = []
        for case in cases:
            stream = self.draws.get(case.id, ONCE).stream(self.seen[case.id])
            seeds.append(stable_seed(*self.key, case.id, stream))
            self.seen[case.id] += 1
        self.numbers["rollouts/sampled"] += self.sampling.n * len(prompts)
        return self.actor.engine.generate(prompts, self.sampling, seeds)

    def with_baselines(self, groups: Sequence[Group]) -> list[Group]:
        """Groups with the reward of a greedy response each, which is not trained on (`Needs.greedy`)."""
        greedy = replace(self.sampling, n=1, temperature=0.0)
        self.numbers["rollouts/sampled"] += len(groups)
        rollouts = self.actor.engine.generate([group.prompt for group in groups], greedy, [0] * len(groups))
        pairs = zip(groups, rollouts, strict=True)
        judged = self._judge([Group(group.case, group.prompt, tuple(own)) for group, own in pairs])
        return [replace(group, baseline=one.rewards[0]) for group, one in zip(groups, judged, strict=True)]

    def read(self, groups: Sequence[Group]) -> list[Group]:
        """Groups with the readings of their rollouts."""
        out = []
        for group in groups:
            task, frame = self.actor.prompter.task(group.case), self.actor.prompter.frame(group.prompt)
            out.append(replace(group, readings=tuple(task.read(r.text, group.case, frame) for r in group.rollouts)))
        return out

    def judge(self, groups: Sequence[Group]) -> list[Group]:
        """Groups with readings, verdicts of every reward and the combined rewards; rewards see one flat batch."""
        judged = self._judge(groups)
        self.judged.extend(judged)
        return judged

    def _judge(self, groups: Sequence[Group]) -> list[Group]:
        started = time.perf_counter()
        read = self.read(groups)
        cases = [group.case for group in read for _ in group.rollouts]
        rollouts = [rollout for group in read for rollout in group.rollouts]
        readings = [reading for group in read for reading in group.readings]
        routing = self.actor.routing
        verdicts = judge(self.actor.rewards, cases, rollouts, readings, routing)
        tasks = [name for name in self.actor.weights if self.actor.rewards[name].low >= 0]
        out, at = [], 0
        for group in read:
            mine = tuple(verdicts[at : at + len(group.rollouts)])
            at += len(mine)
            weights = routing.weights(self.actor.weights, group.case.domain)
            rewards = tuple(combine(verdict, weights, routing.shares) for verdict in mine)
            difficulty = tuple(combine(_only(verdict, tasks), weights, routing.shares) for verdict in mine)
            penalised = len(tasks) < len(weights)
            out.append(replace(group, verdicts=mine, rewards=rewards, difficulty=difficulty if penalised else ()))
        self.numbers["time/reward"] += time.perf_counter() - started
        return out


def _only(verdicts: Mapping[str, Verdict], names: Collection[str]) -> dict[str, Verdict]:
    return {name: verdict for name, verdict in verdicts.items() if name in names}
