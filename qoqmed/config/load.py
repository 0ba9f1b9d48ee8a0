"""A recipe file to frozen dataclasses: YAML, overrides, `extends`, interpolation, types, checks. Problems together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import GrammarParseError, OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

from qoqmed.config.check import check
from qoqmed.config.convert import convert, expand_home
from qoqmed.config.overrides import apply, for_engine
from qoqmed.config.schema import Recipe
from qoqmed.errors import Problem, RecipeError, near


def load(
    recipe: str | Path | Mapping[str, Any], overrides: Sequence[str] = (), *, deep: bool = False, files: bool = True
) -> Recipe:
    """A recipe (a file, or its content) with `key=value` overrides. Raises one RecipeError with every problem.

    deep: import the plugins that it names and bind their arguments. files: refuse missing data and model files.
    """
    content = dict(recipe) if isinstance(recipe, Mapping) else _read(Path(recipe))
    changed, written, problems = apply(content, overrides)
    extended, found = _extend(changed)
    problems += found
    resolved, found = _interpolate(extended)
    problems += found
    converted, found = convert(resolved)
    converted = expand_home(converted)
    problems += _beyond(problems, found)
    problems += _beyond(problems, check(converted, deep=deep, files=files))
    if problems:
        order = {key: place for place, key in enumerate(resolved)}
        problems.sort(key=lambda problem: order.get(problem.where.split(".")[0], -1))
        raise RecipeError([_name_override(problem, written) for problem in problems])
    return converted


def _beyond(known: Sequence[Problem], found: Sequence[Problem]) -> list[Problem]:
    """Those found that do not merely follow from a known one, at the same place or above it."""
    places = {problem.where for problem in known}
    return [problem for problem in found if not any(f"{problem.where}.".startswith(f"{p}.") for p in places)]


def _read(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    if not path.is_file():
        found = sorted(str(other) for other in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        what = "a recipe is a file, this is a folder" if path.is_dir() else "no such recipe file"
        raise RecipeError(Problem(what, str(path), expected="a YAML file", mend=near(str(path), found)))
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except (YAMLError, UnicodeDecodeError, OSError, OmegaConfBaseException) as error:
        mark = error.problem_mark if isinstance(error, MarkedYAMLError) else None
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        text = (error.problem if isinstance(error, MarkedYAMLError) else None) or str(error)
        raise RecipeError(Problem(f"not readable as YAML: {text}", where)) from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise RecipeError(Problem("not a recipe", str(path), expected="a mapping with at least `name` and `stages`"))
    named = {str(key): value for key, value in content.items()}
    return named if "base" not in named else _upon(path, named.pop("base"), named, seen)


def _upon(path: Path, base: Any, over: dict[str, Any], seen: tuple[Path, ...]) -> dict[str, Any]:
    """The recipe `over` of the file `path` upon another file's: as by `extends`, and stages of one name are merged."""
    seen = (*seen, path.resolve())
    if not isinstance(base, str):
        raise RecipeError(Problem("not a recipe to start from", f"{path}: base", repr(base), "a file beside this one"))
    if (path.parent / base).resolve() in seen:
        raise RecipeError(Problem("a recipe cannot be its own base", f"{path}: base", base))
    if not (path.parent / base).is_file():
        found = sorted(other.name for other in path.parent.glob("*.y*ml") if other.resolve() not in seen)
        raise RecipeError(Problem("no such recipe file", f"{path}: base", base, "a file beside it", near(base, found)))
    below = _read(path.parent / base, seen)
    rollout = over.get("rollout")
    if isinstance(rollout, dict) and "name" in rollout and "rollout" in below:
        below["rollout"] = for_engine(below["rollout"], rollout["name"])
    merged: dict[str, Any] = _merge(below, over, stage=True)
    if isinstance(below.get("stages"), list) and isinstance(over.get("stages"), list):
        merged["stages"] = _by_name(below["stages"], over["stages"])
    return merged


