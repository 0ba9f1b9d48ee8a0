"""Where is it: boxes only, for cases with boxes or a mask and no labels (`isic2017`: masks alone)."""

from __future__ import annotations

from qoqmed.contracts import BoxFrame
from qoqmed.reading import parse
from qoqmed.tasks import form
from qoqmed.types import Answer, Case, Reading

QUESTION = "Localise the finding in this {domain} study."


class Grounding:
    """question: for cases without a text. label: of gold boxes without one. instruction: in place of our form."""

    name = "grounding"

    def __init__(
        self,
        question: str = QUESTION,
        instruction: str | None = None,
        label: str = "finding",
        reasoning: str = form.REASONING,
    ) -> None:
        self.question = question
        self.instruction = instruction
        self.label = label
        self.reasoning = reasoning

    def prompt(self, case: Case) -> str:
        question = case.text.strip() or form.ask(self.question, case)
        several = form.SEVERAL if len(form.pictures(case)) > 1 else ""
        ours = f"{form.THINK}, then answer with {form.BOXES}{several}."
        return f"{question} {ours if self.instruction is None else self.instruction}".rstrip()

    def target(self, case: Case, frame: BoxFrame) -> str:
        self.check(case)
        if not case.target.boxes:
            mend = "let the data set derive boxes from the mask"
            raise form.row_error(case, "a gold response needs boxes", "a mask only", mend=mend)
        boxes = form.labelled(case.target.boxes, self.label)
        return f"{form.think(case.target.text, self.reasoning)}\n{form.write_boxes(boxes, case, frame)}"

    def read(self, text: str, case: Case, frame: BoxFrame) -> Reading:
        parsed = parse(text)
        boxes, flaws = form.read_boxes(parsed, case, frame)
        kept = tuple(flaw for flaw in parsed.flaws if flaw.kind != "boxed_missing")
        return Reading(parsed.reasoning, boxes, Answer(text=parsed.answer), kept + flaws)

    def check(self, case: Case) -> None:
        if not form.pictures(case):
            raise form.row_error(case, "nothing to localise on", expected="an image, a volume or a video")
        if not case.target.boxes and case.target.mask is None:
            raise form.row_error(case, "neither boxes nor a mask", expected="target boxes or a mask to localise")
        form.check_regions(case)
