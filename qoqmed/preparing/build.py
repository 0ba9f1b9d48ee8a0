"""`qoqmed data build`: a data set as it was published -> train.jsonl, valid.jsonl, test.jsonl, and what was left out.

Nothing of the data set is copied: the rows hold paths relative to it. The same folder, spec and arguments give the
same files, byte for byte.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any

from qoqmed import registry
from qoqmed.config.schema import Node
from qoqmed.errors import DataError, Problem, near
from qoqmed.preparing import spec as specs
from qoqmed.preparing.cases import Draft, Maker
from qoqmed.preparing.labels import AGREE
from qoqmed.preparing.left_out import LeftOut
from qoqmed.preparing.questions import Asking
from qoqmed.preparing.spec import Spec
from qoqmed.preparing.splits import SPLITS, Shares, assign
from qoqmed.types import SPATIAL

KINDS = {int: "whole number", float: "number", bool: "true or false", str: "word"}  # as messages call them
TAKEN = {int: (int, float), float: (int, float), bool: (bool,)}  # of an option: its default's type -> a value's types
TAKEN_AS = {int: "number", float: "number", bool: "true or false"}


@dataclass(frozen=True)
class Arguments:
    """Those of every build; other `key=value` are the spec's own options.

    valid, test: shares of the patients, where splits are drawn. split: published (where the spec knows them) or
    patient (always drawn). shuffle: the allowable labels in an order of the case's own. phrasings: questions a case.
    frames: written into volumes and videos; 0 leaves them to the recipe. limit: stop after so many cases; 0: all.
    """

    seed: int = 0
    valid: float = 0.1
    test: float = 0.1
    split: str = "published"
    shuffle: bool = False
    phrasings: int = 1
    frames: int = 0
    limit: int = 0


@dataclass(frozen=True)
class Built:
    """What a build made. rows: a split -> rows in its file. labels: a split -> label -> cases."""

    folder: Path
    source: Path
    spec: Spec
    arguments: Arguments
    rows: Mapping[str, int]
    patients: Mapping[str, int]
    labels: Mapping[str, Mapping[str, int]]
    left_out: Mapping[str, int]
    notes: Mapping[str, int]


def build(name: str, source: Path, out: Path, options: Mapping[str, Any] | None = None) -> Built:
    """Make the data files of a data set. name: a shipped spec or a spec file. options: arguments and spec options.

    Raises DataError: for a spec, an argument or a layout that is wrong, for files that are there already, and where
    no case is left.
    """
    arguments, own = _arguments(name, options or {})
    spec = specs.load(name, own)
    if not source.is_dir():
        raise DataError(Problem("no such folder", str(source), mend="SOURCE is the data set as it was published"))
    made = [out / one for one in (*(f"{split}.jsonl" for split in SPLITS), "left_out.jsonl", "build.json")]
    if not next(path for path in (out, *out.absolute().parents) if path.exists()).is_dir():
        raise DataError(Problem("OUT is no folder, or below a file", str(out), expected="a folder, also a new one"))
    there = [str(path) for path in made if path.exists()]
    if there:
        raise DataError(
            Problem("files are there already", str(out), ", ".join(there), mend="remove them, or take another OUT")
        )
    left_out = LeftOut()
    space, multi, questions = _known(spec)
    maker = Maker(spec, source, space, multi, left_out, questions, arguments.frames)
    drafts = list(islice(maker.drafts(), arguments.limit or None))
    for modality in {medium.modality for medium in spec.media} - {*SPATIAL, "ecg"}:
        left_out.note(f"media of the modality {modality!r}: qoqmed reads none such, so an encoder has to")
    if not drafts:
        reasons = ", ".join(f"{count} x {reason}" for reason, count in left_out.reasons.items())
        mend = "compare the folder with the spec's layout" + f": `qoqmed data specs {name}`" * (name in specs.shipped())
        raise DataError(Problem("no case is left", str(source), reasons or "no row at all", spec.layout, mend))
    shares = Shares(arguments.valid, arguments.test, arguments.seed, arguments.split == "published")
    splits = assign(drafts, spec.split, shares, left_out)
    asking = Asking(spec, space, questions, arguments.seed, arguments.shuffle, arguments.phrasings)
    built = Built(
        out,
        source,
        spec,
        arguments,
        {split: sum(len(list(asking.rows(draft, split))) for draft in part) for split, part in splits.items()},
        {split: len({draft.patient or draft.id for draft in part}) for split, part in splits.items()},
        {split: _counted(part, space) for split, part in splits.items()},
        left_out.reasons,
        dict(left_out.notes),
    )
    _write(built, splits, asking, left_out)
    return built


def _arguments(name: str, options: Mapping[str, Any]) -> tuple[Arguments, dict[str, Any]]:
    """The build's arguments, and the spec's own options."""
    kinds = {one.name: type(one.default) for one in fields(Arguments) if one.default is not MISSING}
    own = {key: value for key, value in options.items() if key not in kinds}
    defaults = specs.load(name).options
    known = list(defaults)
    problems = [
        Problem(f"no argument {key!r}", name, expected=", ".join([*kinds, *known]), mend=near(key, [*kinds, *known]))
        for key in own
        if key not in known
    ]
    for key in own:
        kind = type(defaults.get(key))
        if kind in TAKEN and (type(own[key]) not in TAKEN[kind]):
            problems.append(Problem(f"{key!r} is no {TAKEN_AS[kind]}", name, repr(own[key])))
    given, wrong = {key: value for key, value in options.items() if key in kinds}, list[str]()
    for key, value in given.items():
        fits = isinstance(value, kinds[key]) or (kinds[key] is float and isinstance(value, int))
        if not fits or (kinds[key] is not bool and isinstance(value, bool)):
            problems.append(Problem(f"{key!r} is no {KINDS[kinds[key]]}", name, repr(value)))
            wrong.append(key)
    made = Arguments(**{key: value for key, value in given.items() if key not in wrong})
    if made.split not in ("published", "patient"):
        problems.append(Problem("no such 'split'", name, repr(made.split), "published or patient"))
    if not {"valid", "test"} & set(wrong) and not (
        0 <= made.valid < 1 and 0 <= made.test < 1 and made.valid + made.test < 1
    ):
        problems.append(Problem("shares of patients", name, f"valid {made.valid}, test {made.test}", "a sum below 1"))
    told = f"phrasings {made.phrasings}, limit {made.limit}, frames {made.frames}"
    if made.phrasings < 1 or made.limit < 0 or made.frames < 0:
        problems.append(Problem("'phrasings' is at least 1, 'limit' and 'frames' at least 0", name, told))
    if problems:
        raise DataError(problems)
    return made, own


def _known(spec: Spec) -> tuple[tuple[str, ...], bool, tuple[str, ...]]:
    """Label space, whether several labels may hold, and questions: the spec's own, else what the domain knows."""
    name = spec.data_set or spec.name
    if spec.agree not in AGREE:
        raise DataError(
            Problem("no such 'agree'", spec.name, repr(spec.agree), ", ".join(AGREE), near(spec.agree, AGREE))
        )
    plugins = [info.name for info in registry.available("domains")]
    plugin = registry.make("domains", Node(spec.domain)) if spec.domain in plugins else None
    labelled = getattr(plugin, "sets", {}).get(name)
    space = tuple(spec.label_space) or tuple(plugin.datasets.get(name, ()) if plugin else ())
    if not space:
        known = near(spec.domain, plugins) if plugin is None else near(name, list(plugin.datasets))
        mend = known or "add 'label_space' to the spec"
        raise DataError(Problem("no label space", spec.name, f"{spec.domain}/{name}", "a data set that it has", mend))
    asked = getattr(plugin, "questions", None)
    questions = tuple(spec.questions) or (tuple(asked(name)) if asked else tuple(plugin.phrasings if plugin else ()))
    if not questions:
        raise DataError(
            Problem("no questions", spec.name, f"domain {spec.domain!r}", mend="add 'questions' to the spec")
        )
    multi = bool(getattr(labelled, "multi", False)) if not spec.label_space else spec.multi
    return space, multi, questions


def _counted(drafts: list[Draft], space: tuple[str, ...]) -> dict[str, int]:
    counts = Counter(label for draft in drafts for label in draft.marked.labels)
    return {label: counts[label] for label in space}


def _write(built: Built, splits: Mapping[str, list[Draft]], asking: Asking, left_out: LeftOut) -> None:
    built.folder.mkdir(parents=True, exist_ok=True)
    for split, drafts in splits.items():
        if drafts:
            with (built.folder / f"{split}.jsonl").open("w", encoding="utf-8") as file:
                for draft in drafts:
                    file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in asking.rows(draft, split))
    with (built.folder / "left_out.jsonl").open("w", encoding="utf-8") as file:
        for what, reason in left_out.rows:
            file.write(json.dumps({"what": what, "reason": reason}, ensure_ascii=False) + "\n")
    told = asdict(built) | {"folder": str(built.folder), "source": str(built.source.resolve())}
    (built.folder / "build.json").write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
