"""One row of a data file -> one `Case`. Our own fields, and other manifests' through a flat mapping of names.

| field | value |
|---|---|
| id, domain | text, required |
| dataset | text; the file's name where it is missing |
| task, question, text, patient | text; a blank question is phrased by the domain |
| media | `[{modality, path, view?, ..}]` in prompt order, or `{modality: path or [paths]}`; further keys of an item say
how it is to be read: `media.options` for images, volumes and videos, else the encoder's own |
| view | view name of the media that have none of their own |
| labels | `[text]` or one text; null: not known; `[]`: none applies (not known where the space is empty too) |
| label_space | `[text]`; where it is missing, what the domain knows of the data set |
| boxes | `[[x1, y1, x2, y2]]`, normalised to [0, 1] |
| boxes_px | the same in pixels of `width` x `height` |
| boxes_xywh | `[[x, y, w, h]]` in pixels of `width` x `height` |
| box_labels | one text a box |
| mask | path of a PNG or NIfTI |
| mask_source | text: who drew the mask where no person did (a model's name); `attributes` "mask/source" |
| value, time_days, event | numbers and a truth value |
| chosen, rejected | text: a preferred response and a worse one, both or neither; `attributes` "dpo/chosen" and so on |
| attributes | plugins' own, namespaced |

Boxes and mask lie on the first image, volume or video. A box may stick out by 1% of a side and is clipped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qoqmed.datasets import fields
from qoqmed.datasets.attributes import check_attributes
from qoqmed.datasets.fields import Given, text, wrong
from qoqmed.datasets.formats import FORMATS, JOINED, split_labels
from qoqmed.datasets.known import KnownDomains
from qoqmed.datasets.picture_size import picture_size
from qoqmed.errors import near
from qoqmed.types import MASK_SOURCE, SPATIAL, Box, Case, Mask, Medium, Target

FIELDS = (
    "id", "domain", "dataset", "task", "question", "media", "view", "labels", "label_space", "boxes", "boxes_px",
    "boxes_xywh", "box_labels", "width", "height", "mask", "mask_source", "text", "patient", "value", "time_days",
    "event", "chosen", "rejected", "attributes",
)  # fmt: skip
KNOWN = frozenset(FIELDS)
OURS = "rows"  # the format of our own fields


@dataclass(frozen=True)
class RowReader:
    """mapping: our field -> the file's field, or None to leave ours empty. Without one, unknown fields are refused.

    format: whose fields the file has; see `formats`. There a mapping adds to the format's own names. defaults: values
    of our fields for rows that have none. spaces: label spaces by data set, where neither row nor domain has one.
    """

    source: str  # data set of rows that name none
    mapping: Mapping[str, str | None] | None = None
    task: str = "diagnosis"
    prefix: str = ""  # put before the paths of media and masks
    format: str = OURS
    defaults: Mapping[str, Any] = field(default_factory=dict)
    root: str | Path = "."  # of pictures whose size the rows do not give
    spaces: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    known: KnownDomains = field(default_factory=KnownDomains, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.format not in (known := (OURS, *FORMATS)):
            raise wrong("unknown format", repr(self.format), f"one of {', '.join(known)}", near(self.format, known))
        for what, names in (("mapping", self.mapping or ()), ("defaults", self.defaults)):
            for name in names:
                if name not in FIELDS and not (what == "mapping" and self.format != OURS):
                    raise wrong(f"the {what} names {name!r}", "", f"one of {', '.join(FIELDS)}", near(name, FIELDS))

    def named(self, row: Mapping[str, Any], line: int = 0) -> dict[str, Any]:
        """The row under our names; null is the same as missing. line: in its file, the id of rows that have none."""
        if self.format != OURS:
            given = self._other(row, line)
        else:
            given = self._ours(row)
        return {**self.defaults, **given} if self.defaults else given

    def _ours(self, row: Mapping[str, Any]) -> dict[str, Any]:
        if self.mapping is not None:
            names = {name: self.mapping.get(name, name) for name in FIELDS}
            return {name: row[theirs] for name, theirs in names.items() if theirs and row.get(theirs) is not None}
        for name in row:
            if name not in KNOWN:
                mend = near(name, FIELDS) or "remove it, or give a mapping"
                raise wrong(f"unknown field {name!r}", mend=mend)
        return {name: value for name, value in row.items() if value is not None}

    def _other(self, row: Mapping[str, Any], line: int) -> dict[str, Any]:
        renamed = {name: row.get(theirs) if theirs else None for name, theirs in (self.mapping or {}).items()}
        made = FORMATS[self.format]({**row, **renamed})
        given = {name: value for name, value in made.items() if value is not None}
        if "domain" not in given and (domain := self.known.meant(row.get("data_source"), row.get("dataset"))):
            given["domain"] = domain
        return {"id": f"{self.source}-{line}", **given}

    def case(self, row: Mapping[str, Any], line: int = 0) -> Case:
        """Raises DataError, without `where`, for the first thing that is wrong."""
        given = self.named(row, line)
        case_id, domain = text(given, "id", required=True), text(given, "domain", required=True)
        dataset = text(given, "dataset") or self.source
        media = fields.media(given, self.prefix)
        spatial = next((i for i, medium in enumerate(media) if medium.modality in SPATIAL), 0)
        attributes = given.get("attributes", {})
        if not isinstance(attributes, dict):
            raise wrong("'attributes' is no object", attributes)
        drawn_by = text(given, "mask_source").strip()
        mask = text(given, "mask")
        attributes = attributes | fields.pair(given) | ({MASK_SOURCE: drawn_by} if drawn_by and mask else {})
        space = self.space(given)
        target = Target(
            labels=self.labels(given, space),
            text=text(given, "text") or None,
            boxes=self.boxes(given, media, spatial),
            mask=Mask(self.prefix + mask, medium=spatial) if mask else None,
            value=fields.number(given, "value"),
            time_days=fields.number(given, "time_days"),
            event=fields.truth(given, "event"),
        )
        question = text(given, "question").strip() or self.known.phrased(domain, case_id, dataset)
        task = text(given, "task") or self.task
        patient = text(given, "patient") or None
        case = Case(case_id, domain, dataset, task, question, media, space, target, patient, attributes)
        if attributes:
            check_attributes(case)
        return case

    def space(self, given: Given) -> tuple[str, ...]:
        """The row's label space, else its domain's for the data set, else the file's; () where none is known."""
        domain, dataset = text(given, "domain", required=True), text(given, "dataset") or self.source
        space = fields.space(given)
        return self.known.space(domain, dataset) or self.spaces.get(dataset, ()) if space is None else space

    def labels(self, given: Given, space: tuple[str, ...]) -> tuple[str, ...] | None:
        joined = given.get("labels")
        if self.format in JOINED and isinstance(joined, str):
            given = {**given, "labels": split_labels(joined, space)}
        return fields.labels(given, space)

    def boxes(self, given: Given, media: tuple[Medium, ...], spatial: int) -> tuple[Box, ...] | None:
        """On the medium of that place. Other tools' rows have pixels and no size: the picture's header has it."""
        if self.format != OURS and "boxes_px" in given and not ("width" in given and "height" in given):
            if not media or media[spatial].modality != "image" or media[spatial].path is None:
                raise wrong("boxes in pixels, and no image to take its size from", mend="give 'width' and 'height'")
            width, height = picture_size(str(media[spatial].path), self.root)
            given = {**given, "width": width, "height": height}
        return fields.boxes(given, spatial)
