"""The names that a label answers to, as keys: words without case, spaces, hyphens and other punctuation."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache

WORDS = re.compile(r"\d+\.\d+|[^\W_]+|[<>≤≥=+%,;]")
COMMANDS = re.compile(r"\\[a-zA-Z]+")  # LaTeX: \text{...}
SIGNS = (("\\geq", "≥"), ("\\ge", "≥"), ("\\leq", "≤"), ("\\le", "≤"), (">=", "≥"), ("<=", "≤"), ("&", " and "))
SHORT = re.compile(r"(.+)\(([^()]+)\)\s*")  # "conduction delay (CD)"
SHORTEST = 3  # letters of a word that has a plural: "CD" has none
Forms = Mapping[str, tuple[str, str]]  # key -> label, and the flaw's kind: "" for the label itself
Synonyms = tuple[tuple[str, tuple[str, ...]], ...]


def words_of(text: str) -> list[str]:
    """Words and the signs that matter, without case; LaTeX commands are taken out."""
    for sign, plain in SIGNS:
        text = text.replace(sign, plain)
    return WORDS.findall(unicodedata.normalize("NFKC", COMMANDS.sub(" ", text)).casefold())


def join(words: Iterable[str]) -> str:
    """One key for "COVID-19", "covid 19" and "Covid19"; two numbers in a row stay apart."""
    key = ""
    for word in words:
        key += f" {word}" if key[-1:].isdigit() and word[0].isdigit() else word
    return key


@lru_cache(maxsize=1024)
def forms_of(label_space: tuple[str, ...], synonyms: Synonyms) -> Forms:
    """Each label in full, then what else names it, where no other label answers to that."""
    forms: dict[str, tuple[str, str]] = {}
    for label in label_space:
        forms.setdefault(join(words_of(label)), (label, ""))
    names = [(name, label) for label, names in synonyms for name in names]
    _claim(forms, ((join(words_of(name)), label) for name, label in names), "synonym_label")
    matches = [(SHORT.fullmatch(label), label) for label in label_space]
    parts = [(part, label) for match, label in matches if match for part in match.groups()]
    _claim(forms, ((join(words_of(part)), label) for part, label in parts), "respelled_label")
    known = [*((label, label) for label in label_space), *names, *parts]
    _claim(forms, ((key, label) for text, label in known for key in _other_number(words_of(text))), "plural_label")
    forms.pop("", None)
    return forms


def _claim(forms: dict[str, tuple[str, str]], claims: Iterable[tuple[str, str]], kind: str) -> None:
    """Adds the keys that one label alone claims, and that are not taken."""
    claimed: dict[str, set[str]] = {}
    for key, label in claims:
        claimed.setdefault(key, set()).add(label)
    for key, labels in claimed.items():
        if len(labels) == 1:
            forms.setdefault(key, (min(labels), kind))


def _other_number(words: Sequence[str]) -> Iterator[str]:
    """Keys of the name with one word put into the plural or the singular."""
    for place, word in enumerate(words):
        if word.isalpha() and len(word) >= SHORTEST:
            others = (other for other in _numbers(word) if len(other) >= SHORTEST)
            yield from (join([*words[:place], other, *words[place + 1 :]]) for other in others)


def _numbers(word: str) -> Iterator[str]:
    """opacity opacities, mass masses, nodule nodules, metastasis metastases, and back. Some are no words: no harm."""
    if word.endswith("ies"):
        yield f"{word[:-3]}y"
    if word.endswith("es"):
        yield f"{word[:-2]}is"
        yield word[:-2]
    if word.endswith("is"):
        yield f"{word[:-2]}es"
    if word.endswith("s") and not word.endswith(("ss", "us", "is")):
        yield word[:-1]
    elif word.endswith(("s", "x", "z", "ch", "sh")):
        yield f"{word}es"
    elif word.endswith("y") and word[-2] not in "aeiou":
        yield f"{word[:-1]}ies"
    else:
        yield f"{word}s"
