"""The explanation of an estimator (`qoqmed.report.advantage_explained`) as one picture, by matplotlib (extra `plot`).

A line of panels over the same domains (who got the advantage, by which scales, what damping took), and below them a
small panel for each domain with clusters. Figures are made without pyplot: nothing global is touched.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from math import ceil, log2
from pathlib import Path
from typing import Any

from qoqmed.errors import Problem, UserError
from qoqmed.media.refusals import need

MOST = 24  # domains that are drawn, those of the largest share
COLUMNS = 5  # of the small panels
WIDTH, LINE, SMALL = 12.0, 0.34, 2.2  # inches: of the picture; the height of a domain's line, of a small panel
DPI = 130
INK, PALE, STRONG, TAKEN = "#333333", "#b8b8b8", "#0072b2", "#e69f00"  # the last two of Okabe and Ito's

Domains = Sequence[tuple[str, Mapping[str, Any]]]


def picture_file(path: Path, rewards: Path) -> Path:
    """Raises UserError where the picture could not be drawn and written, or would replace the file of rewards."""
    problem = None
    if path.suffix.lower() != ".png":
        problem = Problem("the picture is a PNG file", "--plot", str(path), "a name that ends in .png", "rename it")
    elif path.is_dir() or not path.absolute().parent.is_dir():
        expected = "a file in an existing folder"
        problem = Problem("the picture cannot be written there", "--plot", str(path), expected, "make the folder first")
    elif path.resolve() == rewards.resolve():
        problem = Problem("the picture would replace the rewards", "--plot", str(path), mend="name another file")
    if problem is not None:
        raise UserError(problem)
    need("matplotlib.figure", "plot")
    return path


def draw(result: Mapping[str, Any], title: str) -> Any:
    """A matplotlib Figure of a result; its `savefig` writes it. Raises UserError where no domain counted."""
    ranked = sorted(result["domains"].items(), key=lambda item: -item[1]["share"])
    domains = ranked[:MOST]
    if not domains:
        mend = "give two valid rollouts a question, and an estimator that tells of its domains"
        raise UserError(Problem("there is nothing to draw: the estimator tells of no domain", "--plot", mend=mend))
    clustered = [(name, domain) for name, domain in domains if len(domain["clusters"]) > 1]
    above, below = LINE * len(domains) + 1.4, SMALL * ceil(len(clustered) / COLUMNS) + (0.8 if clustered else 0.0)
    figure = need("matplotlib.figure", "plot").Figure((WIDTH, above + below + 0.6), dpi=DPI, layout="constrained")
    left_out = f" ({len(domains)} of {len(ranked)} domains)" if len(domains) < len(ranked) else ""
    figure.suptitle(f"{title}{left_out}", fontsize=12, color=INK, parse_math=False)
    parts = figure.subfigures(2, 1, height_ratios=(above, below)) if clustered else [figure]
    damped = result["kl"]["removed"] is not None
    axes = parts[0].subplots(1, 2 + damped, sharey=True)
    _shares(axes[0], domains)
    _scales(axes[1], domains, result["questions"])
    if damped:
        _damping(axes[2], domains, result["kl"])
    if clustered:
        _clusters(parts[1], clustered)
    return figure


def _shares(axis: Any, domains: Domains) -> None:
    """Each domain's part of the questions and of the advantage, two bars a line."""
    total = sum(domain["n"] for _, domain in domains)
    lines = range(len(domains))
    shares = [100 * domain["share"] for _, domain in domains]
    axis.barh([y - 0.19 for y in lines], [100 * d["n"] / total for _, d in domains], 0.36, color=PALE)
    bars = axis.barh([y + 0.19 for y in lines], shares, 0.36, color=STRONG)
    axis.bar_label(bars, [f"{share:.3g}%" for share in shares], padding=2, fontsize=7, color=STRONG)
    axis.set_yticks(lines, [f"{_short(name)}  n={domain['n']}" for name, domain in domains], parse_math=False)
    axis.set_ylim(len(domains) - 0.4, -0.6)
    axis.margins(x=0.16)
    _dress(axis, "share of questions (grey) and of |advantage| (blue)", "%")


def _scales(axis: Any, domains: Domains, questions: Mapping[str, Mapping[str, Any]]) -> None:
    """A bubble for every scale that a domain's questions got, its area their number."""
    lines = {name: y for y, (name, _) in enumerate(domains)}
    found = Counter(
        (question["relative_scale"], lines[question["domain"]])
        for question in questions.values()
        if question["relative_scale"] is not None and question["domain"] in lines
    )
    _dress(axis, "scale of the questions, by the smallest one", "times the smallest; area: number of questions")
    if found:
        x, y = zip(*found, strict=True)
        areas = [20 + 200 * n / max(found.values()) for n in found.values()]
        axis.scatter(x, y, areas, color=STRONG, alpha=0.6, edgecolors="white", linewidths=0.6)
        axis.set_xscale("log")
        axis.set_xlim(0.6, max(10.0, max(x)) / 0.6)
        _plain_numbers(axis.xaxis)


