"""QoQ-Med's metrics (App. D.2, eq. 8-15): label-wise counts, macro over labels, then data sets, then domains.

Per label of a data set, over its cases: accuracy with true negatives (8), precision (9), recall (10), F1 (11),
specificity TN / (TN + FP). A data set's figure is the mean over its label space (12, 13), a domain's the mean over its
data sets (14), the overall one the mean over the domains that have cases (15; the paper's nine). 0 / 0 is 0, so a
label neither true nor predicted has F1 0 as in the paper; `f1_present` leaves such labels out.

Beside the paper: sensitivity (recall's other name), exact_match (label sets equal, App. C.1), micro_f1 (counts pooled
over labels), support (cases), unknown (predicted texts outside the label space: wrong for exact_match, no label
for the rest) and pseudo_masks (cases whose mask no person drew). The last three are summed, not averaged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np
import torch

from qoqmed.media import torchvision_ops
from qoqmed.metrics.predictions import from_line, to_line
from qoqmed.types import Prediction

torchvision_ops.repair()  # torchmetrics imports torchvision, which may be built for another torch

from torchmetrics import Metric  # noqa: E402

Figures = dict[str, float]
SUMMED = ("support", "unknown", "pseudo_masks")


class Clinical(Metric):
    """Holds each prediction as a line of JSON in a byte tensor: torchmetrics gathers them over ranks as they are.

    A case seen twice (samplers pad the last batch) counts once: the first by rank and order. A rank without cases
    calls `update([])`. `compute`: {"overall": {...}, "domains": {name: {...}}, "datasets": {"domain/dataset": {...}}}.
    """

    full_state_update = False
    higher_is_better = True
    records: list[torch.Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("records", default=[], dist_reduce_fx="cat")

    def update(self, predictions: Sequence[Prediction]) -> None:
        for prediction in predictions:
            outside = set(prediction.target) - set(prediction.label_space)
            if outside or not prediction.label_space:
                raise ValueError(
                    f"{prediction.id}: labels {sorted(outside)} lie outside the label space, or it is empty"
                )
        text = "".join(f"{to_line(prediction)}\n" for prediction in predictions)
        # an empty update leaves an empty tensor: all ranks then take part in the gathering
        numbers = np.frombuffer(bytearray(text, "ascii"), np.uint8)
        self.records.append(torch.from_numpy(numbers).to(self.device))

    def compute(self) -> dict[str, Any]:
        records: Any = self.records  # a list, and one tensor once torchmetrics has gathered it
        tensors = [records] if isinstance(records, torch.Tensor) else records
        text = b"".join(tensor.cpu().numpy().tobytes() for tensor in tensors).decode("ascii")
        return figures([from_line(line) for line in text.split("\n") if line])


def figures(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """The whole table. Without predictions all three parts are empty: no figure is better than a made-up one."""
    once: dict[tuple[str, str, str], Prediction] = {}
    for prediction in predictions:
        once.setdefault((prediction.domain, prediction.dataset, prediction.id), prediction)
    tallies: dict[tuple[str, str], Tally] = {}
    for (domain, dataset, _), prediction in sorted(once.items()):
        tallies.setdefault((domain, dataset), Tally()).add(prediction)
    by_domain: dict[str, list[Figures]] = {}
    for (domain, _), tally in tallies.items():
        by_domain.setdefault(domain, []).append(tally.figures())
    domains = {domain: _mean(parts) for domain, parts in by_domain.items()}
    return {
        "overall": _mean(list(domains.values())),
        "domains": domains,
        "datasets": {f"{domain}/{dataset}": tally.figures() for (domain, dataset), tally in tallies.items()},
    }


def _mean(parts: Sequence[Figures]) -> Figures:
    """Unweighted, whatever the parts' sizes (eq. 14 and 15)."""
    names = parts[0] if parts else ()
    return {name: (sum if name in SUMMED else fmean)(part[name] for part in parts) for name in names}


@dataclass
class Counts:
    """Cases of one label: true or false, positive or negative."""

    tp: int = 0
    fp: int = 0
    fn: int = 0
    tn: int = 0

    def add(self, true: bool, predicted: bool) -> None:
        self.tp += true and predicted
        self.fp += predicted and not true
        self.fn += true and not predicted
        self.tn += not (true or predicted)


@dataclass
class Tally:
    """One data set: counts per label, over the cases whose space has the label."""

    labels: dict[str, Counts] = field(default_factory=dict)
    cases: int = 0
    exact: int = 0
    unknown: int = 0
    pseudo_masks: int = 0

    def add(self, prediction: Prediction) -> None:
        true, predicted = set(prediction.target), set(prediction.prediction)
        for label in dict.fromkeys(prediction.label_space):
            self.labels.setdefault(label, Counts()).add(label in true, label in predicted)
        self.cases += 1
        self.exact += true == predicted
        self.unknown += len(predicted - set(prediction.label_space))
        self.pseudo_masks += bool(prediction.mask_source)

    def figures(self) -> Figures:
        """The data set's figures: macro ones are means over its label space (equations 12 and 13)."""
        counts = list(self.labels.values())
        each = [_label_figures(count) for count in counts]
        macro = {name: fmean(figure[name] for figure in each) for name in each[0]}
        tp, fp, fn = (sum(getattr(count, name) for count in counts) for name in ("tp", "fp", "fn"))
        present = [figure["f1"] for figure, count in zip(each, counts, strict=True) if count.tp + count.fp + count.fn]
        return macro | {
            "f1_present": fmean(present) if present else 0.0,
            "exact_match": self.exact / self.cases,
            "micro_f1": _share(2 * tp, 2 * tp + fp + fn),
            "support": float(self.cases),
            "unknown": float(self.unknown),
            "pseudo_masks": float(self.pseudo_masks),
        }


def _label_figures(count: Counts) -> Mapping[str, float]:
    precision = _share(count.tp, count.tp + count.fp)  # eq. 9
    recall = _share(count.tp, count.tp + count.fn)  # eq. 10
    return {
        "accuracy": _share(count.tp + count.tn, count.tp + count.tn + count.fp + count.fn),  # eq. 8
        "f1": _share(2 * precision * recall, precision + recall),  # eq. 11
        "precision": precision,
        "recall": recall,
        "sensitivity": recall,
        "specificity": _share(count.tn, count.tn + count.fp),
    }


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
