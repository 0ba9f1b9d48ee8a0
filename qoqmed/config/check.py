"""What a recipe's parts must be to one another, to what is installed, and to the disk. Imports no plugin."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qoqmed.config.deep import check_plugins, minibatch, process_count, prompts_per_step
from qoqmed.config.mixing import parts_of_domains, sources
from qoqmed.config.schema import TRAINABLE, Node, Recipe, StageConfig
from qoqmed.errors import PluginError, Problem, near
from qoqmed.registry import available, find
from qoqmed.types import SPATIAL

_FOLDER_NAME = re.compile(r"[\w.\-]+")  # names that become folders


def check(recipe: Recipe, *, deep: bool = False, files: bool = True) -> list[Problem]:
    """Every problem of a whole recipe. deep: import its plugins and bind their arguments. files: what must exist."""
    problems = [*_plugins(recipe), *_names(recipe), *_model(recipe), *_data(recipe), *_rewards(recipe)]
    for index, stage in enumerate(recipe.stages):
        problems += _stage(recipe, stage, f"stages.{index}")
    if files:
        problems += _files(recipe)
    if deep:
        reported = {problem.where for problem in problems}
        known = [(group, node) for group, node in nodes(recipe) if not {node.where, f"{node.where}.name"} & reported]
        problems += check_plugins(recipe, known)
    return list(dict.fromkeys(problems))


def nodes(recipe: Recipe) -> Iterator[tuple[str, Node]]:
    """Every plugin that a recipe names, with its group."""
    if recipe.model.backbone is not None:
        yield "backbones", Node(recipe.model.backbone, where="model.backbone")
    yield from (("encoders", node) for node in recipe.encoders.values())
    stages = recipe.stages
    datasets = [recipe.data.train, recipe.data.valid, recipe.data.test, *(s.data.train or () for s in stages)]
    yield from (("datasets", node) for part in datasets for node in part)
    yield from (("rewards", reward.node) for reward in recipe.rewards.values())
    yield "rollouts", recipe.rollout.node
    yield from (("metrics", node) for node in recipe.evaluation.metrics)
    yield from (("loggers", node) for node in recipe.loggers)
    yield from (("callbacks", node) for node in recipe.callbacks)
    yield from (("objectives", stage.objective) for stage in stages)
    yield from (("advantages", stage.advantage) for stage in stages if stage.advantage is not None)


def _plugins(recipe: Recipe) -> Iterator[Problem]:
    for group, node in nodes(recipe):
        try:
            by_key = group == "backbones" or node.where.endswith(f".{node.name}")
            find(group, node.name, node.where if by_key else f"{node.where}.name")
        except PluginError as error:
            yield from error.problems


def _names(recipe: Recipe) -> Iterator[Problem]:
    if not recipe.stages:
        yield Problem("a recipe needs at least one stage", "stages", "[]")
    stages = [(f"stages.{i}.name", stage.name) for i, stage in enumerate(recipe.stages)]
    for where, name in [("name", recipe.name), *stages]:
        if not _FOLDER_NAME.fullmatch(name):
            yield Problem("this name becomes a folder", where, repr(name), "letters, digits, '_', '-' and '.' only")
    for name, count in Counter(name for _, name in stages).items():
        if count > 1:
            where = ", ".join(where for where, other in stages if other == name)
            yield Problem(f"{count} stages have the same name", where, repr(name), "a name of its own for each stage")


def _model(recipe: Recipe) -> Iterator[Problem]:
    path, name = recipe.model.path, recipe.model.name
    if (path is None) == (name is None):
        got = "neither" if path is None else f"path: {path}, name: {name}"
        yield Problem("a model is one of `path` and `name`", "model", got, "exactly one, for example {name: tiny}")
    known = _parts(recipe)
    for part in recipe.model.lora.parts if recipe.model.lora else ():
        if part not in known:
            what = "no such part of the policy"
            yield Problem(what, "model.lora.parts", repr(part), ", ".join(known), near(part, known))
    devices = recipe.trainer.devices
    if devices != "auto" and (isinstance(devices, str) or devices < 1):
        yield Problem("not a number of devices", "trainer.devices", repr(devices), "auto, or a number from 1")


def _data(recipe: Recipe) -> Iterator[Problem]:
    data = recipe.data
    if data.min_pixels > data.max_pixels:
        yield Problem("above data.max_pixels", "data.min_pixels", str(data.min_pixels), f"at most {data.max_pixels}")
    known = sorted({*SPATIAL, *_encoders(recipe)})
    for modality in () if isinstance(data.modalities, str) else data.modalities:
        if modality not in known:
            expected = f"all, or a list of {', '.join(known)}"
            mend = near(modality, known) or f"give it an encoder: encoders.{modality}"
            yield Problem(
                "no part of this recipe reads this modality", "data.modalities", repr(modality), expected, mend
            )
    yield from sources(recipe)
    if recipe.evaluation.every and not data.valid:
        yield Problem("there is nothing to evaluate", "data.valid", "[]", "a data set, or evaluation.every=0")


def _parts(recipe: Recipe) -> list[str]:
    """What a stage may train."""
    names = (*_encoders(recipe), "*")
    return [*TRAINABLE, *(f"{part}.{name}" for part in ("encoders", "projectors") for name in names)]


def _encoders(recipe: Recipe) -> list[str]:
    """Modalities of the recipe's encoders, and of those that the model in its folder has."""
    held = {} if recipe.model.path is None else _model_config(recipe.model.path) or {}
    return sorted({*recipe.encoders, *(held.get("encoders") or {})})


