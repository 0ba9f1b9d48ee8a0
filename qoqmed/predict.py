"""One question about media on disk: what a policy answers, and where on the pictures it points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qoqmed import asking, registry
from qoqmed.actor import Actor
from qoqmed.asking import Given
from qoqmed.build import load
from qoqmed.config.schema import Node
from qoqmed.contracts import BoxFrame, Task
from qoqmed.errors import Problem, UserError, near
from qoqmed.media.window import Pixels
from qoqmed.policy.prompting import Prompter
from qoqmed.reading import clashes, parse
from qoqmed.registry.arguments import check, within
from qoqmed.report import overlay as drawing
from qoqmed.tasks import form
from qoqmed.types import Answer, Case, Group, Reading, Rollout, Sampling, Target

ASKED = "predict"  # id of the case, name of its task
UNASKED = ("think_missing", "boxed_missing", "answer_line", "answer_tag")  # flaws of a form that nobody asked for


@dataclass(frozen=True)
class Predicted:
    """An answer. case: the question with its media as arrays. files: what was given, in order.

    pictures: place of a medium -> its pictures [H, W, 3] uint8, as loaded: boxes of `reading` lie on them.
    """

    case: Case
    files: tuple[str, ...]
    rollout: Rollout
    reading: Reading
    pictures: Mapping[int, Sequence[Pixels]]

    @property
    def mean_log_prob(self) -> float | None:
        """Of the response's tokens, in nats; None without one."""
        values = self.rollout.log_probs
        return sum(values) / len(values) if values else None


class Question:
    """Task without a target: a diagnosis where the case has a label space, else the question as it is."""

    name = ASKED

    def __init__(self) -> None:
        self.closed: Task = registry.make("tasks", Node("diagnosis"))

    def prompt(self, case: Case) -> str:
        return self.closed.prompt(case) if case.label_space else case.text

    def target(self, case: Case, frame: BoxFrame) -> str:
        return self.closed.target(case, frame)  # which refuses: what is right is not known

    def read(self, text: str, case: Case, frame: BoxFrame) -> Reading:
        """Free answers: the boxed one, else what follows the reasoning."""
        if case.label_space:
            return self.closed.read(text, case, frame)
        parsed = parse(text)
        boxes, flaws = form.read_boxes(parsed, case, frame)
        kept = tuple(flaw for flaw in parsed.flaws if flaw.kind not in UNASKED)
        answer = text.rpartition("</think>")[2].strip() if parsed.answer is None else parsed.answer
        return Reading(parsed.reasoning, boxes, Answer(text=answer), kept + flaws)

    def check(self, case: Case) -> None:
        for label in clashes(case.label_space):
            raise UserError(Problem(f"the label {label!r} reads like another one, or like nothing", "--label"))


def predict(
    target: str | Path,
    question: str = "",
    media: Sequence[Given] = (),
    *,
    domain: str = "",
    labels: Sequence[str] = (),
    overlay: str | Path | None = None,
    max_new_tokens: int | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    overrides: Sequence[str] = (),
) -> Predicted:
    """Ask a run, a model folder or a recipe's untrained policy.

    media: in prompt order, such as ("image", "scan.png"); a file's own folder is its data root. labels: the allowable
    ones; without them the question goes as it is. question: left out, the domain's own is asked. overlay: a PNG file to
    draw the boxes into. temperature: 0 is greedy. Raises UserError for wrong input.
    """
    check(within("--temperature", temperature, low=0), within("--seed", seed, low=0))
    check(within("--max-new-tokens", 1 if max_new_tokens is None else max_new_tokens, low=1))
    shown = [asking.medium_of(given) for given in media]
    places = [asking.place_of(medium) for medium in shown]
    picture = None if overlay is None else asking.overlay_file(Path(overlay), shown)
    text = question.strip() or _phrased(domain)
    actor, recipe = load(target, overrides)
    actor.handle.policy.eval()
    loaded, pictures = asking.decode(actor.prompter.processor, shown, places)
    case = Case(ASKED, domain, "", ASKED, text, loaded, tuple(labels), Target())
    rollout = recipe.rollout
    longest = max_new_tokens or rollout.max_new_tokens
    sampling = Sampling(1, temperature, rollout.top_p, rollout.top_k, longest)
    try:
        made, reading = _ask(actor, case, sampling, seed)
    finally:
        actor.close()
    predicted = Predicted(case, tuple(medium.path or "array" for medium in shown), made, reading, pictures)
    if picture is not None:
        boxes = {at: [box for box in reading.boxes if box.medium == at] for at in pictures}
        drawing.draw([(one, boxes[at]) for at, of in pictures.items() for one in of]).save(picture)
    return predicted


def _ask(actor: Actor, case: Case, sampling: Sampling, seed: int) -> tuple[Rollout, Reading]:
    prompter = actor.prompter
    own = Prompter(prompter.model, prompter.processor, {ASKED: Question()}, root=Path())
    actor = replace(actor, prompter=own, modalities=None)  # what is given is asked about
    admitted = actor.admit([(_Only(case), 0)])
    for error in admitted.refused:
        raise error
    step = actor.at(admitted, sampling, seed, ASKED)
    ((rollout,),) = step.generate(admitted.cases, admitted.prompts)
    (group,) = step.read([Group(admitted.cases[0], admitted.prompts[0], (rollout,))])
    return rollout, group.readings[0]


class _Only:
    """A data set of one case."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.domains: Sequence[str] = (case.domain,)

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Case:
        return self.case


def _phrased(domain: str) -> str:
    known = [info.name for info in registry.available("domains")]
    if domain in known:
        return str(registry.make("domains", Node(domain)).phrasings[0])
    mend = near(domain, known) or "put a question in quotes at the end"
    raise UserError(Problem("there is no question", "QUESTION", expected="a text, or a known --domain", mend=mend))
