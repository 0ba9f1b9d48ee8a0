r"""Labels of a closed space, with the boxes that show them (QoQ-Med, App. C.1). One label or several.

The answer stands in \boxed{}, joined by ", ". Labels of the case's space are read, by name or by a
declared synonym; other words are a flaw.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from qoqmed.contracts import BoxFrame
from qoqmed.errors import near
from qoqmed.reading import clashes, labels_of, match_labels, parse, synonyms_of
from qoqmed.tasks import form
from qoqmed.types import Answer, Box, Case, Reading

QUESTION = "Shown above is a {domain} study. State what it shows."


class Diagnosis:
    """questions: by domain, for cases without a text. instruction: the form of the answer, in place of ours."""

    name = "diagnosis"

    def __init__(
        self,
        questions: Mapping[str, str] | None = None,
        instruction: str | None = None,
        reasoning: str = form.REASONING,
    ) -> None:
        self.questions: Mapping[str, str] = questions or {}
        self.instruction = instruction
        self.reasoning = reasoning

    def prompt(self, case: Case) -> str:
        question = case.text.strip() or self.questions.get(case.domain) or form.ask(QUESTION, case)
        instruction = _instruction(case) if self.instruction is None else self.instruction
        return f"{question} Choose from: {', '.join(case.label_space)}. {instruction}".rstrip()

    def target(self, case: Case, frame: BoxFrame) -> str:
        self.check(case)
        answer = ", ".join(case.target.labels or ())
        parts = [form.think(case.target.text, self.reasoning)]
        if case.target.boxes:
            boxes = [_diagnostic(box, answer, case) for box in case.target.boxes]
            parts.append(form.write_boxes(boxes, case, frame))
        return "\n".join([*parts, rf"\boxed{{{answer}}}"])

    def read(self, text: str, case: Case, frame: BoxFrame) -> Reading:
        parsed = parse(text)
        boxes, box_flaws = form.read_boxes(parsed, case, frame)
        flaws = (*parsed.flaws, *box_flaws)
        if parsed.answer is None:
            return Reading(parsed.reasoning, boxes, Answer(), flaws)
        labels, label_flaws = labels_of(parsed.answer, case)
        return Reading(parsed.reasoning, boxes, Answer(labels, parsed.answer), flaws + label_flaws)

    def check(self, case: Case) -> None:
        """The case has labels, all of its label space, and they read back as themselves from an answer."""
        check_labels(case)
        form.check_regions(case)


def check_labels(case: Case) -> None:
    """Raises DataError, naming the row, where `Diagnosis.check` does for its labels."""
    space, labels = case.label_space, case.target.labels
    if not labels:
        mend = "give the row labels, or use task: grounding for a case with boxes or a mask only"
        raise form.row_error(case, "labels are empty", expected="at least one label", mend=mend)
    for label in clashes(space):
        raise form.row_error(case, f"label {label!r} of the space reads like another one, or like nothing")
    for label in labels:
        if label not in space:
            expected = f"one of {', '.join(space) or 'no labels: the space is empty'}"
            raise form.row_error(case, "label outside its space", repr(label), expected, near(label, space))
    if match_labels(", ".join(labels), space, synonyms_of(case)) != (tuple(labels), ()):
        expected = "distinct labels whose list, joined by commas, reads back as itself"
        raise form.row_error(case, "labels cannot be told apart in an answer", repr(labels), expected)


def _instruction(case: Case) -> str:
    number = len(form.pictures(case))
    boxes = f", give {form.BOXES}{form.SEVERAL if number > 1 else ''}" if number else ""
    return rf"{form.THINK}{boxes}, answer in \boxed{{}}."


def _diagnostic(box: Box, answer: str, case: Case) -> Box:
    """A box shows a label of the space; a box named otherwise ("left lung") or not at all shows the whole answer."""
    return box if labels_of(box.label, case)[0] else replace(box, label=answer)
