"""An answer for a terminal, and as plain content for JSON. Nothing here prints: the command line does."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from qoqmed.predict import Predicted
from qoqmed.report.tables import number
from qoqmed.types import Box


def answer_json(made: Predicted) -> dict[str, Any]:
    """Boxes: `normalised` to [0, 1], and in `pixels` of their picture as loaded. Media count from 0."""
    reading, rollout = made.reading, made.rollout
    media = []
    for place, medium in enumerate(made.case.media):
        of = made.pictures.get(place, ())
        size = {"pictures": len(of), "width": of[0].shape[1], "height": of[0].shape[0]} if of else {}
        media.append({"modality": medium.modality, "file": made.files[place], **size})
    return {
        "question": made.case.text,
        "domain": made.case.domain or None,
        "labels": list(made.case.label_space),
        "media": media,
        "reasoning": reading.reasoning,
        "boxes": [
            {"label": box.label, "medium": box.medium, "normalised": _corners(box), "pixels": _pixels(made, box)}
            for box in reading.boxes
        ],
        "answer": {
            "labels": None if reading.answer.labels is None else list(reading.answer.labels),
            "text": reading.answer.text,
        },
        "finish_reason": rollout.finish_reason,
        "flaws": [{"kind": flaw.kind, "detail": flaw.detail} for flaw in reading.flaws],
        "tokens": len(rollout.token_ids),
        "mean_log_prob": made.mean_log_prob,
        "response": rollout.text,
    }


def answer_view(made: Predicted) -> RenderableType:
    """Reasoning, boxes in pixels, the answer, and how the response ended."""
    reading, rollout = made.reading, made.rollout
    parts: list[RenderableType] = [_titled("reasoning", reading.reasoning or "-")]
    if reading.boxes:
        table = Table("box", "picture", "x1", "y1", "x2", "y2", title="pixels of the picture")
        for box in reading.boxes:
            file = f"{made.case.media[box.medium].modality} {made.files[box.medium]}"
            table.add_row(Text(box.label or "-"), Text(file), *(f"{side:.0f}" for side in _pixels(made, box)))
        parts.append(table)
    answer = reading.answer
    labels = None if answer.labels is None else ", ".join(answer.labels) or f"none of the labels ({answer.text})"
    parts.append(_titled("answer", labels if labels is not None else answer.text or "-"))
    flaws = ", ".join(dict.fromkeys(flaw.kind for flaw in reading.flaws))
    foot = f"{len(rollout.token_ids)} tokens, mean log-prob {number(made.mean_log_prob)}, end: {rollout.finish_reason}"
    parts.append(Text(f"{foot}{f'; flaws: {flaws}' if flaws else ''}", style="dim"))
    return Group(*parts)


def _titled(title: str, text: str) -> Text:
    return Text.assemble((f"{title}: ", "bold"), text)


def _corners(box: Box) -> list[float]:
    return [box.x1, box.y1, box.x2, box.y2]


def _pixels(made: Predicted, box: Box) -> list[float]:
    height, width = made.pictures[box.medium][0].shape[:2]
    return [round(side * scale, 2) for side, scale in zip(_corners(box), (width, height) * 2, strict=True)]
