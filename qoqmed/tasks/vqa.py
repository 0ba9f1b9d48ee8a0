r"""Visual question answering: a short answer in \boxed{}, which `exact_match` compares with what is right.

What is right is the first of these that the case has: labels of a closed space, which the prompt then lists; a value; a
text. No boxes are asked for.
"""

from __future__ import annotations

from collections.abc import Mapping

from qoqmed.contracts import BoxFrame
from qoqmed.reading import labels_of, parse
from qoqmed.tasks import form
from qoqmed.tasks.diagnosis import QUESTION, check_labels
from qoqmed.types import Answer, Case, Reading


class Vqa:
    """questions: by domain, for cases without a text. instruction: the form of the answer, in place of ours."""

    name = "vqa"

    def __init__(
        self,
        questions: Mapping[str, str] | None = None,
        instruction: str = rf"{form.THINK}, answer in \boxed{{}}.",
        reasoning: str = form.REASONING,
    ) -> None:
        self.questions: Mapping[str, str] = questions or {}
        self.instruction = instruction
        self.reasoning = reasoning

    def prompt(self, case: Case) -> str:
        question = case.text.strip() or self.questions.get(case.domain) or form.ask(QUESTION, case)
        choices = f"Choose from: {', '.join(case.label_space)}. " if case.label_space else ""
        return f"{question} {choices}{self.instruction}".rstrip()

    def target(self, case: Case, frame: BoxFrame) -> str:
        self.check(case)
        answer = _answer(case)
        own = case.target.text if answer != (case.target.text or "").strip() else None
        return f"{form.think(own, self.reasoning)}\n{_boxed(answer)}"

    def read(self, text: str, case: Case, frame: BoxFrame) -> Reading:
        parsed = parse(text)
        boxes, box_flaws = form.read_boxes(parsed, case, frame)
        flaws = (*parsed.flaws, *box_flaws)
        if parsed.answer is None or not case.label_space:
            return Reading(parsed.reasoning, boxes, Answer(text=parsed.answer), flaws)
        labels, label_flaws = labels_of(parsed.answer, case)
        return Reading(parsed.reasoning, boxes, Answer(labels, parsed.answer), flaws + label_flaws)

    def check(self, case: Case) -> None:
        """There is an answer, and it reads back as itself."""
        if case.label_space:
            check_labels(case)
        answer = _answer(case)
        if not answer:
            mend = "give the row an 'answer' (our rows: 'text', 'labels' or 'value')"
            raise form.row_error(case, "the question has no answer", expected="labels, a value or a text", mend=mend)
        if parse(_boxed(answer)).answer != answer:
            expected = "a text whose braces are balanced"
            raise form.row_error(case, "the answer does not read back from a response", repr(answer[:200]), expected)
        form.check_regions(case)


def _answer(case: Case) -> str:
    target = case.target
    if case.label_space:
        return ", ".join(target.labels or ())
    return (target.text or "").strip() if target.value is None else f"{target.value:.15g}"


def _boxed(answer: str) -> str:
    return rf"\boxed{{{answer}}}"
