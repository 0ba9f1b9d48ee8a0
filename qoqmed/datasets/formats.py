"""Rows of other tools as rows under our names (the table in `rows`). One function a format.

| format | fields |
|---|---|
| easyr1 | QoQ-Med's and EasyR1's: `problem` with `<image>` and `<video>`, `answer` (labels joined by ", "), `images`,
`videos`, `time-series`, `segmentation_path`, `bbox` (pixels of the first image), `data_source`, `dataset`, `demo` |
| climb | CLIMB's annotations: `images` or `videos`, `explanation`, `conversations`, `label` |
| vqa | `image` or `images`, `question`, `answer`, `options` or `choices` where it is closed |
| conversations | `conversations` [{from, value}] or `messages` [{role, content}], `image`, `images`, `videos` |

A row without an id is known by its file and line. Without a `domain`, it has the one that `data_source` or `dataset`
name, as a domain or as a data set that one domain alone has. Answers to open questions become `text`. Of several
exchanges the last one is asked; those before it are put in front of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from qoqmed.datasets.fields import wrong

Row = Mapping[str, Any]
Format = Callable[[Row], dict[str, Any]]

KINDS = {
    "image": "image",
    "images": "image",
    "video": "video",
    "videos": "video",
    "time-series": "ecg",
    "time_series": "ecg",
}
KEPT = ("id", "domain", "dataset", "task", "view", "patient", "label_space", "width", "height", "mask", "mask_source")
ASKING, ANSWERING = ("human", "user"), ("gpt", "assistant", "model")


def easyr1(row: Row) -> dict[str, Any]:
    """QoQ-Med's own data files."""
    boxes, mask = row.get("bbox"), row.get("segmentation_path")
    named = _kept(row) | {"question": row.get("problem"), "labels": row.get("answer"), "media": _media(row)}
    if isinstance(boxes, list) and boxes:
        named["boxes_px"] = boxes if isinstance(boxes[0], list) else [boxes]
    if mask:
        named["mask"] = mask
    if row.get("demo") is not None:
        named["attributes"] = {"easyr1/demo": row["demo"]}
    return named


def climb(row: Row) -> dict[str, Any]:
    """CLIMB's annotation files."""
    question, _ = _exchange(row)
    media = {"question": question, "media": _media(row)}
    return _kept(row) | media | {"labels": row.get("label"), "text": row.get("explanation")}


def vqa(row: Row) -> dict[str, Any]:
    """Visual question answering: closed with options, else open."""
    answer, options = row.get("answer"), row.get("options", row.get("choices"))
    named = _kept(row) | {"question": row.get("question"), "media": _media(row)}
    if isinstance(options, Mapping):
        answer = options.get(str(answer), answer)
        options = list(options.values())
    answer = _written(answer)
    if options:
        named["label_space"] = [_written(one) for one in options] if isinstance(options, list) else options
    if "label_space" in named:
        return named | {"labels": None if answer is None else [answer]}
    return named | {"text": answer}


def _written(answer: Any) -> Any:
    """A number as text."""
    return str(answer) if isinstance(answer, int | float) else answer


def conversations(row: Row) -> dict[str, Any]:
    """Turns between a person and a model."""
    question, answer = _exchange(row)
    return _kept(row) | {"question": question, "text": answer, "media": _media(row)}


FORMATS: Mapping[str, Format] = {"easyr1": easyr1, "climb": climb, "vqa": vqa, "conversations": conversations}
JOINED = ("easyr1", "climb")  # their labels are one text
BESIDE = ("easyr1", "climb")  # their paths start at the file's own folder
TASKS = {"vqa": "vqa", "conversations": "report"}  # of rows that name none; else diagnosis


def _kept(row: Row) -> dict[str, Any]:
    kept = {name: row[name] for name in KEPT if row.get(name) is not None}
    return {name: str(value) if name in ("id", "patient") else value for name, value in kept.items()}


def _media(row: Row) -> list[dict[str, Any]]:
    found = []
    for name, modality in KINDS.items():
        value = row.get(name) or []
        found += [{"modality": modality, "path": path} for path in (value if isinstance(value, list) else [value])]
    return found


def _exchange(row: Row) -> tuple[str, str | None]:
    """The question with what was said before it, and its answer; None where nobody answers."""
    turns = row.get("conversations", row.get("messages"))
    if not isinstance(turns, list) or not turns:
        raise wrong("the row has no turns", repr(turns), "'conversations' or 'messages', a list of turns")
    said = [_turn(turn) for turn in turns]
    system = [text for who, text in said if who == "system"]
    spoken = [(who, text) for who, text in said if who != "system"]
    answered = len(spoken) % 2 == 0
    for place, (who, _) in enumerate(spoken):
        if who not in (ANSWERING if place % 2 else ASKING):
            raise wrong(f"turn {place + 1} is of {who!r}", expected="a person and the model in turns, the person first")
    if not spoken:
        raise wrong("nobody asks anything in this row")
    answer = spoken.pop()[1] if answered else None
    question = spoken.pop()[1]
    earlier = [f"{'Answer' if place % 2 else 'Question'}: {text}" for place, (_, text) in enumerate(spoken)]
    return "\n\n".join([*system, *earlier, question]), answer


def _turn(turn: Any) -> tuple[str, str]:
    if not isinstance(turn, Mapping):
        raise wrong("a turn is no object", repr(turn), '{"from": "human", "value": ..}')
    who, text = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
    if not isinstance(who, str) or not isinstance(text, str):
        raise wrong("a turn has no speaker or no text", repr(turn), '{"from": "human", "value": ..}')
    return who, text


def split_labels(text: str, space: Sequence[str]) -> list[str]:
    """Labels joined by ", ", where labels themselves may have commas: at each place the longest of the space. What is
    of no label stays a piece of its own, which the row's check then names."""
    pieces, out, start = text.split(", "), list[str](), 0
    while start < len(pieces):
        ends = range(len(pieces), start, -1)
        end = next((end for end in ends if ", ".join(pieces[start:end]) in space), start + 1)
        out.append(", ".join(pieces[start:end]))
        start = end
    return [label.strip() for label in out if label.strip()]
