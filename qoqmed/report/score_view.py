"""Scored responses as plain content, as a table, and one of them explained. Nothing here prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from qoqmed.report.tables import number
from qoqmed.scoring import Scored
from qoqmed.types import Box, Status, Verdict

LISTED = 50  # responses in a table
SHOWN = 2_000  # characters of a text in a terminal


def score_row(one: Scored) -> dict[str, Any]:
    """The line of output that docs/formats.md promises."""
    return {
        "id": one.case.id,
        "score": one.score,
        "rewards": {name: verdict.value for name, verdict in one.verdicts.items()},
        "reasons": {name: verdict.reason for name, verdict in one.verdicts.items()},
    }


def explained(one: Scored) -> dict[str, Any]:
    """That, and what the parser saw. Boxes: in pixels of width x height, as clipped to the picture."""
    reading = one.reading
    labels = reading.answer.labels
    return score_row(one) | {
        "weights": dict(one.weights),
        "statuses": {name: verdict.status.value for name, verdict in one.verdicts.items()},
        "tracebacks": {name: verdict.traceback for name, verdict in one.verdicts.items() if verdict.traceback},
        "reading": {
            "reasoning": reading.reasoning,
            "boxes": [{"label": box.label, "bbox_2d": _pixels(box, one.size_px)} for box in reading.boxes],
            "labels": None if labels is None else list(labels),
            "text": reading.answer.text,
            "value": reading.answer.value,
            "flaws": [{"kind": flaw.kind, "detail": flaw.detail} for flaw in reading.flaws],
        },
        "target": None if one.case.target.labels is None else list(one.case.target.labels),
        "response": one.rollout.text,
    }


def invalid(scored: Sequence[Scored]) -> list[str]:
    """The reasons of invalid verdicts, each once."""
    verdicts = [verdict for one in scored for verdict in one.verdicts.values()]
    return list(dict.fromkeys(verdict.reason for verdict in verdicts if verdict.status is Status.INVALID))


def score_table(scored: Sequence[Scored]) -> Table:
    """The means, then the first responses with their reasons."""
    names = list(dict.fromkeys(name for one in scored for name in one.verdicts))
    left = len(scored) - LISTED
    caption = f"{left} more with --json" if left > 0 else None
    table = Table("id", "score", *names, "reasons", title="Rewards", caption=caption)
    for column in table.columns[1:-1]:
        column.justify = "right"
    columns = [[one.verdicts[name].value for one in scored] for name in names]
    means = [_mean([one.score for one in scored]), *map(_mean, columns)]
    table.add_row(f"mean of {len(scored)}", *map(number, means), "of those that it applies to", end_section=True)
    for one in scored[:LISTED]:
        values = [_value(one.verdicts[name]) for name in names]
        reasons = "\n".join(f"{name}: {verdict.reason}" for name, verdict in one.verdicts.items() if verdict.reason)
        table.add_row(Text(one.case.id), number(one.score), *values, Text(reasons, style="dim"))
    return table


def explanation(one: Scored) -> RenderableType:
    """What the parser saw in a response, and every reward's verdict."""
    reading, labels = one.reading, one.reading.answer.labels
    answer = (
        reading.answer.text if labels is None else ", ".join(labels) or f"none of the labels ({reading.answer.text})"
    )
    target = one.case.target.labels
    parts: list[RenderableType] = [
        _titled("response", f"{one.case.id}, {len(one.rollout.text)} characters"),
        _titled("reasoning", _cut(reading.reasoning) or "-"),
        _titled("answer", _cut(answer or "") or "-"),
        _titled("target", "-" if target is None else ", ".join(target) or "no label"),
    ]
    if reading.boxes:
        boxes = Table("box", "x1", "y1", "x2", "y2", title=f"pixels of {one.size_px[0]} x {one.size_px[1]}")
        for box in reading.boxes[:LISTED]:
            boxes.add_row(Text(box.label or "-"), *(f"{side:g}" for side in _pixels(box, one.size_px)))
        parts.append(boxes)
    flaws = "\n".join(f"  {flaw.kind}{f': {flaw.detail}' if flaw.detail else ''}" for flaw in reading.flaws)
    parts.append(_titled("flaws", f"\n{flaws}" if flaws else "none"))
    parts.append(_verdicts(one.verdicts, one.weights, one.score))
    tracebacks = {name: verdict.traceback for name, verdict in one.verdicts.items() if verdict.traceback}
    return Group(*parts, *(_titled(name, f"\n{text}") for name, text in tracebacks.items()))


def _verdicts(verdicts: Mapping[str, Verdict], weights: Mapping[str, float], score: float | None) -> Table:
    table = Table("reward", "weight", "value", "reason", caption=f"score {number(score)}")
    for name, verdict in verdicts.items():
        table.add_row(name, number(weights[name]), _value(verdict), Text(verdict.reason))
    return table


def _value(verdict: Verdict) -> str:
    return number(verdict.value) if verdict.status is Status.OK else verdict.status.value.replace("_", " ")


def _mean(values: Sequence[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return sum(found) / len(found) if found else None


def _titled(title: str, text: str) -> Text:
    return Text.assemble((f"{title}: ", "bold"), text)


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]} .. ({len(text) - SHOWN} characters more with --json)"


def _pixels(box: Box, size_px: tuple[int, int]) -> list[float]:
    return [round(side * of, 2) for side, of in zip((box.x1, box.y1, box.x2, box.y2), size_px * 2, strict=True)]
