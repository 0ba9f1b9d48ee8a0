"""Free text -> labels of a closed space, and nothing else: no guess, no word cut in two, no negated finding.

A text is cut into words and a few signs; case, spaces, hyphens and other punctuation do not matter. A label matches
where its words stand in a row, whole; longer labels match first, so "hand fracture and edema" stays one label unless
only its parts are in the space. "no edema" and "edema: no" do not name "edema".

A label also answers, where no other label does, to its declared synonyms; to both parts of a name such as "conduction
delay (CD)"; and to any of these with one word in the other number ("nodules", "metastasis"). Each is a flaw, as is a
label that is not written as in the space.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache

from qoqmed.errors import DataError, Problem
from qoqmed.reading.names import Forms, Synonyms, forms_of, join, words_of
from qoqmed.reading.responses import distinct
from qoqmed.types import Case, Flaw

SYNONYMS = "reading/synonyms"  # attribute of a case: label -> other names of it
MAX_ANSWER = 4_096  # characters of an answer that are read
DETAIL = 80  # characters of the text that a flaw quotes

BREAKS = frozenset({",", ";", "but"})  # where a negation's reach ends
JOINS = frozenset({"and", "or", "with", "+"})
NEGATIONS = frozenset({"no", "not", "non", "without", "absent", "negative", "never", "neither", "nor", "denies"})

Item = tuple[str, bool]  # a word, or (label, True)
Found = tuple[tuple[str, ...], tuple[Flaw, ...]]


def labels_of(text: str, case: Case) -> Found:
    """`match_labels` with the case's space and synonyms. Raises DataError, naming the row, for malformed synonyms."""
    return match_labels(text, case.label_space, synonyms_of(case))


def synonyms_of(case: Case) -> Mapping[str, Sequence[str]]:
    """Of the case's attribute `reading/synonyms`. Raises DataError, naming the row, where it is none."""
    if SYNONYMS not in case.attributes:
        return {}
    given = case.attributes[SYNONYMS]
    names = [name for names in given.values() for name in names] if _is_lists(given) else [None]
    outside = [label for label in given if label not in case.label_space] if isinstance(given, Mapping) else []
    if outside or not all(isinstance(name, str) for name in names):
        expected = "an object: label of the space -> list of other names"
        raise DataError(Problem(f"the attribute {SYNONYMS!r} is malformed", case.id, repr(given)[:200], expected))
    return {str(label): tuple(names) for label, names in given.items()}


def _is_lists(given: object) -> bool:
    return isinstance(given, Mapping) and all(isinstance(names, (list, tuple)) for names in given.values())


def match_labels(answer: str, label_space: Sequence[str], synonyms: Mapping[str, Sequence[str]] | None = None) -> Found:
    """The labels that `answer` names, in its order and each once; and what else it holds, as flaws.

    synonyms: label -> other names. Kinds of flaw: answer_too_long, answer_empty, unknown_label (a stretch of words
    outside the space), negated_label, repeated_label; respelled_label, synonym_label, plural_label for a label named
    by other letters than its own.
    """
    declared = tuple((label, tuple(names)) for label, names in (synonyms or {}).items())
    labels, flaws = _matched(answer[:MAX_ANSWER], tuple(label_space), declared)
    if len(answer) > MAX_ANSWER:
        flaws = (Flaw("answer_too_long", f"{len(answer)} characters, read {MAX_ANSWER}"), *flaws)
    return labels, flaws


@lru_cache(maxsize=1024)
def _matched(answer: str, label_space: tuple[str, ...], synonyms: Synonyms) -> Found:
    """The same answers come again and again: rollouts of a case, labels of boxes."""
    flaws: list[Flaw] = []
    items, repairs = _items(words_of(answer), forms_of(label_space, synonyms))
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
    flaws += [Flaw(kind, label) for label, kind in repairs]
    other_name = {label for label, _ in repairs}
    flaws += [Flaw("respelled_label", label) for label in labels if label not in other_name and label not in answer]
    return tuple(labels), distinct(flaws)


def clashes(label_space: Sequence[str]) -> tuple[str, ...]:
    """Labels that no answer can name: those without a word, and those that read like an earlier label."""
    seen: set[str] = set()
    bad: list[str] = []
    for label in label_space:
        key = join(words_of(label))
        if not key or key in seen:
            bad.append(label)
        seen.add(key)
    return tuple(bad)


def _items(words: Sequence[str], forms: Forms) -> tuple[list[Item], list[tuple[str, str]]]:
    """Words, with each stretch that reads like a label replaced by it: longest first, then leftmost.

    And (label, kind) of every label that goes by another name.
    """
    longest = max(map(len, forms), default=0)
    candidates: list[tuple[int, int, int]] = []  # minus the key's length, first word, word after the last
    for start in range(len(words)):
        key = ""
        for stop in range(start + 1, len(words) + 1):
            key = join((key, words[stop - 1])) if key else words[start]
            if len(key) > longest:
                break
            if key in forms:
                candidates.append((-len(key), start, stop))
    label_at: dict[int, tuple[str, int]] = {}
    repairs: list[tuple[str, str]] = []
    taken: set[int] = set()
    for _, start, stop in sorted(candidates):
        if taken.isdisjoint(range(start, stop)):
            taken.update(range(start, stop))
            label, kind = forms[join(words[start:stop])]
            label_at[start] = (label, stop)
            repairs += [(label, kind)] if kind else []
    items: list[Item] = []
    position = 0
    while position < len(words):
        label, stop = label_at.get(position, ("", position + 1))
        items.append((label, True) if label else (words[position], False))
        position = stop
    return items, repairs


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
