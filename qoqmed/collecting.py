"""Step 3 of the loop: the step's cases, their groups, what a greedy response of each is worth, and further cases where
groups whose rewards are all equal are to be replaced."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from copy import copy
from dataclasses import dataclass, field, replace
from functools import partial

from qoqmed.actor import Actor, Outcome, draws, sort_out
from qoqmed.build import Stage
from qoqmed.errors import DataError, UserError
from qoqmed.feeding import Feeder, drawn
from qoqmed.parallel import gather
from qoqmed.types import Group, Sampling


@dataclass(frozen=True)
class Collected:
    """Of this rank. groups: those to learn from; orders: their places in the step over all ranks. left_out: without a
    difference between their rewards, or more than the step has prompts. judged: all that was sampled, before an
    objective chose from it. refused: rows that were left out. errors: what ended it.
    """

    groups: tuple[Group, ...] = ()
    orders: tuple[int, ...] = ()
    left_out: tuple[Group, ...] = ()
    judged: tuple[Group, ...] = ()
    refused: tuple[DataError, ...] = ()
    errors: tuple[UserError, ...] = ()
    numbers: dict[str, float] = field(default_factory=dict)

    def __add__(self, other: Collected) -> Collected:
        names = [*self.numbers, *(name for name in other.numbers if name not in self.numbers)]
        numbers = {name: self.numbers.get(name, 0.0) + other.numbers.get(name, 0.0) for name in names}
        return Collected(
            self.groups + other.groups,
            self.orders + other.orders,
            self.left_out + other.left_out,
            self.judged + other.judged,
            self.refused + other.refused,
            self.errors + other.errors,
            numbers,
        )

    @property
    def traced(self) -> tuple[Group, ...]:
        """Those to learn from, then those left out."""
        return self.groups + self.left_out


@dataclass(frozen=True)
class Collector:
    """Of one rank, for the steps of one stage. phase: times a part of the step by its name."""

    actor: Actor
    feeder: Feeder[Outcome]
    stage: Stage
    sampling: Sampling
    seed: int
    rank: int
    world: int
    phase: Callable[[str], AbstractContextManager[None]]

    def __call__(self, step: int) -> Collected:
        """A step's groups. A collective."""
        how = self.stage.config.equal_groups
        made = self._round(step, 0)
        if how == "keep" or any(gather(bool(made.errors))):
            return made
        for number in range(1, self.stage.config.rounds if how == "resample" else 1):
            if sum(gather(len(made.groups))) >= self.stage.prompts or any(gather(bool(made.errors))):
                break
            if self.stage.sampler.exhausted:  # on all ranks alike: they draw from one order
                break
            made += self._round(step, number)
        return self._first(made)

    def _round(self, step: int, number: int) -> Collected:
        """One draw of the step's prompts."""
        with self.phase("data"):
            mine = drawn(self.stage, self.stage.sampler, self.rank, self.world)
            admitted = sort_out(self.feeder.take([place for _, place in mine]))
            if self.actor.on_error == "stop" and any(gather(bool(admitted.refused))):
                return Collected(errors=admitted.refused)
            if step + 1 < self.stage.steps and not self.stage.sampler.exhausted:
                then = drawn(self.stage, copy(self.stage.sampler), self.rank, self.world)
                self.feeder.ahead([place for _, place in then])
        orders = [mine[place][0] for place in admitted.kept]
        with self.phase("collect"):
            key = (self.seed, self.stage.config.name, step, *([number] if number else []))
            actor = self.actor.at(admitted, self.sampling, *key, draws=draws(orders, admitted.cases))
            groups, errors = self._attempt(partial(self.stage.objective.collect, admitted.cases, actor))
            if self.stage.needs.greedy and not any(gather(bool(errors))):  # all ranks sample again, or none does
                groups, errors = self._attempt(partial(actor.with_baselines, groups))
            if errors:
                return Collected(refused=admitted.refused, errors=errors)
        places = [number * self.stage.prompts + order for order in orders]
        judged = tuple(actor.judged or groups)
        made = Collected(tuple(groups), tuple(places), (), judged, admitted.refused, (), dict(actor.numbers))
        return made if self.stage.config.equal_groups == "keep" else _differing(made)

    @staticmethod
    def _attempt(work: Callable[[], list[Group]]) -> tuple[list[Group], tuple[UserError, ...]]:
        """Groups, or what went wrong: it is told to the other ranks, which would wait for this one for ever."""
        try:
            return work(), ()
        except UserError as error:
            return [], (error,)

    def _first(self, made: Collected) -> Collected:
        """No more groups than the step has prompts, over all ranks."""
        allowed = set(sorted(order for part in gather(made.orders) for order in part)[: self.stage.prompts])
        kept = [place for place, order in enumerate(made.orders) if order in allowed]
        return replace(
            made,
            groups=tuple(made.groups[place] for place in kept),
            orders=tuple(made.orders[place] for place in kept),
            left_out=(*made.left_out, *(group for place, group in enumerate(made.groups) if place not in kept)),
        )


def _differing(made: Collected) -> Collected:
    """Groups of equal rewards, or of fewer than two, moved to those left out."""
    values = [[reward for reward in group.rewards if reward is not None] for group in made.groups]
    kept = [place for place, own in enumerate(values) if len(own) > 1 and min(own) < max(own)]
    return replace(
        made,
        groups=tuple(made.groups[place] for place in kept),
        orders=tuple(made.orders[place] for place in kept),
        left_out=tuple(group for place, group in enumerate(made.groups) if place not in kept),
    )
