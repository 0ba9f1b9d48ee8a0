r"""What the tasks share: the form of a response, written and read.

    <think>reasoning</think>
    ```json
    [{"bbox_2d": [x1, y1, x2, y2], "label": "..."}]
    ```
    \boxed{label, label}

Boxes carry `"image": k` (pictures count from 1 in prompt order) only where a case has several pictures.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from qoqmed.contracts import BoxFrame
from qoqmed.errors import DataError, Problem
from qoqmed.reading import Parsed
from qoqmed.types import SPATIAL, Box, Case, Flaw

REASONING = "The findings are weighed against the question."  # of a gold response without a text of its own
THINK = "Reason in <think></think>"
BOXES = 'boxes as a json list of "bbox_2d" and "label"'
SEVERAL = ' and "image" (its number)'


def pictures(case: Case) -> tuple[int, ...]:
    """The media that boxes may lie on, as positions in `case.media`."""
    return tuple(index for index, medium in enumerate(case.media) if medium.modality in SPATIAL)


def ask(question: str, case: Case) -> str:
    """A question for a case that brings none of its own; `{domain}` in it becomes "chest xray"."""
    return question.replace("{domain}", case.domain.replace("_", " "))


def think(text: str | None, neutral: str) -> str:
    return f"<think>{text or neutral}</think>"


def write_boxes(boxes: Sequence[Box], case: Case, frame: BoxFrame) -> str:
    """A fenced json block; the numbers are the backbone's."""
    several = pictures(case)
    items = [
        {"bbox_2d": frame.write(box), "label": box.label}
        | ({"image": several.index(box.medium) + 1} if len(several) > 1 else {})
        for box in boxes
    ]
    return "```json\n[" + ",\n".join(json.dumps(item, ensure_ascii=False) for item in items) + "]\n```"


def read_boxes(parsed: Parsed, case: Case, frame: BoxFrame) -> tuple[tuple[Box, ...], tuple[Flaw, ...]]:
    """Boxes of a response, normalised. A box that names no picture lies on the case's first."""
    known = pictures(case)
    boxes: list[Box] = []
    flaws: list[Flaw] = []
    for raw in parsed.boxes:
        picture = 0 if raw.picture is None else raw.picture - 1
        if not 0 <= picture < len(known):
            flaws.append(Flaw("box_invalid", f"no picture {picture + 1}"))
            continue
        try:  # the frame alone knows which numbers are a box
            corners = frame.read(raw.numbers, known[picture])
        except ValueError as error:
            flaws.append(Flaw("box_invalid", str(error)))
            continue
        boxes.append(Box(*corners, label=raw.label, medium=known[picture]))
    return tuple(boxes), tuple(dict.fromkeys(flaws))


def labelled(boxes: Sequence[Box], label: str) -> tuple[Box, ...]:
    """The boxes, with `label` where they bring none."""
    return tuple(box if box.label else replace(box, label=label) for box in boxes)


def check_regions(case: Case) -> None:
    """Raises DataError where a target box or mask does not lie on one of the case's pictures."""
    known = pictures(case)
    for box in case.target.boxes or ():
        if box.medium not in known:
            raise row_error(case, "a box lies on no picture of the case", f"medium {box.medium}", f"one of {known}")
        if not (0 <= box.x1 < box.x2 <= 1 and 0 <= box.y1 < box.y2 <= 1):
            corners = f"[{box.x1:g}, {box.y1:g}, {box.x2:g}, {box.y2:g}]"
            raise row_error(case, "a box is outside its picture or empty", corners, "x1 < x2, y1 < y2, all in [0, 1]")
    if case.target.mask is not None and case.target.mask.medium not in known:
        raise row_error(
            case, "the mask lies on no picture of the case", f"medium {case.target.mask.medium}", f"one of {known}"
        )


def row_error(case: Case, what: str, got: str = "", expected: str = "", mend: str = "") -> DataError:
    return DataError(Problem(what, where=case.id, got=got, expected=expected, mend=mend))
