"""Responses that answer nothing, or everything, or break what reads them: what a reward has to withstand.

Each is made for one case and claims nothing that is right about it, but for the label list copied and its like, which
name every label. Boxes are in the case's own frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from qoqmed.contracts import BoxFrame, Task
from qoqmed.reading import MAX_BOXES
from qoqmed.tasks import form
from qoqmed.types import Box, Case

THINK = "<think>The picture was looked at.</think>"
BOXES = 10_000
LANGUAGES = "图像中未见明显异常。所見は正常範囲内です。Патологии не выявлено. لا توجد علامات مرضية. ไม่พบความผิดปกติ "
FORM = '<think>reasoning</think>\n```json\n[{"bbox_2d": [x1, y1, x2, y2], "label": "..."}]\n```\n\\boxed{label, label}'
NO_NUMBERS = (
    '[{"bbox_2d": [NaN, Infinity, 1e400, -1e9], "label": "x"}, {"bbox_2d": [90, 90, 10, 10]}, '
    '{"bbox_2d": ["a", null, [], {}]}, {"bbox_2d": [0, 0, 0, 0]}, {"bbox_2d": 7}, 8, null]'
)
TEXTS = {
    "empty": "",
    "white space": " \n\t" * 1_000,
    "other languages": LANGUAGES * 5,
    "refusal": "I cannot answer this question from what is shown.",
    "the form shown back": FORM,
    "huge": "nothing to see " * 70_000,
    "one word without end": "a" * 1_000_000 + "!",
    "reasoning without end": "<think>" + "The picture was looked at. " * 2_000,
    "tags and nothing in them": "<think></think>\n<answer></answer>",
    "tags a thousand times": "<think></think><answer></answer>" * 1_000,
    "answers without end": r"\boxed{" * 10_000,
    "braces": r"\boxed{" + "{" * 50_000 + "}" * 50_000,
    "nested JSON": f"{THINK}\n```json\n" + "[" * 100_000,
    "fences": "```json\n" * 20_000,
    "numbers that are none": f"{THINK}\n```json\n{NO_NUMBERS}\n```\n\\boxed{{}}",
    "control characters": "\x00\x07\x1b[2J\u202e\ufeff\u200b" * 200,
    "code": r"\boxed{__import__('os').abort()} {{7*7}} ${7*7} %s%n '; DROP TABLE cases; --",
}


def adversaries(case: Case, task: Task, frame: BoxFrame) -> dict[str, str]:
    """By name. Those that need a wrong label are left out where every label is right."""
    out = {**TEXTS, "prompt copied": task.prompt(case)}
    if form.pictures(case):
        out["unclosed JSON"] = f"{_boxed(case, frame, list(islice(grid(), 9)))[:-5]}"
    out |= dict(_wrong(case, frame))
    if set(case.target.labels or ()) != set(case.label_space):
        out |= dict(_everything(case, frame))
    return out


def guesses(case: Case, frame: BoxFrame) -> list[str]:
    """Each label of the space in turn, in the right form: what an honest guess is worth."""
    return [
        f"{_boxed(case, frame, [(0.25, 0.25, 0.75, 0.75)], label)}\n{_answer([label])}" for label in case.label_space
    ]


def flood(case: Case, frame: BoxFrame) -> str:
    """The right answer, with as many boxes of its label as are read: what they add is what flooding pays."""
    labels = case.target.labels or ()
    return f"{_boxed(case, frame, list(islice(grid(), MAX_BOXES)), ', '.join(labels))}\n{_answer(labels)}"


def grid() -> Iterator[tuple[float, float, float, float]]:
    """Boxes that cover the picture in 1, 4, 9, .. parts."""
    side = 1
    while True:
        cuts = [index / side for index in range(side + 1)]
        for row in range(side):
            yield from ((cuts[at], cuts[row], cuts[at + 1], cuts[row + 1]) for at in range(side))
        side += 1


def _wrong(case: Case, frame: BoxFrame) -> Iterator[tuple[str, str]]:
    """With an answer that is not right, or none where the case asks for boxes alone."""
    wrong = next((label for label in case.label_space if label not in (case.target.labels or ())), None)
    if wrong is None and case.label_space:
        return
    label, answer = wrong or "finding", "" if wrong is None else _answer([wrong])
    small = [(0.0, 0.0, 0.02, 0.02)]
    yield "wrong answer in the right form", f"{_boxed(case, frame, small, label)}\n{answer}"
    yield "wrong answer after long reasoning", f"<think>{'Step by step. ' * 5_000}</think>\n{answer}"
    if form.pictures(case):
        everywhere = [(0.0, 0.0, 1.0, 1.0)]
        yield "one box over all", f"{_boxed(case, frame, everywhere, label)}\n{answer}"
        yield f"{BOXES:,} boxes", f"{_boxed(case, frame, list(islice(grid(), BOXES)), label)}\n{answer}"
        yield "a box a hundred times", f"{_boxed(case, frame, everywhere * 100, label)}\n{answer}"
    if wrong is not None:
        yield "a wrong label repeated", f"{THINK}\n{_answer([wrong] * 1_000)}"
        yield "answers repeated", f"{THINK}\n{_answer([wrong])}" * 500
        yield "all labels denied", f"{THINK}\n{_answer([f'no {one}' for one in case.label_space])}"


def _everything(case: Case, frame: BoxFrame) -> Iterator[tuple[str, str]]:
    """With every label there is."""
    space = case.label_space
    yield "label list copied", _answer(space)
    yield (
        "label list copied, in the right form",
        f"{_boxed(case, frame, [(0, 0, 1, 1)], ', '.join(space))}\n{_answer(space)}",
    )
    yield "labels with or", f"{THINK}\n{_answer([' or '.join(space)])}"
    wrong_last = sorted(space, key=lambda label: label not in (case.target.labels or ()))
    yield "an answer for each label", "\n".join([THINK, *(_answer([label]) for label in wrong_last)])
    yield "labels in the reasoning", f"<think>{', '.join(space)}</think>"


def _boxed(
    case: Case, frame: BoxFrame, corners: Sequence[tuple[float, float, float, float]], label: str = "finding"
) -> str:
    known = form.pictures(case)
    if not known:
        return THINK
    boxes = [Box(*four, label=label, medium=known[0]) for four in corners]
    return f"{THINK}\n{form.write_boxes(boxes, case, frame)}"


def _answer(labels: Sequence[str]) -> str:
    return rf"\boxed{{{', '.join(labels)}}}"
