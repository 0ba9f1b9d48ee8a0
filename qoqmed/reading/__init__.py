"""The parser of responses, and the matching of answers to a closed label space."""

from qoqmed.reading.labels import clashes, match_labels
from qoqmed.reading.responses import MAX_BOXES, MAX_CHARACTERS, Parsed, RawBox, parse

__all__ = ["MAX_BOXES", "MAX_CHARACTERS", "Parsed", "RawBox", "clashes", "match_labels", "parse"]
