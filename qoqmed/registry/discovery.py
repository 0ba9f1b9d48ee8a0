"""Which plugins are installed, by reading the metadata of distributions; importing the one that is asked for."""

from __future__ import annotations

import sys
import traceback
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from typing import Any

from qoqmed.contracts import GROUPS
from qoqmed.errors import PluginError, Problem, near


@dataclass(frozen=True)
class PluginInfo:
    """One entry point. `value` is its "module:attribute", `distribution` the package that offers it."""

    group: str
    name: str
    value: str
    distribution: str
    version: str

    @property
    def origin(self) -> str:
        return f"{self.distribution} {self.version}"

    def __str__(self) -> str:
        return f"{self.name} = {self.value!r} of {self.origin}"


def available(group: str) -> list[PluginInfo]:
    """Every plugin of a group, by name. Imports none of them. Two of one name are both listed: `find` refuses them."""
    if group not in GROUPS:
        expected = f"one of {', '.join(GROUPS)}"
        raise PluginError(Problem("no such plugin group", "", repr(group), expected, near(group, list(GROUPS))))
    plugins, _ = _scan(tuple(sys.path))
    return [info for info in plugins if info.group == group]


def unreadable() -> tuple[Problem, ...]:
    """Distributions whose list of qoqmed plugins cannot be read; theirs are missing from `available`."""
    return _scan(tuple(sys.path))[1]


def find(group: str, name: str, where: str = "") -> PluginInfo:
    """The one plugin of that name, not imported. `where`: the YAML path that names it."""
    installed = available(group)
    named = [info for info in installed if info.name == name]
    if len(named) == 1:
        return named[0]
    if not named:
        known = [info.name for info in installed]
        problem = Problem(
            f"no such plugin in qoqmed.{group}",
            where,
            repr(name),
            f"installed: {', '.join(dict.fromkeys(known))}" if known else "none is installed for this group",
            near(name, known),
        )
    else:
        problem = Problem(
            f"{len(named)} installed distributions offer the plugin {name!r} of qoqmed.{group}",
            where,
            "; ".join(str(info) for info in named),
            "one plugin of a name",
            f"uninstall one of them: {' or '.join(f'pip uninstall {info.distribution}' for info in named)}",
        )
    raise PluginError(problem)


def load(group: str, name: str, where: str = "") -> Any:
    """What the entry point resolves to: a class, a factory, or (domains) an object."""
    info = find(group, name, where)
    try:
        return metadata.EntryPoint(info.name, info.value, f"qoqmed.{group}").load()
    except Exception as error:  # boundary: importing a plugin runs third-party code
        raise PluginError(blame(info, "cannot be imported", error, where)) from error


def blame(info: PluginInfo, what: str, error: BaseException, where: str = "") -> Problem:
    """The problem of a plugin that failed: its distribution, its entry point, and the place and text of the cause."""
    frames = traceback.extract_tb(error.__traceback__)[1:]  # without the frame of ours that caught it
    place = next((f" ({frame.filename}:{frame.lineno})" for frame in reversed(frames) if _is_file(frame.filename)), "")
    return Problem(
        f"plugin {info.name!r} of {info.origin} (qoqmed.{info.group}: {info.value}) {what}",
        where,
        f"{type(error).__name__}: {error}{place}",
        mend=f"mend or update {info.distribution}; `qoqmed doctor` tells what is missing, --debug shows the traceback",
    )


def _is_file(filename: str) -> bool:
    return not filename.startswith("<") and "importlib" not in filename


@lru_cache(maxsize=1)
def _scan(path: tuple[str, ...]) -> tuple[tuple[PluginInfo, ...], tuple[Problem, ...]]:
    """All plugins on `path`, the cache's key. A distribution earlier on the path hides a later one of the same name."""
    plugins: dict[PluginInfo, None] = {}
    problems: list[Problem] = []
    seen: set[str] = set()
    for distribution in metadata.distributions(path=list(path)):
        if "[qoqmed." not in (distribution.read_text("entry_points.txt") or ""):
            continue
        try:
            name, version, entries = distribution.metadata["Name"], distribution.version, distribution.entry_points
        except Exception as error:  # boundary: the metadata of a third party may be damaged
            problems.append(Problem("its entry points cannot be read", str(distribution.locate_file("")), repr(error)))
            continue
        key = name.lower().replace("_", "-").replace(".", "-")
        if key not in seen:
            seen.add(key)
            found = (entry for entry in entries if entry.group.startswith("qoqmed."))
            infos = (PluginInfo(e.group.removeprefix("qoqmed."), e.name, e.value, name, version) for e in found)
            plugins |= dict.fromkeys(infos)
    return tuple(sorted(plugins, key=lambda info: (info.group, info.name, info.distribution))), tuple(problems)
