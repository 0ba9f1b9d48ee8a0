"""Means and standard errors over seeds, and the differences between methods from the same start."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from qoqmed.datasets.heartbeat import DOMAIN as ECG
from table2.results import Result

PAPERS_EIGHT = ("chest_xray", "mammography", "dermoscopy", "ct", "fundus", "ultrasound", "mri", "pathology")
ORDER = (*PAPERS_EIGHT, ECG)
RARE = ("mammography", "ultrasound")
Measure = Callable[[Result], float | None]


@dataclass(frozen=True)
class Figure:
    """error: standard error of the mean over seeds; None for one seed."""

    mean: float
    error: float | None
    seeds: int

    def text(self, form: str = ".3f") -> str:
        return format(self.mean, form) + ("" if self.error is None else f" ± {format(self.error, form.lstrip('+'))}")


def figure(values: Iterable[float | None]) -> Figure | None:
    """None where there is no value."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    error = statistics.stdev(known) / math.sqrt(len(known)) if len(known) > 1 else None
    return Figure(statistics.fmean(known), error, len(known))


def of_domains(metric: str, names: Sequence[str] | None = None, start: bool = False) -> Measure:
    """The mean over these domains, or over those of them that were tested."""

    def measure(result: Result) -> float | None:
        scores = result.start if start else result.end
        values = [row[metric] for name, row in scores.items() if names is None or name in names]
        return statistics.fmean(values) if values else None

    return measure


def vision(metric: str, start: bool = False) -> Measure:
    """The paper's "overall": the mean over the eight vision domains."""
    return of_domains(metric, PAPERS_EIGHT, start)


def gain(metric: str) -> Measure:
    """Over the warm start, of the eight vision domains."""

    def measure(result: Result) -> float | None:
        before, after = vision(metric, start=True)(result), vision(metric)(result)
        return None if before is None or after is None else after - before

    return measure


def paired(mine: Sequence[Result], others: Sequence[Result], measure: Measure) -> Figure | None:
    """Of the differences, seed by seed: both began at one checkpoint and saw the same prompts in the same order."""
    by_seed = {result.seed: measure(result) for result in others}
    pairs = [(measure(result), by_seed.get(result.seed)) for result in mine]
    return figure(a - b for a, b in pairs if a is not None and b is not None)


def by_method(results: Sequence[Result]) -> dict[str, list[Result]]:
    out: dict[str, list[Result]] = {}
    for result in results:
        out.setdefault(result.method, []).append(result)
    return out
