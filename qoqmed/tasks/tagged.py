r"""MedMO's form of a response: <think></think><answer></answer>. Labels of a closed space, or boxes alone.

    <think>reasoning</think>
    ```json
    [{"bbox_2d": [x1, y1, x2, y2], "label": "..."}]
    ```
    <answer>label, label</answer>

A case without a label space is grounding: its boxes stand inside the answer. The paper prints no prompt; its tag count
says that there are four tags, and this is the form of open-r1, from which that reward comes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from qoqmed.contracts import BoxFrame
from qoqmed.tasks import form
from qoqmed.tasks.diagnosis import Diagnosis
from qoqmed.tasks.grounding import Grounding
from qoqmed.types import Case, Reading

ANSWER = "<answer></answer>"
UNASKED = frozenset({"boxed_missing", "answer_tag"})


class Tagged:
    """questions: by domain, for cases without a text. label: of gold boxes without one, in grounding."""

    name = "tagged"

    def __init__(
        self, questions: Mapping[str, str] | None = None, label: str = "finding", reasoning: str = form.REASONING
    ) -> None:
        self.closed = Diagnosis(questions, instruction="", reasoning=reasoning)
        self.grounding = Grounding(instruction="", label=label, reasoning=reasoning)

    def prompt(self, case: Case) -> str:
        number = len(form.pictures(case))
        boxes = f"{form.BOXES}{form.SEVERAL if number > 1 else ''}"
        if not case.label_space:
            return f"{self.grounding.prompt(case)} {form.THINK}, then give {boxes} in {ANSWER}."
        wanted = f", then {boxes}" if number else ""
        return f"{self.closed.prompt(case)} {form.THINK}{wanted}, then the answer in {ANSWER}."

    def target(self, case: Case, frame: BoxFrame) -> str:
        if not case.label_space:
            thought, closing, boxes = self.grounding.target(case, frame).rpartition("</think>\n")
            return f"{thought}{closing}<answer>\n{boxes}\n</answer>"
        answer = ", ".join(case.target.labels or ())
        before = self.closed.target(case, frame).removesuffix(rf"\boxed{{{answer}}}")
        return f"{before}<answer>{answer}</answer>"

    def read(self, text: str, case: Case, frame: BoxFrame) -> Reading:
        r"""An answer in \boxed{} is read as well: the tags are the business of `tag_count`."""
        reading = (self.closed if case.label_space else self.grounding).read(text, case, frame)
        if not any(flaw.kind == "answer_tag" for flaw in reading.flaws):
            return reading
        return replace(reading, flaws=tuple(flaw for flaw in reading.flaws if flaw.kind not in UNASKED))

    def check(self, case: Case) -> None:
        (self.closed if case.label_space else self.grounding).check(case)
