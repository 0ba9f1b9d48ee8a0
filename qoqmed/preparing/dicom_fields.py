"""Fields of DICOM headers as columns, where a data set's tables do not say what a file shows. Those on a list alone:
none of it tells who the patient is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from qoqmed.errors import DataError, Problem, near
from qoqmed.media.refusals import decoding, need

FIELDS = ("ImageLaterality", "Laterality", "ViewPosition", "Modality", "BodyPartExamined", "PresentationIntentType")


def require_listed(wanted: Mapping[str, str], where: str) -> None:
    """Raises DataError for fields that are not on the list."""
    wrong = [field for field in wanted.values() if field not in FIELDS]
    if wrong:
        what = f"a build does not read the DICOM field {wrong[0]!r}"
        raise DataError(Problem(what, where, expected=", ".join(FIELDS), mend=near(wrong[0], FIELDS)))


def fields(path: Path, wanted: Mapping[str, str]) -> dict[str, str]:
    """Column -> the header's text, "" where it has none. Raises MediaError for a file that is no DICOM."""
    pydicom = need("pydicom", "imaging")
    with decoding("DICOM header", path):
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(wanted.values()))
        return {column: str(header.get(field) or "").strip() for column, field in wanted.items()}
