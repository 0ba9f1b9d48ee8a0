"""Predictions: how one is made of a reading, and the JSON Lines file that `qoqmed metrics` reads.

A line: {"id", "domain", "dataset", "label_space": [..], "target": [..], "prediction": [..]}, and "mask_source" where no
person drew the case's mask; other keys are left alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeGuard

from qoqmed.errors import DataError, Problem, near
from qoqmed.types import Case, Prediction, Reading

TEXTS = ("id", "domain", "dataset")
LISTS = ("label_space", "target", "prediction")
SOURCE = "mask_source"


def prediction_of(case: Case, reading: Reading) -> Prediction:
    """What a response answered to a labelled case: its labels, then the words that are no label of the space."""
    unknown = tuple(flaw.detail for flaw in reading.flaws if flaw.kind == "unknown_label")
    labels = (reading.answer.labels or ()) + unknown
    target = case.target.labels or ()
    return Prediction(case.id, case.domain, case.dataset, case.label_space, target, labels, case.mask_source)


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for prediction in predictions:
            file.write(to_line(prediction) + "\n")


def read_predictions(path: Path) -> list[Prediction]:
    """Raises DataError with every bad line of the file, or where there is none to read."""
    if not path.is_file():
        raise DataError(Problem("no such file", where=str(path)))
    problems: list[Problem] = []
    predictions: list[Prediction] = []
    lines: dict[tuple[str, str, str], int] = {}
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if not raw.strip():
                continue
            row, found = _row(raw)
            found = found or list(_problems(row))
            if not found:
                prediction = _prediction(row)
                key = (prediction.domain, prediction.dataset, prediction.id)
                if key in lines:
                    found = [
                        Problem(
                            "id given twice", "id", repr(prediction.id), f"one line an id (line {lines[key]} has it)"
                        )
                    ]
                lines.setdefault(key, number)
                predictions.append(prediction)
            problems += [_at(path, number, problem) for problem in found]
    if problems:
        raise DataError(problems)
    if not predictions:
        raise DataError(Problem("no predictions", where=str(path), expected="one JSON object a line"))
    return predictions


def to_line(prediction: Prediction) -> str:
    fields = {name: getattr(prediction, name) for name in (*TEXTS, *LISTS)}
    return json.dumps(fields | ({SOURCE: prediction.mask_source} if prediction.mask_source else {}))


def from_line(line: str) -> Prediction:
    """The inverse of `to_line`, for lines that it wrote."""
    return _prediction(json.loads(line))


def _prediction(row: dict[str, Any]) -> Prediction:
    space, target, prediction = (tuple(row[name]) for name in LISTS)
    case_id, domain, dataset = (row[name] for name in TEXTS)
    return Prediction(case_id, domain, dataset, space, target, prediction, row.get(SOURCE) or "")


def _row(raw: bytes) -> tuple[Any, list[Problem]]:
    try:  # json has no way to ask whether a line is valid
        return json.loads(raw.decode("utf-8")), []
    except (ValueError, RecursionError) as error:
        return None, [Problem("no JSON in UTF-8", got=str(error)[:120], expected="one JSON object a line")]


def _problems(row: Any) -> Iterator[Problem]:
    if not isinstance(row, dict):
        yield Problem("not an object", got=type(row).__name__, expected="one JSON object a line")
        return
    for name in (*TEXTS, *LISTS):
        if name not in row:
            yield Problem("key missing", name, expected=", ".join((*TEXTS, *LISTS)), mend=near(name, list(row)))
        elif name in TEXTS and not isinstance(row[name], str):
            yield Problem("wrong type", name, repr(row[name])[:80], "a text")
        elif name in LISTS and not _is_texts(row[name]):
            yield Problem("wrong type", name, repr(row[name])[:80], "a list of texts")
    if not isinstance(row.get(SOURCE) or "", str):
        yield Problem("wrong type", SOURCE, repr(row[SOURCE])[:80], "a text")
    space, target = row.get("label_space"), row.get("target")
    if _is_texts(space) and _is_texts(target):
        if not space:
            yield Problem("no labels", "label_space", "[]", "at least one label")
        for label in target:
            if label not in space:
                yield Problem("label outside its space", "target", repr(label), ", ".join(space), near(label, space))


def _is_texts(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _at(path: Path, number: int, problem: Problem) -> Problem:
    where = f"{path}:{number}" + (f" {problem.where}" if problem.where else "")
    return Problem(problem.what, where, problem.got, problem.expected, problem.mend)
