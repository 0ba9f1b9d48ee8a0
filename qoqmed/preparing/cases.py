"""One row of a data set -> a draft of a case: id, patient, labels, media and mask, each found as the spec says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qoqmed.errors import MediaError
from qoqmed.media import masks
from qoqmed.media.paths import resolve
from qoqmed.preparing import finding
from qoqmed.preparing.binding import bound, cell, columns, filled
from qoqmed.preparing.labels import READERS, merged
from qoqmed.preparing.left_out import LeftOut
from qoqmed.preparing.marked import Marked
from qoqmed.preparing.rows import rows
from qoqmed.preparing.spec import MediumSpec, Spec
from qoqmed.types import Mask


@dataclass(frozen=True)
class Draft:
    """A case before its split and question. marked: its labels. cells: its row, for the question's template."""

    id: str
    patient: str
    marked: Marked
    media: tuple[Mapping[str, Any], ...]
    region: Mapping[str, Any]  # mask or boxes
    split: str
    cells: Mapping[str, str]


@dataclass(frozen=True)
class Maker:
    """Drafts of one data set. root: the folder as it was published; space: its labels; multi: several may hold."""

    spec: Spec
    root: Path
    space: tuple[str, ...]
    multi: bool
    out: LeftOut
    questions: tuple[str, ...] = ()
    frames: int = 0

    def drafts(self) -> Iterator[Draft]:
        """Rows of one case lie together in its draft; a case that lacks labels or a medium is left out."""
        reader = bound(READERS, self.spec.labels, f"{self.spec.name}.labels", self.root, self.space)
        wanted = self._columns()
        groups: dict[str, tuple[dict[str, str], list[Marked]]] = {}  # its first row, and the labels of all
        for row in rows(self.spec, self.root, self.out):
            key = filled(self.spec.group or self.spec.id, row, f"{self.spec.name}.id")
            marked = reader(row)
            if key in groups and not self.spec.group:
                self.out.add(key, "its id was used before")
            elif marked.unusable and not self.spec.group:
                self.out.add(key, marked.unusable)
            elif key in groups:
                groups[key][1].append(marked)
            else:
                groups[key] = {name: cell(row, name, self.spec.name) for name in wanted}, [marked]
        for row, marks in groups.values():
            draft = self._draft(row, marks)
            if draft is not None:
                yield draft

    def _columns(self) -> list[str]:
        """Those of a row that its case needs: the others, many in some sets, are not held."""
        spec = self.spec
        paths = [text for medium in spec.media for text in (*medium.path, medium.view)]
        texts = [spec.id, spec.group, *spec.patient, *spec.mask, *self.questions, *paths]
        return columns(texts, spec.name) + [spec.split.column] * bool(spec.split.column)

    def _draft(self, row: Mapping[str, str], marks: Sequence[Marked]) -> Draft | None:
        case_id = filled(self.spec.id, row, f"{self.spec.name}.id")
        alone = self.spec.labels.get("alone", ())
        marked = merged(marks, self.space, self.spec.agree, alone) if self.spec.group else marks[0]
        unknown = sum(bool(mark.why) for mark in marks)
        if unknown and not marked.why:
            self.out.note("rows of a case whose labels are not known, beside others", unknown)
        why = marked.unusable
        if not why and len(marked.labels) > 1 and not self.multi:
            why = "several labels, and the data set has one a case"
        if why:
            self.out.add(case_id, why)
            return None
        media: list[Mapping[str, Any]] = []
        for medium in self.spec.media:
            found = self._paths(medium, row)
            if not found and not medium.optional:
                self.out.add(case_id, f"no file for its {medium.modality}")
                return None
            media += [self._medium(medium, path, row) for path in found]
        if not media and self.spec.media:
            self.out.add(case_id, "it has none of the media")
            return None
        patient = next((text for text in (self._text(one, row) for one in self.spec.patient) if text), "")
        split = cell(row, self.spec.split.column, f"{self.spec.name}.split") if self.spec.split.column else ""
        return Draft(case_id, patient, marked, tuple(media), self._region(row, marked), split, row)

    def _text(self, template: str, row: Mapping[str, str]) -> str:
        return filled(template, row, f"{self.spec.name}.patient").strip()

    def _paths(self, medium: MediumSpec, row: Mapping[str, str]) -> list[str]:
        """Of the candidates the first whose files exist under the root."""
        for template in medium.path:
            text = filled(template, row, f"{self.spec.name}.media")
            parts = text.split(medium.each) if medium.each else [text]
            found = [part for part in parts if part and self._there(part)]
            if found:
                if len(found) < len(parts):
                    self.out.note(f"a file of several is not there ({medium.modality})", len(parts) - len(found))
                return found
        return []

    def _there(self, path: str) -> bool:
        """As the media layer will see it: inside the root; of a WFDB record, the signals too."""
        try:  # `resolve` says what is missing or leaves the root by an exception alone
            found = resolve(self.root, path)
        except MediaError:
            return False
        beside = found.parent
        return found.exists() or any(item.suffix != ".hea" for item in beside.glob(f"{_literal(found.name)}.*"))

    def _medium(self, medium: MediumSpec, path: str, row: Mapping[str, str]) -> dict[str, Any]:
        made: dict[str, Any] = {"modality": medium.modality, "path": path}
        view = filled(medium.view, row, f"{self.spec.name}.media").strip()
        made |= {"view": view} if view else {}
        made |= {"frames": self.frames} if self.frames and medium.modality in ("volume", "video") else {}
        return made | dict(medium.options)

    def _region(self, row: Mapping[str, str], marked: Marked) -> dict[str, Any]:
        """The mask, as a path; boxes around each where the case has several files of masks. `*` in it finds those."""
        if not self.spec.mask:
            return {}
        cells = {key: _literal(text) for key, text in row.items()}
        patterns = [filled(template, cells, f"{self.spec.name}.mask") for template in self.spec.mask]
        found = sorted({name for one in patterns for name in finding.found(self.root, one)})
        if not found:
            self.out.note("cases without a mask")
            return {}
        if len(found) == 1:
            return {"mask": found[0]}
        self.out.note("cases with several masks: a box around each stands for them")
        boxes = [box for name in found for box in masks.boxes_of_mask(masks.load(Mask(name), self.root))]
        label = ", ".join(marked.labels)
        corners = [[box.x1, box.y1, box.x2, box.y2] for box in boxes]
        return {"boxes": corners, "box_labels": [label] * len(corners)} if corners else {}


def _literal(text: str) -> str:
    """As a part of a glob pattern that stands for itself."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in text)
