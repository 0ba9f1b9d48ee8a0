r"""The parser of responses: reasoning in <think></think>, boxes in json (`boxes`), the final answer (`answers`).

Never raises on a response: what is wrong or was mended becomes a `Flaw`. Time is linear in the text on any input: every
pass is a `str.find`, `json`'s own scanner a bounded number of times, or a regular expression without nested repetition.
Labels: see `labels`.

Kinds of flaw: too_long, think_missing, think_unopened, think_unclosed, think_repeated, json_unclosed, json_invalid,
json_shape, json_repaired, json_unfenced, json_repeated, box_invalid, too_many_boxes, boxed_missing, boxed_unclosed,
boxed_repeated, boxed_in_think, answer_tag, answer_line, answer_unclosed, more_flaws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qoqmed.reading.answers import find_answer
from qoqmed.reading.boxes import RawBox, read_boxes
from qoqmed.types import Flaw

MAX_CHARACTERS = 262_144
MAX_FLAWS = 50

OPEN, CLOSE = "<think>", "</think>"


@dataclass(frozen=True)
class Parsed:
    r"""What a response says, before the case is known. answer: text of the final answer, None without one."""

    reasoning: str = ""
    boxes: tuple[RawBox, ...] = ()
    answer: str | None = None
    flaws: tuple[Flaw, ...] = ()


def parse(text: str) -> Parsed:
    """Reads a whole response. Flaws, each once, in the order: length, think, json and boxes, answer."""
    flaws: list[Flaw] = []
    if len(text) > MAX_CHARACTERS:
        flaws.append(Flaw("too_long", f"{len(text)} characters, read {MAX_CHARACTERS}"))
        text = text[:MAX_CHARACTERS]
    reasoning, answer_start = _think(text, flaws)
    boxes = read_boxes(text, flaws)
    answer = find_answer(text, answer_start, flaws)
    return Parsed(reasoning, boxes, answer, distinct(flaws))


def distinct(flaws: Sequence[Flaw]) -> tuple[Flaw, ...]:
    """Each flaw once; where these are more than `MAX_FLAWS`, one of each kind, the first others, and their number."""
    once = tuple(dict.fromkeys(flaws))
    if len(once) <= MAX_FLAWS:
        return once
    firsts = set({flaw.kind: flaw for flaw in reversed(once)}.values())
    others = [flaw for flaw in once if flaw not in firsts][: max(MAX_FLAWS - len(firsts), 0)]
    chosen = firsts.union(others)
    kept = tuple(flaw for flaw in once if flaw in chosen)
    return (*kept, Flaw("more_flaws", f"{len(once) - len(kept)} more"))


def _think(text: str, flaws: list[Flaw]) -> tuple[str, int]:
    """The reasoning, and where the text after it starts."""
    opened, closed = text.find(OPEN), text.find(CLOSE)
    if text.find(OPEN, opened + 1) > opened >= 0 or text.find(CLOSE, closed + 1) > closed >= 0:
        flaws.append(Flaw("think_repeated"))
    if opened < 0 and closed < 0:
        flaws.append(Flaw("think_missing"))
        return "", 0
    if closed < 0:
        flaws.append(Flaw("think_unclosed"))
        return text[opened + len(OPEN) :].strip(), opened
    if opened < 0 or opened > closed:
        flaws.append(Flaw("think_unopened"))
        return text[:closed].strip(), closed + len(CLOSE)
    return text[opened + len(OPEN) : closed].strip(), closed + len(CLOSE)
