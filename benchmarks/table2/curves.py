"""Learning curves: mean reward of each domain against the training samples spent, as a picture and as numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from table2.results import Result
from table2.summary import ORDER

BINS = 6  # of a run's steps: a rare domain has a question in every other step


def binned(results: Sequence[Result], domain: str, bins: int = BINS) -> tuple[list[float], list[float]]:
    """Samples at the middle of each stretch of steps, and the mean reward of all its questions over all seeds."""
    xs, ys = list[float](), list[float]()
    steps = max((len(result.curve.samples) for result in results), default=0)
    for place in range(min(bins, steps)):
        low, high = place * steps // min(bins, steps), (place + 1) * steps // min(bins, steps)
        points = [p for result in results for p in result.curve.domains.get(domain, ())[low:high] if p]
        spent = [x for result in results for x in result.curve.samples[low:high]]
        if points:
            xs.append(sum(spent) / len(spent))
            ys.append(sum(n * mean for n, mean in points) / sum(n for n, _ in points))
    return xs, ys


def draw(methods: Mapping[str, Sequence[Result]], path: Path) -> None:
    """A panel a domain, a line a method (title -> its results). Methods that sample nothing have no rewards."""
    from matplotlib.figure import Figure

    shown = {title: results for title, results in methods.items() if any(result.curve.samples for result in results)}
    picture = Figure(figsize=(13, 10), layout="constrained")
    panels = picture.subplots(3, 3, sharex=True)
    for panel, domain in zip(panels.flat, ORDER, strict=True):
        for title, results in shown.items():
            panel.plot(*binned(results, domain), marker=".", linewidth=1.2, label=title)
        panel.set_title(domain)
        panel.grid(alpha=0.3)
    for panel in panels[-1]:
        panel.set_xlabel("training samples")
    for panel in panels[:, 0]:
        panel.set_ylabel("mean reward")
    if shown:
        picture.legend(*panels.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    picture.savefig(path, dpi=110)
