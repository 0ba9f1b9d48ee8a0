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
| value, time_days, event | numbers and a truth value |
| chosen, rejected | text: a preferred response and a worse one, both or neither; `attributes` "dpo/chosen" and so on |
| attributes | plugins' own, namespaced |

Boxes and mask lie on the first image, volume or video. A box may stick out by 1% of a side and is clipped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qoqmed import registry
from qoqmed.config.schema import Node
from qoqmed.contracts import Domain
from qoqmed.datasets import fields
from qoqmed.datasets.fields import Given, text, texts, wrong
from qoqmed.errors import near
from qoqmed.types import SPATIAL, Case, Mask, Target

FIELDS = (
    "id", "domain", "dataset", "task", "question", "media", "view", "labels", "label_space", "boxes", "boxes_px",
    "boxes_xywh", "box_labels", "width", "height", "mask", "text", "patient", "value", "time_days", "event",
    "chosen", "rejected", "attributes",
)  # fmt: skip


@dataclass(frozen=True)
class RowReader:
    """mapping: our field -> the file's field, or None to leave ours empty. Without one, unknown fields are refused."""

    source: str  # data set of rows that name none
    mapping: Mapping[str, str | None] | None = None
    task: str = "diagnosis"
    prefix: str = ""  # put before the paths of media and masks

    def __post_init__(self) -> None:
        for name in self.mapping or ():
            if name not in FIELDS:
                raise wrong(f"the mapping names {name!r}", "", f"one of {', '.join(FIELDS)}", near(name, FIELDS))

    def named(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The row under our names; null is the same as missing."""
        if self.mapping is None:
            for name in row:
                if name not in FIELDS:
                    raise wrong(f"unknown field {name!r}", mend=near(name, FIELDS) or "remove it, or give a mapping")
        names = {name: (self.mapping or {}).get(name, name) for name in FIELDS}
        return {name: row[theirs] for name, theirs in names.items() if theirs and row.get(theirs) is not None}

    def case(self, row: Mapping[str, Any]) -> Case:
        """Raises DataError, without `where`, for the first thing that is wrong."""
        given = self.named(row)
        case_id, domain = text(given, "id", required=True), text(given, "domain", required=True)
        dataset = text(given, "dataset") or self.source
        media = fields.media(given, self.prefix)
        spatial = next((i for i, medium in enumerate(media) if medium.modality in SPATIAL), 0)
        space = _space(given, domain, dataset)
        attributes = given.get("attributes", {})
        if not isinstance(attributes, dict):
            raise wrong("'attributes' is no object", attributes)
        attributes = attributes | fields.pair(given)
        mask = text(given, "mask")
        target = Target(
            labels=fields.labels(given, space),
            text=text(given, "text") or None,
            boxes=fields.boxes(given, spatial),
            mask=Mask(self.prefix + mask, medium=spatial) if mask else None,
            value=fields.number(given, "value"),
            time_days=fields.number(given, "time_days"),
            event=fields.truth(given, "event"),
        )
        question = text(given, "question").strip() or phrased(domain, case_id)
        task = text(given, "task") or self.task
        patient = text(given, "patient") or None
        return Case(case_id, domain, dataset, task, question, media, space, target, patient, attributes)


def _space(given: Given, domain: str, dataset: str) -> tuple[str, ...]:
    space = texts(given, "label_space")
    if space is None:
        plugin = _plugin(domain)
        return tuple(plugin.datasets.get(dataset, ())) if plugin else ()
    if len(set(space)) < len(space):
        raise wrong("'label_space' names a label twice", [label for label in space if space.count(label) > 1])
    return space


def _plugin(domain: str) -> Domain | None:
    """The domain's plugin; None: a user's own domain that has none."""
    known = domain in (info.name for info in registry.available("domains"))
    plugin: Domain | None = registry.make("domains", Node(domain)) if known else None
    return plugin


def phrased(domain: str, case_id: str) -> str:
    """One of the domain's phrasings, always the same one for an id."""
    plugin = _plugin(domain)
    if plugin is None:
        hint = near(domain, [info.name for info in registry.available("domains")])
        mend = hint or "give the row a question, or the domain a plugin"
        raise wrong(f"no question, and no plugin for the domain {domain!r} to phrase one", mend=mend)
    digest = hashlib.blake2b(case_id.encode(), digest_size=8).digest()
    return plugin.phrasings[int.from_bytes(digest) % len(plugin.phrasings)]
