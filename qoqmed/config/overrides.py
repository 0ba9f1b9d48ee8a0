"""`key=value` overrides of a recipe: as if the file said so, before `extends` and interpolation are resolved."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import fields
from typing import Any

from omegaconf import OmegaConf
from yaml import YAMLError

from qoqmed.config.schema import RolloutConfig
from qoqmed.errors import Problem, RecipeError, near

ENGINE = RolloutConfig().name


def parse(text: str) -> tuple[str, Any]:
    """`"optimizer.lr=1e-5"` -> its key and its value, read as YAML. Raises RecipeError naming the text as written."""
    key, equals, value = text.partition("=")
    key = key.strip().replace("[", ".").replace("]", "")
    if not equals or not all(key.split(".")):
        raise RecipeError(Problem("not an override", "", repr(text), "key=value, for example rollout.n=4"))
    try:
        read = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value}"]))
    except YAMLError as error:
        what = f"the value of this override is not YAML: {getattr(error, 'problem', '')}"
        mend = f"to give it as plain text, quote it: '{key}=\"{value}\"'"
        raise RecipeError(Problem(what, f"{key} (override {text})", repr(value), mend=mend)) from error
    assert isinstance(read, dict)
    return key, read["value"]


def apply(raw: dict[str, Any], texts: Sequence[str]) -> tuple[dict[str, Any], dict[str, str], list[Problem]]:
    """The recipe with its overrides; which override set each YAML path; the problems of those that cannot apply."""
    changed = deepcopy(raw)
    written: dict[str, str] = {}
    problems: list[Problem] = []
    for text in sorted(texts, key=lambda text: text.partition("=")[0].strip() != "rollout.name"):
        try:
            key, value = parse(text)
            if key == "rollout.name":  # before the others, which may be of the new engine
                changed["rollout"] = for_engine(changed.get("rollout"), value)
            written |= dict.fromkeys(_place(changed, key.split("."), value, text), text)
        except RecipeError as error:
            problems += error.problems
    return changed, written, problems


def for_engine(rollout: Any, name: Any) -> Any:
    """A recipe's `rollout` for another engine: without the arguments of the one that it had."""
    if not isinstance(rollout, dict) or rollout.get("name", ENGINE) == name:
        return rollout
    own = {field.name for field in fields(RolloutConfig)}
    return {key: value for key, value in rollout.items() if key in own} | {"name": name}


def _place(root: dict[str, Any], keys: Sequence[str], value: Any, text: str) -> list[str]:
    """Set the value at these keys, making sections on the way.

    Gives back its path, with list items by number, and the paths of the keys that were not there before.
    """
    here: Any = root
    path = ""
    new: list[str] = []
    for depth, key in enumerate(keys):
        index = _item(here, key, path, text) if isinstance(here, list) else key
        path = f"{path}.{index}" if path else str(index)
        if isinstance(here, dict) and index not in here:
            new.append(path)
        if depth == len(keys) - 1:
            here[index] = value
            break
        below = here.get(index) if isinstance(here, dict) else here[index]
        if isinstance(below, str):  # a plugin written by its name alone
            below = {"name": below}
        if not isinstance(below, (dict, list)):
            below = {}
        here[index] = below
        here = below
    return [path, *new]


def _item(items: list[Any], key: str, where: str, text: str) -> int:
    """A list item by its number or by its `name`."""
    names = [item.get("name") if isinstance(item, dict) else item for item in items]
    known = [name for name in dict.fromkeys(names) if isinstance(name, str)]
    if key.isdecimal() and int(key) < len(items):
        return int(key)
    if names.count(key) == 1:
        return names.index(key)
    numbers = f"a number from 0 to {len(items) - 1}" if items else "no item: the list is empty"
    expected = numbers + (f", or one of the names {', '.join(known)}" if known else "")
    what = f"{where} has several items of this name" if key in known else f"{where} has no such item"
    raise RecipeError(Problem(what, f"{where}.{key} (override {text})", repr(key), expected, near(key, known)))
