"""A report, or any longer text: all that follows the reasoning, which `rouge` compares with the case's text.

A response that puts it in \\boxed{} or <answer></answer> is read as well; boxes in json (a grounded report) are no part
of the text.
"""

from __future__ import annotations

from qoqmed.contracts import BoxFrame
from qoqmed.reading import MAX_CHARACTERS, Parsed, parse
from qoqmed.tasks import form
from qoqmed.types import Answer, Case, Reading

QUESTION = "Write the report of this {domain} study."
UNASKED = frozenset({"boxed_missing", "answer_line", "answer_tag"})  # flaws of a form that nobody asked for
FENCE = "```"


class Report:
    """question: for cases without a text of their own. instruction: the form of the answer, in place of ours."""

    name = "report"

    def __init__(
        self,
        question: str = QUESTION,
        instruction: str = f"{form.THINK}, then answer in plain text.",
        reasoning: str = form.REASONING,
    ) -> None:
        self.question = question
        self.instruction = instruction
        self.reasoning = reasoning

    def prompt(self, case: Case) -> str:
        return f"{case.text.strip() or form.ask(self.question, case)} {self.instruction}".rstrip()

    def target(self, case: Case, frame: BoxFrame) -> str:
        self.check(case)
        return f"{form.think(None, self.reasoning)}\n{(case.target.text or '').strip()}"

    def read(self, text: str, case: Case, frame: BoxFrame) -> Reading:
        parsed = parse(text)
        boxes, box_flaws = form.read_boxes(parsed, case, frame)
        kept = tuple(flaw for flaw in parsed.flaws if flaw.kind not in UNASKED)
        return Reading(parsed.reasoning, boxes, Answer(text=_written(text[:MAX_CHARACTERS], parsed)), kept + box_flaws)

    def check(self, case: Case) -> None:
        text = (case.target.text or "").strip()
        if not text:
            mend = "give the row a 'text', or leave it out with `unless`"
            raise form.row_error(case, "there is no report to learn from", expected="a text", mend=mend)
        if any(mark in text for mark in ("<think>", "</think>")):
            raise form.row_error(case, "the report holds the tags of the reasoning", repr(text[:200]))
        form.check_regions(case)


def _written(text: str, parsed: Parsed) -> str | None:
    """None: the reasoning does not end, or nothing follows it."""
    kinds = {flaw.kind for flaw in parsed.flaws}
    if "answer_tag" in kinds or kinds.isdisjoint({"boxed_missing", "boxed_in_think"}):
        return parsed.answer
    if "think_unclosed" in kinds:
        return None
    parts = text.partition("</think>")[2].split(FENCE) if "</think>" in text else text.split(FENCE)
    plain = (part for place, part in enumerate(parts) if place % 2 == 0 or not _is_json(part))
    return "".join(plain).strip() or None


def _is_json(part: str) -> bool:
    return part.lstrip()[:4].lower() == "json" or part.lstrip()[:1] in ("[", "{")