def _damping(axis: Any, domains: Domains, kl: Mapping[str, Any]) -> None:
    """What damping by KL left of each domain's positive advantage, and what it took."""
    taken = [100 * domain["removed"] for _, domain in domains]
    lines = range(len(domains))
    axis.barh(lines, [100 - part for part in taken], 0.62, color=STRONG)
    bars = axis.barh(lines, taken, 0.62, left=[100 - part for part in taken], color=TAKEN)
    labels = [f"{part:.3g}%" if part >= 0.05 else "" for part in taken]
    axis.bar_label(bars, labels, padding=2, fontsize=7, color=INK)
    axis.set_xlim(0, 116)
    note = f"% of the positive; threshold {kl['threshold']:.3g}, {100 * kl['removed']:.3g}% taken in all"
    _dress(axis, "positive advantage: kept (blue), taken by KL (orange)", note)


def _clusters(part: Any, domains: Domains) -> None:
    """Mean reward against T_c, a panel a domain, the same axes for all; clusters whose rewards are all 0 are told of.

    Clusters of n questions lie on the line T_c = sqrt(n) times mean reward.
    """
    shown = {name: [c for c in domain["clusters"] if c["mean_reward"] > 0] for name, domain in domains}
    found = [cluster for clusters in shown.values() for cluster in clusters]
    largest, right = (max((cluster[key] for cluster in found), default=1) for key in ("n", "mean_reward"))
    temperatures = [cluster["temperature"] for cluster in found] or [1.0]
    panels = part.subplots(ceil(len(domains) / COLUMNS), COLUMNS, sharex=True, sharey=True, squeeze=False).ravel()
    panels[0].set_yscale("log")
    panels[0].set_ylim(min(temperatures) / 2, max(right * largest**0.5, *temperatures) * 1.5)
    panels[0].set_xlim(0, right * 1.16)
    _plain_numbers(panels[0].yaxis, (1.0, 2.0, 5.0) if max(temperatures) < 50 * min(temperatures) else (1.0,))
    for axis, (name, domain) in zip(panels, domains, strict=False):
        _lines(axis, right, largest)
        x, y = ([cluster[key] for cluster in shown[name]] for key in ("mean_reward", "temperature"))
        areas = [12 + 110 * cluster["n"] / largest for cluster in shown[name]]
        axis.scatter(x, y, areas, color=STRONG, alpha=0.6, edgecolors="white", linewidths=0.5)
        zero = sum(c["n"] for c in domain["clusters"]) - sum(c["n"] for c in shown[name])
        note = f"{zero} questions of reward 0" if zero else ""
        axis.text(0.97, 0.03, note, fontsize=6.5, color=INK, ha="right", transform=axis.transAxes)
        cap = f"{len(domain['clusters'])} clusters{', no elbow' if domain['hit_cap'] else ''}"
        _dress(axis, f"{_short(name)}\n{cap}", "")
    for index in range(len(domains), len(panels)):
        panels[index].set_visible(False)
        panels[max(index - COLUMNS, 0)].tick_params(labelbottom=True)
    label = "mean reward of each cluster; grey lines: clusters of so many questions"
    part.supxlabel(label, x=0.03, ha="left", fontsize=7.5, color=INK)
    part.supylabel("temperature T_c", fontsize=7.5, color=INK)


def _lines(axis: Any, right: float, largest: int) -> None:
    """T_c of clusters of 1, 4, 16, .. questions by their mean reward."""
    means = [right * step / 50 for step in range(1, 51)]
    for root in (2**power for power in range(ceil(log2(largest) / 2) + 1)):
        axis.plot(means, [mean * root for mean in means], color=PALE, linewidth=0.6, zorder=0)
        axis.annotate(f"{root**2}", (right, right * root), (3, 0), textcoords="offset points", fontsize=6, color=INK)


def _dress(axis: Any, title: str, label: str) -> None:
    axis.set_title(title, fontsize=8.5, color=INK, loc="left", parse_math=False)
    axis.set_xlabel(label, fontsize=7.5, color=INK, parse_math=False)
    axis.tick_params(labelsize=7.5, colors=INK, length=2)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(True, axis="x", color="#e6e6e6", linewidth=0.6)
    axis.set_axisbelow(True)


def _plain_numbers(axis: Any, steps: tuple[float, ...] = (1.0,)) -> None:
    """10 and not 10 to the power of 1, on a logarithmic axis. steps: what is numbered of every power of ten."""
    axis.set_major_locator(need("matplotlib.ticker", "plot").LogLocator(subs=steps))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter("")


def _short(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:23]}…"
