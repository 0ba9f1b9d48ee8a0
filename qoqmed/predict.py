"""One question about media on disk: what a policy answers, and where on the pictures it points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qoqmed import registry
from qoqmed.actor import Actor
from qoqmed.build import load
from qoqmed.config.schema import Node
from qoqmed.contracts import BoxFrame, Task
from qoqmed.errors import Problem, UserError, near
from qoqmed.media.paths import resolve
from qoqmed.media.refusals import of_row
from qoqmed.media.window import Pixels
from qoqmed.policy.prompting import Prompter
from qoqmed.reading import clashes, parse
from qoqmed.registry.arguments import check, within
from qoqmed.report import overlay as drawing
from qoqmed.tasks import form
from qoqmed.types import SPATIAL, Answer, Case, Group, Medium, Reading, Rollout, Sampling, Target

ASKED = "predict"  # id of the case, name of its task
UNASKED = ("think_missing", "boxed_missing")  # flaws of an answer whose form nobody asked for

Given = str | Path | npt.NDArray[Any]  # a file, or an array as `qoqmed.types.Medium` holds it


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
        raise NotImplementedError("what is right is not known")

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
    media: Sequence[tuple[str, Given]] = (),
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

    media: (modality, file or array) in prompt order; a file's own folder is its data root. labels: the allowable ones;
    without them the question goes as it is. question: left out, the domain's own is asked. overlay: a PNG file to draw
    the boxes into. temperature: 0 is greedy. Raises UserError for wrong input.
    """
    check(within("--temperature", temperature, low=0), within("--seed", seed, low=0))
    check(within("--max-new-tokens", 1 if max_new_tokens is None else max_new_tokens, low=1))
    places = [_place(modality, given) for modality, given in media]
    picture = None if overlay is None else _overlay_file(Path(overlay), media)
    text = question.strip() or _phrased(domain)
    actor, recipe = load(target, overrides)
    actor.handle.policy.eval()
    loaded, pictures = _load(actor, media, places)
    case = Case(ASKED, domain, "", ASKED, text, loaded, tuple(labels), Target())
    rollout = recipe.rollout
    longest = max_new_tokens or rollout.max_new_tokens
    sampling = Sampling(1, temperature, rollout.top_p, rollout.top_k, longest)
    made, reading = _ask(actor, case, sampling, seed)
    files = tuple(str(given) if isinstance(given, str | Path) else "array" for _, given in media)
    predicted = Predicted(case, files, made, reading, pictures)
    if picture is not None:
        shown = [(one, [box for box in reading.boxes if box.medium == at]) for at, of in pictures.items() for one in of]
        drawing.draw(shown).save(picture)
    return predicted


def _ask(actor: Actor, case: Case, sampling: Sampling, seed: int) -> tuple[Rollout, Reading]:
    prompter = actor.prompter
    asking = Prompter(prompter.model, prompter.processor, {ASKED: Question()}, root=Path())
    actor = replace(actor, prompter=asking, on_error="stop")
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


def _place(modality: str, given: Given) -> tuple[Path, str] | None:
    """(folder, name in it) of a file that is there; None for an array."""
    if not isinstance(given, str | Path):
        return None
    with of_row(f"--{modality} {given}"):
        if "://" in str(given):
            resolve(".", str(given))  # which refuses it, and says why
        full = Path(given).expanduser().resolve()
        resolve(full.parent, full.name)
    return full.parent, full.name


def _overlay_file(path: Path, media: Sequence[tuple[str, Given]]) -> Path:
    """Raises UserError where the overlay could not be written, or would replace a medium."""
    problem = None
    if path.suffix.lower() != ".png":
        problem = Problem("the overlay is a PNG file", "--overlay", str(path), "a name that ends in .png")
    elif not path.resolve().parent.is_dir() or path.is_dir():
        problem = Problem("the overlay cannot be written there", "--overlay", str(path), "a file in an existing folder")
    elif any(isinstance(given, str | Path) and Path(given).resolve() == path.resolve() for _, given in media):
        problem = Problem("the overlay would replace a picture that is asked about", "--overlay", str(path))
    elif not any(modality in SPATIAL for modality, _ in media):
        problem = Problem("there is no picture to draw boxes on", "--overlay", expected="--image, --volume or --video")
    if problem is not None:
        raise UserError(problem)
    return path


def _phrased(domain: str) -> str:
    known = [info.name for info in registry.available("domains")]
    if domain in known:
        return str(registry.make("domains", Node(domain)).phrasings[0])
    mend = near(domain, known) or "put a question in quotes at the end"
    raise UserError(Problem("there is no question", "QUESTION", expected="a text, or a known --domain", mend=mend))


def _load(
    actor: Actor, media: Sequence[tuple[str, Given]], places: Sequence[tuple[Path, str] | None]
) -> tuple[tuple[Medium, ...], dict[int, Sequence[Pixels]]]:
    """The media as arrays, and the pictures among them by place."""
    processor = actor.prompter.processor
    known = sorted(SPATIAL | set(processor.readers))
    for modality, _ in media:
        if modality not in known:
            mend = near(modality, [*known, "domain", "label", "overlay", "json", "raw", "seed", "temperature"])
            expected = ", ".join(f"--{name}" for name in known)
            raise UserError(Problem("the model reads no such modality", f"--{modality}", modality, expected, mend))
    loaded, pictures = list[Medium](), dict[int, Sequence[Pixels]]()
    for index, ((modality, given), place) in enumerate(zip(media, places, strict=True)):
        with of_row(f"--{modality} {given if place else 'array'}"):
            if modality in SPATIAL:
                folder, name = place or (Path(), None)
                medium = Medium(modality, name, None if place else np.asarray(given))
                pictures[index] = processor.pictures(medium, folder)
                array = pictures[index][0] if modality == "image" else np.stack(pictures[index])
            else:
                array = processor.readers[modality].load(resolve(*place), {}) if place else np.asarray(given)
        loaded.append(Medium(modality, array=array))
    return tuple(loaded), pictures


def split_words(words: Sequence[str]) -> tuple[str, str, list[tuple[str, str]]]:
    """Words of the command line, `RUN --image F --ecg F QUESTION` -> target, question, media in their order."""
    plain, media, left = list[str](), list[tuple[str, str]](), iter(words)
    for word in left:
        if not word.startswith("--"):
            plain.append(word)
            continue
        modality, joined, value = word[2:].partition("=")
        if not joined:
            value = next(left, "")
        if not value or (not joined and value.startswith("--")):
            raise UserError(Problem("the option needs a file", word, value, f"{word} FILE"))
        media.append((modality, value))
    if len(plain) > 2:
        mend = "put the question in quotes, and the option before every file: --image a.png --image b.png"
        raise UserError(Problem("too many words", "QUESTION", " | ".join(plain[1:]), "one question", mend))
    target, question = (*plain, "", "")[:2]
    if not target:
        raise UserError(Problem("nothing is named to ask", "RUN|DIR", expected="a run, a model folder or a recipe"))
    return target, question, media
