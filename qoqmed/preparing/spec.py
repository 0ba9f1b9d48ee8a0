"""A data set's declaration: where its rows, media, labels and splits lie in the folder as it was published.

One YAML file a data set, strict: an unknown or missing key is told with its path. `{column}` in a text is filled from
the row; `${options.NAME}` from the spec's own options, which `key=value` on the command line replaces.
docs/data.md describes every key.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from qoqmed.errors import DataError, Problem, near

SHIPPED = resources.files("qoqmed.preparing").joinpath("specs")


@dataclass(frozen=True)
class Join:
    """Columns of another table. by: column here -> column there. take: new column -> column there; empty takes all.

    optional: the table may be missing, and rows of it. ignore_case: texts of `by` match in any case.
    """

    table: str
    by: Mapping[str, str]
    take: Mapping[str, str] = field(default_factory=dict)
    delimiter: str = ","
    optional: bool = False
    ignore_case: bool = False

    def key(self, texts: Iterable[str]) -> tuple[str, ...]:
        return tuple(text.casefold() if self.ignore_case else text for text in texts)


@dataclass(frozen=True)
class Derive:
    """A column made of another's text: the first group that a pattern finds in it; "" where there is none.

    column: one, or several of which the first that the row has counts.
    """

    column: Sequence[str]
    pattern: str


@dataclass(frozen=True)
class Keep:
    """Rows whose column holds one of `values` (or, with `but`, none of those) stay; the others are left out."""

    column: str
    reason: str
    values: Sequence[str] = ()
    but: Sequence[str] = ()


@dataclass(frozen=True)
class MediumSpec:
    """path: candidates, the first that exists. each: separates several paths that one text holds."""

    modality: str
    path: Sequence[str]
    view: str = ""
    each: str = ""
    optional: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SplitSpec:
    """Published splits: values of a column. Without a column, and for parts that it lacks, patients are drawn."""

    column: str = ""
    train: Sequence[str] = ()
    valid: Sequence[str] = ()
    test: Sequence[str] = ()


@dataclass(frozen=True)
class Spec:
    """rows, labels: the kind of source and of reader with their arguments (`rows.SOURCES`, `labels.READERS`).

    label_space, multi, questions: of data sets that the domain does not know.
    group: rows of one case share this text; `agree` says which of their labels count (`labels.AGREE`).
    """

    name: str
    domain: str
    rows: Mapping[str, Any]
    id: str
    labels: Mapping[str, Any]
    media: Sequence[MediumSpec] = ()
    data_set: str = ""
    about: str = ""
    licence: str = ""
    layout: str = ""
    patient: Sequence[str] = ()
    mask: Sequence[str] = ()
    derive: Mapping[str, Derive] = field(default_factory=dict)
    join: Sequence[Join] = ()
    keep: Sequence[Keep] = ()
    group: str = ""
    agree: str = "any"
    split: SplitSpec = SplitSpec()
    questions: Sequence[str] = ()
    label_space: Sequence[str] = ()
    multi: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


PARTS: Mapping[str, tuple[type, type | None]] = {  # key of a spec -> its class, and the list or mapping of such
    "media": (MediumSpec, list),
    "join": (Join, list),
    "keep": (Keep, list),
    "derive": (Derive, dict),
    "split": (SplitSpec, None),
}
TYPES: Mapping[str, tuple[type, str]] = {  # of a field -> of its value, and what messages call it
    "str": (str, "text (in quotes where it looks like a number)"),
    "bool": (bool, "true or false"),
    "Mapping": (dict, "mapping"),
}
TEXTS = ("path", "values", "but", "train", "valid", "test", "patient", "mask", "questions", "label_space")


def shipped() -> tuple[str, ...]:
    """Names of the specs that come with qoqmed."""
    return tuple(sorted(Path(item.name).stem for item in SHIPPED.iterdir() if item.name.endswith(".yaml")))


def load(name: str, options: Mapping[str, Any] | None = None) -> Spec:
    """A shipped spec by its name, or a spec file by its path. Raises DataError with every problem."""
    path, where = Path(name), name
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise DataError(Problem("no such spec file", where))
        text = path.read_text(encoding="utf-8")
    elif name in shipped():
        text = SHIPPED.joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    else:
        known = shipped()
        raise DataError(Problem("no such spec", where, expected=", ".join(known), mend=near(name, known)))
    try:  # YAML and OmegaConf say what is wrong by exceptions alone
        given = OmegaConf.create(text)
        of_labels = given.get("labels") if isinstance(given, DictConfig) else None
        shared = of_labels.get("groups") if isinstance(of_labels, DictConfig) else None
        if isinstance(shared, str):  # a map that several specs share
            maps = [Path(item.name).stem for item in SHIPPED.joinpath("maps").iterdir()]
            if shared not in maps:
                place, expected = f"{where}.labels.groups", ", ".join(sorted(maps))
                raise DataError(Problem("no such map", place, shared, expected, near(shared, maps)))
            given.labels.groups = OmegaConf.create(SHIPPED.joinpath("maps", f"{shared}.yaml").read_text("utf-8"))
        for key, value in (options or {}).items():
            OmegaConf.update(given, f"options.{key}", value)
        content = OmegaConf.to_container(given, resolve=True)
    except (YAMLError, OmegaConfBaseException) as error:
        raise DataError(
            Problem("the spec is no YAML that can be resolved", where, str(error)[:300], "a mapping")
        ) from error
    problems: list[Problem] = []
    spec = _made(Spec, content, where, problems)
    if problems or spec is None:
        raise DataError(problems or Problem("the spec is no mapping", where))
    return spec  # type: ignore[no-any-return]


def _made(kind: Any, given: Any, where: str, problems: list[Problem]) -> Any:
    """A mapping -> the dataclass, or None with its problems told."""
    if not isinstance(given, dict):
        problems.append(Problem("not a mapping", where, repr(given)[:80]))
        return None
    known = {one.name: one for one in fields(kind)}
    unknown = [key for key in given if key not in known]
    problems += [Problem(f"unknown key {key!r}", where, mend=near(str(key), list(known))) for key in unknown]
    needed = [one.name for one in known.values() if one.default is MISSING and one.default_factory is MISSING]
    missing = [name for name in needed if name not in given]
    problems += [Problem(f"{name!r} is missing", where) for name in missing]
    values = {key: _value(kind, key, given[key], f"{where}.{key}", problems) for key in given if key in known}
    kinds = {name: TYPES.get(str(one.type).partition("[")[0]) for name, one in known.items()}
    for key, value in values.items():
        wanted = kinds[key]
        if wanted is not None and not isinstance(value, wanted[0]) and not (kind is Spec and key in PARTS):
            problems.append(Problem(f"no {wanted[1]}", f"{where}.{key}", repr(value)[:80]))
    return None if unknown or missing else kind(**values)


def _value(kind: Any, key: str, value: Any, where: str, problems: list[Problem]) -> Any:
    if kind is Spec and key in PARTS:
        part, many = PARTS[key]
        if many is None:
            return _made(part, value, where, problems)
        if not isinstance(value, many):
            problems.append(Problem(f"no {many.__name__}", where, repr(value)[:80]))
            return ()
        items: Any = value
        named = items.items() if many is dict else enumerate(items)
        made = {name: _made(part, one, f"{where}.{name}", problems) for name, one in named}
        return made if many is dict else tuple(made.values())
    if key in TEXTS or (kind is Derive and key == "column"):
        return tuple(str(item) for item in (value if isinstance(value, list) else [value]))
    return value
