"""The nine clinical domains of QoQ-Med and the 30 data sets of its Table 5, kept as data beside this file.

Label spaces stand exactly as printed (also where the paper errs: STTC of PTB-XL means ST/T changes), ranges written
out ("BI-RAD 1-5") and "Same as" followed. From the text: understudied modalities and novel tasks (App. C.2), and
frames (App. D.1: "sliced uniformly into 4 frames"). Not in the text, and ours: `multi` (labels may co-occur), `ordinal`
(labels are grades in order; BI-RADS, retinopathy), questions, and `region`, the country behind a set of an
underrepresented region by the definition of C.2 (among them the set of head CTs from Iraq, which C.2 names).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources


@dataclass(frozen=True, slots=True)
class LabelledSet:
    """One data set of Table 5. region: "" unless the set comes from an underrepresented one. questions: its own."""

    labels: tuple[str, ...]
    multi: bool = False
    ordinal: bool = False
    novel: bool = False
    region: str = ""
    questions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Domain:
    """phrasings: questions that carry the modality cue; the task adds the allowable labels (App. C.1).

    several: the same for data sets where several labels may hold. frames: pictures that a volume or video becomes,
    evenly spaced; 1 where the domain has single images, 0 where it has none.
    """

    name: str
    title: str
    modalities: tuple[str, ...]
    frames: int
    phrasings: tuple[str, ...]
    several: tuple[str, ...]
    understudied: bool
    sets: Mapping[str, LabelledSet]

    @property
    def datasets(self) -> Mapping[str, tuple[str, ...]]:
        """Data set -> label space."""
        return {name: labelled.labels for name, labelled in self.sets.items()}

    def questions(self, dataset: str) -> tuple[str, ...]:
        """Phrasings for a data set: its own, else those that ask for one label or for several, as it has them."""
        labelled = self.sets.get(dataset, LabelledSet(()))
        return labelled.questions or (self.several if labelled.multi else ()) or self.phrasings


def _load(name: str) -> Domain:
    text = resources.files("qoqmed.domains").joinpath(f"{name}.json").read_text(encoding="utf-8")
    row = json.loads(text)
    sets = {
        title: LabelledSet(
            tuple(one["labels"]),
            one["multi"],
            one["ordinal"],
            one["novel"],
            one["region"] or "",
            tuple(one.get("questions", ())),
        )
        for title, one in row["datasets"].items()
    }
    lists = tuple(row["modalities"]), row["frames"], tuple(row["phrasings"]), tuple(row["several"])
    return Domain(name, row["title"], *lists, row["understudied"], sets)


chest_xray = _load("chest_xray")
mammography = _load("mammography")
dermoscopy = _load("dermoscopy")
fundus = _load("fundus")
pathology = _load("pathology")
ultrasound = _load("ultrasound")
ct = _load("ct")
mri = _load("mri")
ecg = _load("ecg")