def _model_config(path: str) -> dict[str, Any] | None:
    """The folder's config.json; None where there is none that can be read."""
    file = Path(path) / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # boundary: another program's file; `_model_folder` tells of it
        return None
    return config if isinstance(config, dict) else None


def _rewards(recipe: Recipe) -> Iterator[Problem]:
    rewards = recipe.rewards
    if rewards and not any(
        weight for reward in rewards.values() for weight in (reward.weight, *reward.domains.values())
    ):
        yield Problem("every reward has the weight 0", "rewards", expected="one weight above 0 at least")
        return
    known = [info.name for info in available("domains")]
    named = [
        (f"rewards.{key}.domains.{domain}", domain, weight)
        for key, r in rewards.items()
        for domain, weight in r.domains.items()
    ]
    for where, domain, weight in named:
        if domain not in known:
            yield Problem("no such domain", where, repr(domain), f"one of {', '.join(known)}", near(domain, known))
        elif not (math.isfinite(weight) and weight >= 0):
            yield Problem("out of range", where, repr(weight), "a weight of at least 0")
    for domain in dict.fromkeys(domain for _, domain, _ in named):
        if not any(reward.domains.get(domain, reward.weight) for reward in rewards.values()):
            where = next(where for where, other, _ in named if other == domain)
            yield Problem(f"no reward counts in the domain {domain}", where, "0", "one weight above 0 in every domain")


def _stage(recipe: Recipe, stage: StageConfig, where: str) -> Iterator[Problem]:
    if not (recipe.data.train if stage.data.train is None else stage.data.train):
        yield Problem("this stage has no training data", f"{where}.data.train", "[]", "data.train, or the stage's own")
    domains = [info.name for info in available("domains")]
    for domain in () if isinstance(stage.data.domains, str) else stage.data.domains:
        if domain not in domains:
            expected = f"all, or a list of {', '.join(domains)}"
            yield Problem("no such domain", f"{where}.data.domains", repr(domain), expected, near(domain, domains))
    yield from parts_of_domains(stage.data, f"{where}.data", domains)
    encoders = _encoders(recipe)
    parts = _parts(recipe)
    for part in stage.train:
        if part not in parts:
            yield Problem(
                "no such part of the policy", f"{where}.train", repr(part), ", ".join(parts), near(part, parts)
            )
    added = all(part.partition(".")[0] in ("encoders", "projectors") for part in stage.train)
    if not stage.train or (added and not encoders):
        expected = f"some of {', '.join(parts)}" + ("" if encoders else "; the recipe has no encoders")
        yield Problem("nothing is trained", f"{where}.train", str(list(stage.train)), expected)
    ranks, prompts = process_count(recipe), prompts_per_step(recipe, stage)
    if prompts % ranks:
        key = "rollout.prompts" if stage.prompts is None else f"{where}.prompts"
        yield Problem(f"does not divide among {ranks} processes", key, str(prompts), f"a multiple of {ranks}")
    yield from minibatch(recipe, stage, stage.objective.arguments.get("minibatch"))


def _files(recipe: Recipe) -> Iterator[Problem]:
    if recipe.model.path is not None:
        yield from _model_folder(recipe.model.path)
    root = Path(recipe.data.root)
    if not root.is_dir():
        yield Problem("no such folder", "data.root", str(recipe.data.root), f"a folder; looked for {root.absolute()}")
        return
    for group, node in nodes(recipe):
        path = node.arguments.get("path")
        if group == "datasets" and isinstance(path, str) and not (root / path).exists():
            others = [str(other.relative_to(root)) for other in root.glob("*") if other.is_file()]
            where = f"{node.where}.path"
            yield Problem(
                "no such file",
                where,
                path,
                f"a file under data.root; looked for {(root / path).absolute()}",
                near(path, others),
            )


def _model_folder(path: str) -> Iterator[Problem]:
    folder = Path(path)
    expected = "a local folder of a transformers checkpoint"
    if not folder.is_dir():
        mend = "nothing is downloaded here: put the checkpoint's folder there, or set model.path to where it is"
        yield Problem("no such folder", "model.path", path, f"{expected}; looked for {folder.absolute()}", mend)
    elif not (folder / "config.json").is_file():
        yield Problem("this folder holds no model", "model.path", path, f"{expected}, with its config.json")
    elif _model_config(path) is None:
        yield Problem("its config.json cannot be read", "model.path", path, expected)
