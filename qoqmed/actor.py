"""The running policy behind an objective: cases admitted, prompts, gold answers, rollouts, readings, verdicts."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from qoqmed.contracts import Dataset, Reward, Rollouts
from qoqmed.errors import DataError
from qoqmed.media import masks
from qoqmed.media.refusals import of_row
from qoqmed.packing import Prompt
from qoqmed.policy.handle import LivePolicy
from qoqmed.policy.prompting import Prompter
from qoqmed.rewards.combine import combine, judge
from qoqmed.types import Case, Group, Mask, Rollout, Sampling, Verdict


def stable_seed(*parts: object) -> int:
    """A seed in [0, 2^62) from the parts' texts: the same on every machine, rank and resume."""
    digest = hashlib.blake2b("\x1f".join(str(part) for part in parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % 2**62


@dataclass(frozen=True)
class Admitted:
    """Cases that may be used, their prompts, and what was wrong with the others."""

    cases: tuple[Case, ...]
    prompts: tuple[Prompt, ...]
    refused: tuple[DataError, ...]
    kept: tuple[int, ...] = ()  # places, among the drawn, of the cases


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

    def admit(self, drawn: Sequence[tuple[Dataset, int]]) -> Admitted:
        """Build, check and encode the drawn cases. What follows from refused ones is the caller's, by `on_error`."""
        if self.workers:
            with ThreadPoolExecutor(self.workers) as pool:
                results = list(pool.map(self._admit_one, drawn))
        else:
            results = [self._admit_one(item) for item in drawn]
        good = [(place, *item) for place, item in enumerate(results) if not isinstance(item, DataError)]
        bad = tuple(item for item in results if isinstance(item, DataError))
        places, cases, prompts = zip(*good, strict=True) if good else ((), (), ())
        return Admitted(cases, prompts, bad, places)

    def _admit_one(self, item: tuple[Dataset, int]) -> tuple[Case, Prompt] | DataError:
        dataset, index = item
        try:
            case = self._complete(dataset[index])
            return case, self.prompter(case)
        except DataError as error:  # kept as a value: what to do with it is `on_error`'s to say
            return error

    def _complete(self, case: Case) -> Case:
        """The mask decoded, and boxes taken from it where the row has none."""
        target = case.target
        if target.mask is None:
            return case
        with of_row(case.id):
            array = masks.load(target.mask, self.root)
        boxes = target.boxes
        if boxes is None and array.any():
            boxes = masks.boxes_of_mask(array, ", ".join(target.labels or ()), target.mask.medium)
        return replace(case, target=replace(target, mask=Mask(None, array, target.mask.medium), boxes=boxes))

    def at(self, admitted: Admitted, sampling: Sampling, *key: object) -> StepActor:
        """The actor of one step. key: what makes its seeds its own (recipe's seed, stage, step)."""
        prompts = {id(case): prompt for case, prompt in zip(admitted.cases, admitted.prompts, strict=True)}
        return StepActor(self, prompts, sampling, key)


@dataclass(frozen=True)
class StepActor:
    """Contract `qoqmed.contracts.Actor`, for the cases of one step."""

    actor: Actor
    encoded: Mapping[int, Prompt]  # by id() of the admitted case
    sampling: Sampling
    key: tuple[object, ...]
    seen: Counter[str] = field(default_factory=Counter)

    def prompts(self, cases: Sequence[Case]) -> list[Prompt]:
        return [self.encoded[id(case)] for case in cases]

    def gold(self, case: Case, prompt: Prompt) -> Rollout:
        """The target as a response. Raises DataError, naming the row, where the case lacks what its task needs."""
        prompter = self.actor.prompter
        text = prompter.task(case).target(case, prompter.frame(prompt))
        return Rollout(case.id, 0, self.actor.handle.encode_text(text), text, finish_reason="gold")

    def generate(self, cases: Sequence[Case], prompts: Sequence[Prompt]) -> list[list[Rollout]]:
        """A case that comes twice in a step draws from two streams."""
        seeds = []
        for case in cases:
            seeds.append(stable_seed(*self.key, case.id, self.seen[case.id]))
            self.seen[case.id] += 1
        return self.actor.engine.generate(prompts, self.sampling, seeds)

    def read(self, groups: Sequence[Group]) -> list[Group]:
        """Groups with the readings of their rollouts."""
        out = []
        for group in groups:
            task, frame = self.actor.prompter.task(group.case), self.actor.prompter.frame(group.prompt)
            out.append(replace(group, readings=tuple(task.read(r.text, group.case, frame) for r in group.rollouts)))
        return out

    def judge(self, groups: Sequence[Group]) -> list[Group]:
        """Groups with readings, verdicts of every reward and the combined rewards; rewards see one flat batch."""
        read = self.read(groups)
        cases = [group.case for group in read for _ in group.rollouts]
        rollouts = [rollout for group in read for rollout in group.rollouts]
        readings = [reading for group in read for reading in group.readings]
        verdicts = judge(self.actor.rewards, cases, rollouts, readings)
        task_weights = {name: w for name, w in self.actor.weights.items() if self.actor.rewards[name].low >= 0}
        out, at = [], 0
        for group in read:
            mine = tuple(verdicts[at : at + len(group.rollouts)])
            at += len(mine)
            rewards = tuple(combine(verdict, self.actor.weights) for verdict in mine)
            difficulty = tuple(combine(_only(verdict, task_weights), task_weights) for verdict in mine)
            penalised = len(task_weights) < len(self.actor.weights)
            out.append(replace(group, verdicts=mine, rewards=rewards, difficulty=difficulty if penalised else ()))
        return out


def _only(verdicts: Mapping[str, Verdict], names: Mapping[str, float]) -> dict[str, Verdict]:
    return {name: verdict for name, verdict in verdicts.items() if name in names}
