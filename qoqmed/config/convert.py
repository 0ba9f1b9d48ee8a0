"""Plain YAML content to the dataclasses of `schema`, by their fields and rules. Every problem is collected."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from functools import cache
from os.path import expanduser
from typing import Any, get_args, get_type_hints

from qoqmed.config.schema import Node, Recipe, RewardConfig
from qoqmed.errors import Problem, near
from qoqmed.registry import fits, spell

_BAD = object()  # stands for a value with a problem: its field keeps its default, or gets the empty value of its type
_OWN = ("arguments", "where")  # fields that are filled here, not keys of the YAML


def convert(raw: Mapping[str, Any]) -> tuple[Recipe, list[Problem]]:
    """The recipe, and what was wrong: there it has the default or an empty value, so that the rest can be checked."""
    problems: list[Problem] = []
    recipe: Recipe = _section(Recipe, raw, "", problems)
    return recipe, problems


def expand_home(recipe: Recipe) -> Recipe:
    """`~` at the head of the paths that the recipe itself knows, written out once for all who open them.

    They are model.path, data.root, trainer.out, the data sets' `path` and the encoders' `weights`.
    """
    data, model, trainer = recipe.data, recipe.model, recipe.trainer
    train, valid, test = (_at_home(part, "path") for part in (data.train, data.valid, data.test))
    own = [(stage, stage.data.train) for stage in recipe.stages]
    return replace(
        recipe,
        model=model if model.path is None else replace(model, path=_home(model.path)),
        data=replace(data, root=_home(data.root), train=train, valid=valid, test=test),
        trainer=replace(trainer, out=_home(trainer.out)),
        encoders={name: _at_home((node,), "weights")[0] for name, node in recipe.encoders.items()},
        stages=tuple(
            stage if mine is None else replace(stage, data=replace(stage.data, train=_at_home(mine, "path")))
            for stage, mine in own
        ),
    )


def _home(path: str) -> str:
    return expanduser(path)  # noqa: PTH111  pathlib's raises for an unknown user


def _at_home(nodes: tuple[Node, ...], key: str) -> tuple[Node, ...]:
    """Plugins, with one argument expanded where it is a text."""
    return tuple(
        replace(node, arguments={**node.arguments, key: _home(node.arguments[key])})
        if isinstance(node.arguments.get(key), str)
        else node
        for node in nodes
    )


def _section(kind: Any, raw: Any, where: str, problems: list[Problem]) -> Any:
    """One dataclass. One that has `arguments` is a plugin: it may be its name alone, and takes any other keys."""
    known = {field.name: field for field in fields(kind)}
    takes_any = "arguments" in known
    if takes_any and isinstance(raw, str):
        raw = {"name": raw}
    if not isinstance(raw, Mapping):
        what = "a plugin is its name, or a mapping with its name and arguments" if takes_any else "a mapping of keys"
        problems.append(Problem("wrong type", where, _short(raw), what))
        return _section(kind, {}, where, [])
    keys = [name for name in known if name not in _OWN or not takes_any]
    values: dict[str, Any] = {}
    for name in keys:
        field, path, annotation = known[name], _join(where, name), _hints(kind)[name]
        needed = field.default is MISSING and field.default_factory is MISSING
        value = _BAD
        if name in raw:
            value = _value(annotation, raw[name], path, field.metadata, problems)
        elif needed:
            expected = "the name of a plugin" if takes_any else _wanted(annotation, field.metadata)
            problems.append(Problem("this key is missing", path, expected=expected))
        if value is not _BAD:
            values[name] = value
        elif needed:
            values[name] = Node("", where=path) if annotation is Node else "" if annotation is str else ()
    others = {str(key): value for key, value in raw.items() if key not in keys}
    if takes_any:
        values["arguments"] = others
        values |= {"where": where} if "where" in known else {}
    else:
        problems += [_unknown(kind, key, value, where, keys) for key, value in others.items()]
    return kind(**values)


def _value(annotation: Any, raw: Any, where: str, rules: Mapping[str, Any], problems: list[Problem]) -> Any:
    """One field's value: a section, a list or mapping of sections, or a plain value under its rules."""
    kind, optional = _required(annotation)
    if raw is None and optional:
        return None
    inner: tuple[Any, ...] = get_args(kind)
    if is_dataclass(kind):
        return _section(kind, {} if raw is None else raw, where, problems)
    if inner and is_dataclass(inner[-1]):  # Mapping[str, X]
        return _mapping(inner[-1], raw, where, problems)
    if inner and is_dataclass(inner[0]):  # tuple[X, ...]
        return _list(inner[0], raw, where, problems)
    problem = _wrong(annotation, raw, where, rules)
    if problem is not None:
        problems.append(problem)
        return _BAD
    if kind is float:
        return float(raw)
    if isinstance(raw, str) and inner == (str, tuple[str, ...]):  # "all", a list, or a list's only item
        return raw if raw == "all" else (raw,)
    return tuple(raw) if isinstance(raw, list) else raw


