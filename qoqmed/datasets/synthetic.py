"""The embedded default: drawn clinical cases of nine domains, as many as asked for, with nothing on disk.

Case `index` depends on (seed, index) alone, so a longer set begins with the shorter one, and another seed is a set that
shares no case. Pictures, volumes and ECGs lie in memory; nothing is drawn before its case is asked for. The text of the
target says truly what is seen; the question is left to the task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from qoqmed.datasets import heartbeat, phantoms
from qoqmed.registry.arguments import check, one_of, within
from qoqmed.types import Box, Case, Mask, Medium, Target

DATASET = "synthetic"
MOST_OTHERS = 3  # in a differential, beside the true label
FAINT = 0.35  # the contrast of a faint lesion, as a part of a plain one's
NOISY = 5.0  # the muscle noise of a faint ECG, as a multiple of a plain one's
SHARES: Mapping[str, float] = {
    **{domain.name: domain.share for domain in phantoms.DOMAINS},
    heartbeat.DOMAIN: heartbeat.SHARE,
}


class Synthetic:
    """domains: all nine where none are named. balanced: as many of each, in turn; otherwise skewed as `SHARES` are.

    differential: share of the cases that are reported as a differential diagnosis: the true label first, then one to
    three others of the label space. Such labels are what a cautious report says, not what is to be scored. faint: by
    domain, the share of its cases whose lesion is faint or whose ECG is noisy. reports: False leaves out the text of
    what is seen, as in data sets that give labels and boxes only.
    """

    synthetic = True  # a model card says so

    def __init__(
        self,
        size: int,
        seed: int = 0,
        domains: Sequence[str] | None = None,
        balanced: bool = False,
        task: str = "diagnosis",
        differential: float = 0.0,
        faint: Mapping[str, float] | None = None,
        reports: bool = True,
    ) -> None:
        names = list(SHARES) if domains is None else list(domains)
        check(within("size", size, low=1), within("seed", seed, low=0), within("domains", len(names), low=1))
        check(*(one_of("domain", name, list(SHARES)) for name in names))
        check(within("differential", differential, low=0, high=1))
        check(*(one_of("faint", name, list(SHARES)) for name in faint or ()))
        check(*(within(f"faint.{name}", share, low=0, high=1) for name, share in (faint or {}).items()))
        self._seed, self._task, self._differential = seed, task, differential
        self._faint, self._reports = dict(faint or {}), reports
        self.domains: Sequence[str] = _domains(size, seed, names, balanced)
        self.fingerprint = f"synthetic {seed} {'balanced' if balanced else 'skewed'} {differential:g} {' '.join(names)}"
        self.fingerprint += "".join(f" {name} {share:g} faint" for name, share in sorted(self._faint.items()))
        self.fingerprint += "" if reports else " no reports"

    def __len__(self) -> int:
        return len(self.domains)

    def __getitem__(self, index: int) -> Case:
        position = range(len(self))[index]
        domain = self.domains[position]
        case_id = f"synthetic-{self._seed}-{position}"
        rng = np.random.default_rng((self._seed, position))
        faint = self._is_faint(domain, position)
        if domain == heartbeat.DOMAIN:
            case = _electrocardiogram(case_id, heartbeat.record(rng, NOISY if faint else 1.0), self._task)
        else:
            case = _picture(case_id, phantoms.draw(domain, rng, FAINT if faint else 1.0), self._task)
        case = _reported(case, rng) if rng.random() < self._differential else case
        return case if self._reports else replace(case, target=replace(case.target, text=None))

    def _is_faint(self, domain: str, position: int) -> bool:
        """By a stream of its own: which cases are faint changes nothing else of them."""
        share = self._faint.get(domain, 0.0)
        return share > 0 and np.random.default_rng((self._seed, position, 2)).random() < share


def _domains(size: int, seed: int, names: Sequence[str], balanced: bool) -> list[str]:
    if balanced:
        return [names[index % len(names)] for index in range(size)]
    edges = np.cumsum([SHARES[name] for name in names])
    points = np.random.default_rng((seed, 0, 1)).random(size)  # a stream that no case has
    return [names[index] for index in np.searchsorted(edges / edges[-1], points, side="right")]


def _picture(case_id: str, drawn: phantoms.Phantom, task: str) -> Case:
    height, width = drawn.mask.shape
    x1, y1, x2, y2 = drawn.box
    box = Box(x1 / width, y1 / height, x2 / width, y2 / height, drawn.label)
    target = Target(labels=(drawn.label,), text=drawn.look, boxes=(box,), mask=Mask(array=drawn.mask))
    medium = Medium("volume" if drawn.image.ndim == 4 else "image", array=drawn.image)
    return Case(case_id, drawn.domain, DATASET, task, "", (medium,), drawn.label_space, target)


def _electrocardiogram(case_id: str, drawn: heartbeat.Heartbeat, task: str) -> Case:
    medium = Medium("ecg", array=drawn.signal_mv)
    target = Target(labels=(drawn.label,), text=drawn.look)
    return Case(case_id, heartbeat.DOMAIN, DATASET, task, "", (medium,), drawn.label_space, target)


def _reported(case: Case, rng: np.random.Generator) -> Case:
    """The case with a differential as its labels and on its boxes: the true label, then others in random order."""
    others = [label for label in case.label_space if label not in (case.target.labels or ())]
    count = int(rng.integers(1, min(len(others), MOST_OTHERS) + 1))
    labels = (*(case.target.labels or ()), *(others[i] for i in rng.permutation(len(others))[:count]))
    boxes = tuple(replace(box, label="") for box in case.target.boxes or ()) or None
    return replace(case, target=replace(case.target, labels=labels, boxes=boxes))
