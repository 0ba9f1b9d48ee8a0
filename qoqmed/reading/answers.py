r"""The final answer of a response: inside the last \boxed{}, else inside <answer></answer>, else the last answer line.

An answer line starts with "Answer:", "Final answer:", "The answer is", whatever marks stand around; where nothing
follows, the next line is meant. Both of these are repairs, with a flaw of their own beside `boxed_missing`. What stands
after the reasoning goes before what stands in it.
"""

from __future__ import annotations

import re

from qoqmed.types import Flaw

DETAIL = 80  # characters of the text that a flaw quotes

BRACES = re.compile(r"\{|\}|\\(?:[{}]|boxed\s*\{)")  # alternatives that each start with a literal: 3 times faster
OPEN, CLOSE = "<answer>", "</answer>"
LINE = re.compile(
    r"[\s*#>_\-]{0,8}(?:(?:the|my) )?(?:(?:final|correct) )?answer[\s*_]{0,4}(?:is\b|[:：])[\s*_:：]{0,8}",
    re.IGNORECASE,
)
MARKS = " \t*_`"


def find_answer(text: str, start: int, flaws: list[Flaw]) -> str | None:
    """The answer's text; None: there is none. start: where the reasoning ends."""
    spans, unclosed = _boxed(text)
    if unclosed:
        flaws.append(Flaw("boxed_unclosed"))
    if spans and spans[-1][0] >= start:
        if len(spans) > 1 and spans[-2][0] >= start:
            flaws.append(Flaw("boxed_repeated", text[slice(*spans[-2])][:DETAIL]))
        return text[slice(*spans[-1])].strip()
    for kind, found in (("answer_tag", _tagged(text, start, flaws)), ("answer_line", _line(text, start))):
        if found is not None:
            flaws += [Flaw("boxed_in_think" if spans else "boxed_missing"), Flaw(kind, found[:DETAIL])]
            return found
    if spans:
        flaws.append(Flaw("boxed_in_think"))
        return text[slice(*spans[-1])].strip()
    flaws.append(Flaw("boxed_missing"))
    return None


def _boxed(text: str) -> tuple[list[tuple[int, int]], bool]:
    r"""Insides of all complete outermost \boxed{}, and whether one is not closed.

    Braces are counted, escaped ones are plain text.
    """
    spans: list[tuple[int, int]] = []  # outermost so far: an outer one replaces those inside it
    stack: list[tuple[bool, int]] = []  # open braces: whether of \boxed, and where their content starts
    for match in BRACES.finditer(text):
        token = match.group()
        if token == "}":
            boxed, start = stack.pop() if stack else (False, 0)
            if boxed:
                while spans and spans[-1][0] > start:
                    spans.pop()
                spans.append((start, match.start()))
        elif token[-1] == "{" and token != "\\{":
            stack.append((token != "{", match.end()))
    return spans, any(boxed for boxed, _ in stack)


def _tagged(text: str, start: int, flaws: list[Flaw]) -> str | None:
    """The inside of the last complete pair of tags."""
    stop = text.rfind(CLOSE, start)
    opened = text.rfind(OPEN, start, stop) if stop >= 0 else -1
    if opened >= 0:
        return text[opened + len(OPEN) : stop].strip()
    if text.find(OPEN, start) >= 0:
        flaws.append(Flaw("answer_unclosed"))
    return None


def _line(text: str, start: int) -> str | None:
    following = ""
    for line in reversed(text[start:].splitlines()):
        match = LINE.match(line)
        if match:
            return line[match.end() :].strip(MARKS) or following or None
        following = line.strip(MARKS) or following
    return None
