"""Free text -> labels of a closed space, and nothing else: no guess, no word cut in two, no negated finding.

A text is cut into words and a few signs; case, spaces, hyphens and other punctuation do not matter. A label matches
where its words stand in a row, whole; longer labels match first, so "hand fracture and edema" stays one label unless
only its parts are in the space. A label "conduction delay (CD)" also answers to "conduction delay" and to "CD" where
no other label does. "no edema" and "edema: no" do not name "edema".
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache

from qoqmed.types import Flaw

MAX_ANSWER = 4_096  # characters of an answer that are read
DETAIL = 80  # characters of the text that a flaw quotes

WORDS = re.compile(r"\d+\.\d+|[^\W_]+|[<>≤≥=+%,;]")
COMMANDS = re.compile(r"\\[a-zA-Z]+")  # LaTeX: \text{...}
SIGNS = (("\\geq", "≥"), ("\\ge", "≥"), ("\\leq", "≤"), ("\\le", "≤"), (">=", "≥"), ("<=", "≤"), ("&", " and "))
SHORT = re.compile(r"(.+)\(([^()]+)\)\s*")  # "conduction delay (CD)"
BREAKS = frozenset({",", ";", "but"})  # where a negation's reach ends
JOINS = frozenset({"and", "or", "with", "+"})
NEGATIONS = frozenset({"no", "not", "non", "without", "absent", "negative", "never", "neither", "nor", "denies"})

Item = tuple[str, bool]  # a word, or (label, True)


def match_labels(answer: str, label_space: Sequence[str]) -> tuple[tuple[str, ...], tuple[Flaw, ...]]:
    """The labels that `answer` names, in its order and each once; and what else it holds, as flaws.

    Kinds: answer_too_long, answer_empty, unknown_label (a stretch of words outside the space), negated_label,
    repeated_label.
    """
    flaws: list[Flaw] = []
    if len(answer) > MAX_ANSWER:
        flaws.append(Flaw("answer_too_long", f"{len(answer)} characters, read {MAX_ANSWER}"))
    items = _items(_words(answer[:MAX_ANSWER]), _forms(tuple(label_space)))
    if not items:
        flaws.append(Flaw("answer_empty"))
    labels: list[str] = []
    for segment in _segments(items):
        named, denied = _judge(segment)
        flaws += [Flaw("negated_label", label) for label in denied]
        flaws += [Flaw("unknown_label", words[:DETAIL]) for words in _unknown(segment)]
        for label in named:
            if label in labels:
                flaws.append(Flaw("repeated_label", label))
            else:
                labels.append(label)
    return tuple(labels), tuple(flaws)


def clashes(label_space: Sequence[str]) -> tuple[str, ...]:
    """Labels that no answer can name: those without a word, and those that read like an earlier label."""
    seen: set[str] = set()
    bad: list[str] = []
    for label in label_space:
        key = _join(_words(label))
        if not key or key in seen:
            bad.append(label)
        seen.add(key)
    return tuple(bad)


def _words(text: str) -> list[str]:
    for sign, plain in SIGNS:
        text = text.replace(sign, plain)
    return WORDS.findall(unicodedata.normalize("NFKC", COMMANDS.sub(" ", text)).casefold())


def _join(words: Iterable[str]) -> str:
    """One key for "COVID-19", "covid 19" and "Covid19"; two numbers in a row stay apart."""
    key = ""
    for word in words:
        key += f" {word}" if key[-1:].isdigit() and word[0].isdigit() else word
    return key


@lru_cache(maxsize=1024)
def _forms(label_space: tuple[str, ...]) -> Mapping[str, str]:
    """Key -> label: each label in full, then the two parts of "long name (short)" where they are no other's."""
    forms: dict[str, str] = {}
    for label in label_space:
        forms.setdefault(_join(_words(label)), label)
    parts: dict[str, set[str]] = {}
    for label in label_space:
        match = SHORT.fullmatch(label)
        for part in match.groups() if match else ():
            parts.setdefault(_join(_words(part)), set()).add(label)
    for key, labels in parts.items():
        if len(labels) == 1:
            forms.setdefault(key, *labels)
    forms.pop("", None)
    return forms


def _items(words: Sequence[str], forms: Mapping[str, str]) -> list[Item]:
    """Words, with each stretch that reads like a label replaced by it: longest first, then leftmost."""
    longest = max(map(len, forms), default=0)
    candidates: list[tuple[int, int, int]] = []  # minus the key's length, first word, word after the last
    for start in range(len(words)):
        key = ""
        for stop in range(start + 1, len(words) + 1):
            key = _join((key, words[stop - 1])) if key else words[start]
            if len(key) > longest:
                break
            if key in forms:
                candidates.append((-len(key), start, stop))
    label_at: dict[int, tuple[str, int]] = {}
    taken: set[int] = set()
    for _, start, stop in sorted(candidates):
        if taken.isdisjoint(range(start, stop)):
            taken.update(range(start, stop))
            label_at[start] = (forms[_join(words[start:stop])], stop)
    items: list[Item] = []
    position = 0
    while position < len(words):
        label, stop = label_at.get(position, ("", position + 1))
        items.append((label, True) if label else (words[position], False))
        position = stop
    return items


def _segments(items: Iterable[Item]) -> Iterator[list[Item]]:
    segment: list[Item] = []
    for item in items:
        if not item[1] and item[0] in BREAKS:
            yield segment
            segment = []
        else:
            segment.append(item)
    yield segment


def _judge(segment: Iterable[Item]) -> tuple[list[str], list[str]]:
    """Labels named and labels denied: a negation reaches to the segment's end, or back where nothing follows it."""
    named: list[str] = []
    denied: list[str] = []
    negated = False
    for word, is_label in segment:
        if is_label:
            (denied if negated else named).append(word)
        elif word in NEGATIONS:
            negated = True
    if negated and named and not denied:
        denied.append(named.pop())
    return named, denied


def _unknown(segment: Sequence[Item]) -> Iterator[str]:
    """Stretches of words that are no label; negations count only where there is no label that they could deny."""
    has_label = any(is_label for _, is_label in segment)
    stretch: list[str] = []
    for word, is_label in [*segment, ("", True)]:
        if is_label or word in JOINS or (has_label and word in NEGATIONS):
            if stretch:
                yield " ".join(stretch)
            stretch = []
        else:
            stretch.append(word)
