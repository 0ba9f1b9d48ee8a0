"""The parser of responses, the matching of answers to a closed label space, and how a case's views lie."""

from qoqmed.reading.boxes import MAX_BOXES, RawBox
from qoqmed.reading.labels import SYNONYMS, clashes, labels_of, match_labels, synonyms_of
from qoqmed.reading.responses import MAX_CHARACTERS, Parsed, parse

__all__ = [
    "MAX_BOXES",
    "MAX_CHARACTERS",
    "SYNONYMS",
    "Parsed",
    "RawBox",
    "clashes",
    "labels_of",
    "match_labels",
    "parse",
    "synonyms_of",
]
