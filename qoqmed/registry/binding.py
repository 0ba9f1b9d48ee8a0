"""A recipe's flat keyword arguments against a plugin's constructor, before any work starts; then the construction."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, get_type_hints

from qoqmed.errors import PluginError, Problem, UserError, near
from qoqmed.registry.annotations import fits, spell
from qoqmed.registry.discovery import PluginInfo, blame, find, load

if TYPE_CHECKING:
    from qoqmed.config.schema import Node

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@dataclass(frozen=True)
class Argument:
    """A keyword argument of a constructor. `default`: None where `required`. `annotation`: Any where none is given."""

    name: str
    annotation: Any
    required: bool
    default: Any


@dataclass(frozen=True)
class Description:
    """What `qoqmed plugins GROUP NAME` tells. arguments: None where the constructor has no signature to read."""

    info: PluginInfo
    text: str
    arguments: tuple[Argument, ...] | None


def describe(group: str, name: str) -> Description:
    """Docstring and arguments of one plugin, which is imported."""
    plugin = load(group, name)
    known, _ = _arguments(plugin)
    return Description(find(group, name), inspect.getdoc(plugin) or "", known)


def bind(
    group: str,
    name: str,
    arguments: Mapping[str, Any],
    provided: Collection[str] = (),
    where: str = "",
    beside: Collection[str] = (),
) -> list[Problem]:
    """Problems of these arguments: unknown, missing, plainly of another type. Imports the plugin.

    provided: names that the caller offers besides; the constructor gets those that it names. where: the node's path.
    beside: keys that the recipe takes at this place besides the arguments, for hints about misspelt ones.
    """
    plugin = load(group, name, where)
    known, takes_any = _arguments(plugin)
    if known is None:
        return []
    place = where or f"{group}/{name}"
    by_name = {argument.name: argument for argument in known}
    problems = []
    for key, value in arguments.items():
        argument = by_name.get(key)
        if argument is not None and not fits(value, argument.annotation):
            what = f"wrong type for this argument of the plugin {name!r}"
            problems.append(Problem(what, f"{place}.{key}", repr(value), spell(argument.annotation)))
        elif argument is None and not takes_any:
            what, names = f"unknown argument of the plugin {name!r}", [*by_name, *beside]
            expected = f"one of {', '.join(names)}" if names else "no arguments"
            problems.append(Problem(what, f"{place}.{key}", repr(value), expected, near(key, names)))
    for argument in known:
        if argument.required and argument.name not in arguments and argument.name not in provided:
            what = f"missing argument {argument.name!r} of the plugin {name!r}"
            problems.append(Problem(what, place, expected=f"{argument.name}: {spell(argument.annotation)}"))
    return problems


def make(group: str, node: Node, /, **provided: Any) -> Any:
    """Construct a node's plugin. Of `provided` it gets what its signature names; the recipe's own arguments win."""
    plugin = load(group, node.name, node.where)
    if not callable(plugin) and not node.arguments:
        return plugin
    problems = bind(group, node.name, node.arguments, provided, node.where)
    if problems:
        raise PluginError(problems)
    known, _ = _arguments(plugin)
    names = {argument.name for argument in known or ()}
    offered = {name: value for name, value in provided.items() if name in names}
    try:
        return plugin(**{**offered, **node.arguments})
    except UserError as error:
        if all(problem.where for problem in error.problems):
            raise
        placed = [replace(problem, where=problem.where or node.where) for problem in error.problems]
        raise PluginError(placed) from error
    except Exception as error:  # boundary: a constructor is third-party code
        info = find(group, node.name)
        raise PluginError(blame(info, "failed while it was constructed", error, node.where)) from error


def _arguments(plugin: Any) -> tuple[tuple[Argument, ...] | None, bool]:
    """The named arguments of a plugin (None: no signature to be had), and whether it takes any others besides."""
    if not callable(plugin):
        return (), False
    try:
        parameters = inspect.signature(plugin).parameters.values()
    except (ValueError, TypeError):  # built in C, or with a damaged __signature__
        return None, True
    known = tuple(
        Argument(p.name, _resolve(plugin, p), p.default is p.empty, None if p.default is p.empty else p.default)
        for p in parameters
        if p.kind in _NAMED
    )
    return known, any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)


def _resolve(plugin: Any, parameter: inspect.Parameter) -> Any:
    """One annotation, evaluated by itself: a name that only type checkers see spoils no other one."""
    if parameter.annotation is parameter.empty:
        return Any
    constructor = inspect.unwrap(plugin.__init__ if inspect.isclass(plugin) else plugin)
    holder = SimpleNamespace(__annotations__={parameter.name: parameter.annotation})
    try:
        return get_type_hints(holder, globalns=getattr(constructor, "__globals__", {}))[parameter.name]
    except Exception:  # boundary: a third party's annotation is evaluated; one that cannot be is not checked
        return Any
