"""The explanation of an estimator (`qoqmed.report.advantage_explained`) for a terminal. Nothing here prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from qoqmed.report.tables import number

LISTED = 10  # questions that are shown, those of the largest share


def advantage_view(result: Mapping[str, Any]) -> RenderableType:
    """Domains with their clusters, the questions that got most, what damping took, and the estimator's warnings."""
    warnings = [Text(f"warning: {warning}", style="yellow") for warning in result["warnings"]]
    return Group(_domains(result), _questions(result), *warnings)


def _domains(result: Mapping[str, Any]) -> Table:
    """A row for each domain, then for each of its clusters."""
    scaled = _scales(result)
    damped = result["kl"]["removed"] is not None
    table = Table(title="Advantages", caption=_caption(result), box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("domain")
    columns = ("n", "mean reward", *(("T", "scale", "x smallest") if scaled else ()), "share of |A|")
    for column in (*columns, *(("KL took",) if damped else ()), *(("clusters",) if scaled else ())):
        table.add_column(column, justify="right")
    for name, domain in result["domains"].items():
        clusters, own = domain["clusters"], [q for q in result["questions"].values() if q["domain"] == name]
        scales = [_range([q[key] for q in own]) for key in ("scale", "relative_scale")]
        cells = _figures(domain, scales, scaled) + ([percent(domain["removed"])] if damped else [])
        elbow = f"{len(clusters)}{' (cap)' if domain['hit_cap'] else ''}" if len(clusters) > 1 else "-"
        table.add_row(Text(name, style="bold"), *cells, *([elbow] if scaled else []))
        for index, cluster in enumerate(clusters, 1):
            members = [result["questions"][question]["relative_scale"] for question in cluster["questions"]]
            cells = _figures(cluster, [number(cluster["scale"]), _range(members)], scaled)
            table.add_row(f"  cluster {index}", *cells, style="dim")
    return table


def _scales(result: Mapping[str, Any]) -> bool:
    """Whether the estimator scales questions at all, or puts them into clusters."""
    scales = {q["scale"] for q in result["questions"].values()} - {None, 1.0}
    return bool(scales) or any(domain["clusters"] for domain in result["domains"].values())


def _caption(result: Mapping[str, Any]) -> str:
    threshold, removed = result["kl"]["threshold"], result["kl"]["removed"]
    scaled, damping = _scales(result), ""
    if threshold is not None:
        damping = f"KL damping, threshold {number(threshold)}, took {percent(removed)} of the positive advantage"
    elif scaled:
        damping = "no KL damping"
    relative = [q["relative_scale"] for q in result["questions"].values() if q["relative_scale"] is not None]
    ratio = f"largest scale over smallest {number(max(relative))}" if relative and scaled else ""
    nothing = "" if relative else "all advantages are 0: nothing to learn from these rewards"
    capped = sum(domain["hit_cap"] for domain in result["domains"].values())
    elbows = f"no elbow in {capped} of {len(result['domains'])} domains" if scaled else ""
    told = "; ".join(filter(None, (f"{len(result['advantages'])} rollouts", nothing, ratio, damping, elbows)))
    return f"{told}. --json has all."


def _questions(result: Mapping[str, Any]) -> Table:
    found = sorted(result["questions"].items(), key=lambda item: -item[1]["share"])[:LISTED]
    left = len(result["questions"]) - len(found)
    scaled, caption = _scales(result), f"{left} more with --json" if left else None
    table = Table(title="Questions with most of |A|", caption=caption, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("question", "domain"):
        table.add_column(column)
    for column in ("mean reward", *(("cluster", "scale", "x smallest") if scaled else ()), "share of |A|"):
        table.add_column(column, justify="right")
    for name, question in found:
        cluster = "-" if question["cluster"] is None else str(question["cluster"] + 1)
        scales = [cluster, number(question["scale"]), number(question["relative_scale"])] if scaled else []
        cells = [number(question["mean_reward"]), *scales, percent(question["share"])]
        table.add_row(Text(name), Text(question["domain"]), *cells)
    return table


def _figures(values: Mapping[str, Any], scales: list[str], scaled: bool) -> list[str]:
    """Cells of a domain or a cluster: from its number of questions to its share."""
    temperature = [number(values["temperature"]), *scales] if scaled else []
    return [number(values["n"]), number(values["mean_reward"]), *temperature, percent(values["share"])]


def _range(values: list[float | None]) -> str:
    """Smallest to largest of what is defined."""
    found = [value for value in values if value is not None]
    ends = [number(end) for end in (min(found), max(found))] if found else ["-"]
    return " - ".join(dict.fromkeys(ends))


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.3g}%"