def _mapping(kind: Any, raw: Any, where: str, problems: list[Problem]) -> Any:
    if raw is None:
        return {}
    if not isinstance(raw, Mapping):
        problems.append(Problem("wrong type", where, _short(raw), "a mapping of names to plugins"))
        return _BAD
    made = {}
    for key, item in raw.items():
        if kind is RewardConfig:  # its key is its name, a bare number its weight
            item = {"weight": item} if isinstance(item, (int, float)) else item
            item = {"name": key, **item} if isinstance(item, Mapping) else {"name": key} if item is None else item
        made[str(key)] = _section(kind, item, _join(where, key), problems)
    return made


def _list(kind: Any, raw: Any, where: str, problems: list[Problem]) -> Any:
    if not isinstance(raw, list):
        expected = "a list of plugins" if kind is Node else "a list of mappings"
        mend = f"write [{raw}]" if isinstance(raw, str) and kind is Node else ""
        problems.append(Problem("wrong type", where, _short(raw), expected, mend))
        return _BAD
    return tuple(_section(kind, item, f"{where}.{index}", problems) for index, item in enumerate(raw))


def _wrong(annotation: Any, raw: Any, where: str, rules: Mapping[str, Any]) -> Problem | None:
    if not fits(raw, annotation):
        return Problem("wrong type", where, _short(raw), _wanted(annotation, rules))
    choices = rules.get("choices")
    if choices and raw not in choices:
        return Problem(
            "not one of the choices", where, _short(raw), _wanted(annotation, rules), near(str(raw), choices)
        )
    if isinstance(raw, (int, float)) and not isinstance(raw, bool) and not _in_range(raw, rules):
        return Problem("out of range", where, _short(raw), _wanted(annotation, rules))
    return None


def _in_range(number: float, rules: Mapping[str, Any]) -> bool:
    return (
        math.isfinite(number)
        and number >= rules.get("low", -math.inf)
        and number <= rules.get("high", math.inf)
        and number > rules.get("above", -math.inf)
    )


def _wanted(annotation: Any, rules: Mapping[str, Any]) -> str:
    """What a field takes, in words: its type, its choices, its bounds."""
    kind, optional = _required(annotation)
    bounds = [("at least", "low"), ("above", "above"), ("at most", "high")]
    limits = " and ".join(f"{word} {rules[rule]:g}" for word, rule in bounds if rule in rules)
    if kind is Node:
        text = "a plugin's name, or a mapping with its name and arguments"
    elif rules.get("choices"):
        text = f"one of {', '.join(rules['choices'])}"
    else:
        text = f"{spell(kind)} {limits}".strip()
    return f"{text}, or null" if optional else text


def _unknown(kind: Any, key: str, value: Any, where: str, keys: Iterable[str]) -> Problem:
    keys = list(keys)
    deeper = [f"{field.name}.{key}" for field in fields(kind) if key in _keys_of(_hints(kind)[field.name])]
    mend = near(key, keys) or (f"did you mean {' or '.join(deeper)}?" if deeper else "")
    return Problem("unknown key", _join(where, key), _short(value), f"one of {', '.join(keys)}", mend)


def _keys_of(annotation: Any) -> list[str]:
    kind, _ = _required(annotation)
    return [field.name for field in fields(kind)] if isinstance(kind, type) and is_dataclass(kind) else []


def _required(annotation: Any) -> tuple[Any, bool]:
    """`X | None` -> X, True. Anything else -> itself, False."""
    inner = get_args(annotation)
    if type(None) not in inner:
        return annotation, False
    rest = [one for one in inner if one is not type(None)]
    return (rest[0] if len(rest) == 1 else annotation), True


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _join(where: str, key: object) -> str:
    return f"{where}.{key}" if where else str(key)


def _short(value: Any) -> str:
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