def _by_name(below: Sequence[Any], over: Sequence[Any]) -> list[Any]:
    """Stages of a base with those of the same name upon them, then the new ones."""
    mine = {stage["name"]: stage for stage in over if isinstance(stage, dict) and "name" in stage}
    kept = [
        _merge(stage, mine.pop(stage["name"]), stage=True)
        if isinstance(stage, dict) and stage.get("name") in mine
        else deepcopy(stage)
        for stage in below
    ]
    return [*kept, *(stage for stage in over if not isinstance(stage, dict) or stage.get("name", "") in {*mine, ""})]


def _extend(raw: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """Stages with `extends` start from the named earlier stage: mappings merge, everything else replaces."""
    stages = raw.get("stages")
    if not isinstance(stages, list):
        return dict(raw), []
    done: list[Any] = []
    problems = []
    for index, stage in enumerate(stages):
        base = stage.get("extends") if isinstance(stage, dict) else None
        if base is None:
            done.append(stage)
            continue
        earlier = {other["name"]: other for other in done if isinstance(other, dict) and "name" in other}
        if base in earlier:
            done.append(_merge({k: v for k, v in earlier[base].items() if k != "extends"}, stage, stage=True))
            continue
        done.append(stage)
        names = [str(name) for name in earlier]
        expected = f"the name of an earlier stage: {', '.join(names)}" if names else "nothing: this is the first stage"
        where = f"stages.{index}.extends"
        problems.append(Problem("no such earlier stage", where, repr(base), expected, near(str(base), names)))
    return {**raw, "stages": done}, problems


def _merge(base: Any, over: Any, stage: bool = False) -> Any:
    """`over` upon `base`. A plugin of another name replaces the whole node: its arguments are not the old one's."""
    if isinstance(base, str) and isinstance(over, dict):
        base = {"name": base}
    if isinstance(base, dict) and isinstance(over, str) and base.get("name") == over:
        over = {"name": over}
    if not isinstance(base, dict) or not isinstance(over, dict):
        return deepcopy(over)
    if not stage and over.get("name", base.get("name")) != base.get("name"):
        return deepcopy(over)
    merged = {key: _merge(base[key], over[key]) if key in base else deepcopy(over[key]) for key in over}
    return {**deepcopy({key: value for key, value in base.items() if key not in over}), **merged}


def _interpolate(raw: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """`${seed}` and the like, resolved. A value that cannot be is null in the result, and a problem."""
    problems: list[Problem] = []
    config = OmegaConf.create({key: _parsable(value, key, problems) for key, value in raw.items()})
    return {key: _resolve(config, key, key, problems) for key in raw}, problems


def _parsable(value: Any, where: str, problems: list[Problem]) -> Any:
    if isinstance(value, dict):
        return {key: _parsable(item, f"{where}.{key}", problems) for key, item in value.items()}
    if isinstance(value, list):
        return [_parsable(item, f"{where}.{index}", problems) for index, item in enumerate(value)]
    if not isinstance(value, str) or "${" not in value:
        return value
    try:
        OmegaConf.create([value])
    except GrammarParseError as error:
        problems.append(Problem("an interpolation that cannot be parsed", where, repr(value), mend=_first(error)))
        return None
    return value


def _resolve(parent: DictConfig | ListConfig, key: Any, where: str, problems: list[Problem]) -> Any:
    try:
        value = parent[key]
        if isinstance(value, (DictConfig, ListConfig)) and OmegaConf.is_interpolation(parent, key):
            return OmegaConf.to_container(value, resolve=True)
    except (OmegaConfBaseException, RecursionError) as error:
        problems.append(Problem("an interpolation that cannot be resolved", where, _first(error)))
        return None
    if isinstance(value, DictConfig):
        names: list[Any] = list(value)
        return {name: _resolve(value, name, f"{where}.{name}", problems) for name in names}
    if isinstance(value, ListConfig):
        return [_resolve(value, index, f"{where}.{index}", problems) for index in range(len(value))]
    return value


def _first(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _name_override(problem: Problem, written: Mapping[str, str]) -> Problem:
    """A problem that an override brought in, with the override as it was written."""
    paths: Iterable[str] = (p for p in written if problem.where == p or problem.where.startswith(f"{p}."))
    path = max(paths, key=len, default=None)
    return problem if path is None else replace(problem, where=f"{problem.where} (override {written[path]})")
