"""What a recipe says of its mixtures: weights, caps and epochs of data sets, the parts of domains."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from qoqmed.config.schema import Node, Recipe, StageData
from qoqmed.errors import Problem, near
from qoqmed.registry import fits

BOUNDS = {"cap": (int, "a whole number of cases above 0, or null"), "epochs": (float, "a number above 0, or null")}


def sources(recipe: Recipe) -> Iterator[Problem]:
    """Of the data sets, one by one."""
    data = recipe.data
    measured = [*data.valid, *data.test]
    training = [*data.train, *(node for stage in recipe.stages for node in stage.data.train or ())]
    for node in (*training, *measured):
        weight = node.arguments.get("weight", 1.0)
        if not _positive(weight, float):
            yield Problem("not a weight in the mixture", f"{node.where}.weight", repr(weight), "a number above 0")
    for node in training:
        yield from _bounds(node)
    for node in measured:
        for key in BOUNDS.keys() & node.arguments.keys():
            what, mend = "what is measured is measured whole", "evaluation.limit bounds the cases of a split"
            yield Problem(what, f"{node.where}.{key}", repr(node.arguments[key]), f"no {key} outside training", mend)


def parts_of_domains(data: StageData, where: str, known: Sequence[str]) -> Iterator[Problem]:
    """Of a stage. where: its path in the recipe. known: every domain that is installed."""
    drawn = known if isinstance(data.domains, str) else data.domains
    for key, values in (("domain_weights", data.domain_weights), ("domain_caps", data.domain_caps)):
        for name, value in values.items():
            path = f"{where}.{key}.{name}"
            if name not in known:
                yield Problem("no such domain", path, repr(name), f"one of {', '.join(known)}", near(name, known))
            elif name not in drawn:
                what = "this stage draws no case of the domain"
                yield Problem(what, path, repr(name), f"one of {where}.domains: {', '.join(drawn)}", near(name, drawn))
            if not (math.isfinite(value) and value >= 0):
                yield Problem("out of range", path, repr(value), "0 or more")
    if data.balanced and (data.temperature != 1 or data.domain_weights or data.domain_caps):
        what = "balanced makes the domains' parts equal, and they are given otherwise"
        mend = "a large temperature, such as 1000, makes them nearly equal beside weights and caps of domains"
        expected = "false beside temperature, domain_weights and domain_caps"
        yield Problem(what, f"{where}.balanced", "true", expected, mend)


def _bounds(node: Node) -> Iterator[Problem]:
    for key, (kind, expected) in BOUNDS.items():
        value = node.arguments.get(key)
        if value is not None and not _positive(value, kind):
            yield Problem(
                f"not {'a cap' if key == 'cap' else 'a number of epochs'}", f"{node.where}.{key}", repr(value), expected
            )


def _positive(value: Any, kind: type) -> bool:
    return fits(value, kind) and math.isfinite(value) and value > 0
