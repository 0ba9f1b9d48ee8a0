"""The explanation of an estimator (`qoqmed.report.advantage_explained`) for a terminal. Nothing here prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
    table = Table(title="Advantages", caption=_caption(result))
    table.add_column("domain, its clusters")
    scale = ("scale", "x smallest")
    for column in ("questions", "mean reward", "temperature", *scale, "share of |A|", "KL took", "elbow"):
        table.add_column(column, justify="right")
    for name, domain in result["domains"].items():
        clusters, own = domain["clusters"], [q for q in result["questions"].values() if q["domain"] == name]
        scales = [_range([q[key] for q in own]) for key in ("scale", "relative_scale")]
        took = percent(domain["removed"])
        elbow = f"{len(clusters)} clusters{', the cap' if domain['hit_cap'] else ''}" if len(clusters) > 1 else "-"
        cells = [*_statistics(domain), *scales, percent(domain["share"]), took, elbow]
        table.add_row(Text(name, style="bold"), *cells, end_section=not clusters)
        for index, cluster in enumerate(clusters, 1):
            members = [result["questions"][question]["relative_scale"] for question in cluster["questions"]]
            scales = [number(cluster["scale"]), _range(members)]
            cells = [*_statistics(cluster), *scales, percent(cluster["share"])]
            table.add_row(f"  cluster {index}", *cells, style="dim", end_section=index == len(clusters))
    return table


def _caption(result: Mapping[str, Any]) -> str:
    threshold, removed = result["kl"]["threshold"], result["kl"]["removed"]
    damping = "no KL damping"
    if threshold is not None:
        damping = f"KL damping, threshold {number(threshold)}, took {percent(removed)} of the positive advantage"
    relative = [q["relative_scale"] for q in result["questions"].values() if q["relative_scale"] is not None]
    ratio = f"largest scale over smallest {number(max(relative))}" if relative else "all advantages are 0"
    capped = sum(domain["hit_cap"] for domain in result["domains"].values())
    elbows = f"no elbow in {capped} of {len(result['domains'])} domains"
    return f"{len(result['advantages'])} rollouts; {ratio}; {damping}; {elbows}. --json has all."


def _questions(result: Mapping[str, Any]) -> Table:
    found = sorted(result["questions"].items(), key=lambda item: -item[1]["share"])[:LISTED]
    left = len(result["questions"]) - len(found)
    table = Table(title="Questions with most of |A|", caption=f"{left} more with --json" if left else None)
    for column in ("question", "domain"):
        table.add_column(column)
    for column in ("cluster", "mean reward", "scale", "x smallest", "share of |A|"):
        table.add_column(column, justify="right")
    for name, question in found:
        cluster = "-" if question["cluster"] is None else str(question["cluster"] + 1)
        figures = [number(question[key]) for key in ("mean_reward", "scale", "relative_scale")]
        table.add_row(Text(name), Text(question["domain"]), cluster, *figures, percent(question["share"]))
    return table


def _statistics(values: Mapping[str, Any]) -> list[str]:
    return [number(values[name]) for name in ("n", "mean_reward", "temperature")]


def _range(values: list[float | None]) -> str:
    """Smallest to largest of what is defined."""
    found = [value for value in values if value is not None]
    ends = [number(end) for end in (min(found), max(found))] if found else ["-"]
    return " - ".join(dict.fromkeys(ends))


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.3g}%"
