"""The actor of a step: random streams that do not depend on the number of processes, gold answers that are plain."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from qoqmed import actor as acting
from qoqmed.actor import Actor, Admitted, draws, stable_seed
from qoqmed.errors import DataError
from qoqmed.geometry import Geometry
from qoqmed.types import Case, Sampling, Target

STEP = ["a", "b", "a", "c", "b", "a", "a"]  # the ids of a step's cases, in the step's order


def case(name: str) -> Case:
    return Case(name, "ct", "d", "t", "", (), ("x",), Target(labels=("x",)))


class Engine:
    def generate(self, prompts: Any, sampling: Sampling, seeds: list[int]) -> list[int]:
        return seeds


def seeds_by_place(world: int, monkeypatch: pytest.MonkeyPatch, calls: int = 1) -> dict[tuple[int, int], int]:
    """(call, place in the step) -> seed, of all ranks together."""
    nothing: Any = None
    shared = Actor(nothing, nothing, Engine(), {}, {}, nothing)  # type: ignore[arg-type]
    monkeypatch.setattr(acting, "gather", lambda mine: [list(enumerate(STEP))])
    out = {}
    for rank in range(world):
        places = range(rank, len(STEP), world)
        cases = [case(STEP[place]) for place in places]
        admitted = Admitted(tuple(cases), (nothing,) * len(cases), ())
        step = shared.at(admitted, Sampling(), 42, "rl", 0, draws=draws(list(places), cases))
        for call in range(calls):
            seeds: Any = step.generate(cases, step.prompts(cases))
            out |= {(call, place): seed for place, seed in zip(places, seeds, strict=True)}
    return out


@pytest.mark.parametrize("world", [2, 3, 7])
def test_streams_do_not_depend_on_the_number_of_processes(world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """`a` comes four times: with two processes three times on rank 0 and once on rank 1, never with one stream."""
    alone, together = (seeds_by_place(number, monkeypatch, calls=2) for number in (1, world))
    assert together == alone and len(set(alone.values())) == 2 * len(STEP)


def test_the_stream_of_a_case_that_comes_once_is_the_first_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The numbers of runs without repeated cases stay what they were."""
    assert seeds_by_place(2, monkeypatch)[0, 3] == stable_seed(42, "rl", 0, "c", 0)


@pytest.mark.parametrize("text", ["Seen <|image_pad|> there.", "<|im_end|>"])
def test_a_gold_answer_holds_no_special_token(text: str) -> None:
    prompter: Any = SimpleNamespace(
        task=lambda case: SimpleNamespace(target=lambda case, frame: text),
        frame=lambda prompt: None,
        special=frozenset({"<|image_pad|>", "<|im_end|>"}),
    )
    nothing: Any = None
    with pytest.raises(DataError, match=r"row-7: an answer holds a special token(.|\n)*<\|im"):
        Actor(nothing, prompter, nothing, {}, {}, nothing).gold(case("row-7"), nothing)


def test_rewards_are_told_the_sizes_of_the_media() -> None:
    geometries = (Geometry(30, 20, 28, 28, 14, 2), None)
    prompt: Any = SimpleNamespace(geometries=geometries)
    made = acting._fitted(case("a"), prompt)
    assert made.attributes == {"media/sizes_px": [[30, 20], None]}
    own = replace(case("a"), attributes={"media/sizes_px": [[300, 200], None]})
    assert acting._fitted(own, prompt) is own
