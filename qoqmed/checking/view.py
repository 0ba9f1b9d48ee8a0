"""A check's report for a terminal: what is wrong first, then what is there."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from qoqmed.checking.findings import ERROR, KINDS, WARNING, Report

SHOWN = 5  # findings of a kind
LABELS = 30  # of a data set


def report_view(report: Report, shown: int = SHOWN) -> RenderableType:
    """shown: findings of each kind that are written out."""
    parts: list[RenderableType] = []
    for severity in (ERROR, WARNING):
        for kind, meaning in KINDS.items():
            count = report.findings.counts[severity, kind]
            if count:
                style = "bold red" if severity == ERROR else "bold yellow"
                parts.append(Text(f"{severity}: {meaning}: {count:,}", style=style))
                same = [one for one in report.findings.kept if (one.severity, one.kind) == (severity, kind)]
                parts += [Padding(Text(str(one.problem)), (0, 0, 0, 2), expand=False) for one in same[:shown]]
                parts += [Text(f"  and {count - shown:,} more")] if count > shown else []
    if report.fixed is not None:
        done = [f"{count:,} {what}" for what, count in report.fixed.items() if count] or ["nothing"]
        parts.append(Text(f"mended: {'; '.join(done)}"))
    parts.append(_balance(report))
    if report.lengths:
        parts.append(_lengths(report))
    rows = ", ".join(f"{split}: {count:,} rows" for split, count in report.rows.items()) or "no usable row"
    decoded = f", media of {report.decoded:,} rows decoded" if report.decoded else ""
    parts.append(Text(f"{rows}{decoded}, {report.seconds:.1f} s"))
    verdict = f"{report.errors:,} errors, {report.warnings:,} warnings"
    parts.append(Text(verdict, style="bold red" if report.errors else "bold green"))
    return Group(*parts)


def _balance(report: Report) -> Table:
    table = Table("data set", "label", *map(escape, report.rows), title="cases by label")
    for column in table.columns[2:]:
        column.justify = "right"
    for dataset, counts in report.balance.items():
        common = sorted(counts, key=lambda label: -sum(counts[label].values()))
        for place, label in enumerate(common[:LABELS]):
            numbers = (f"{counts[label].get(split, 0):,}" for split in report.rows)
            table.add_row("" if place else Text(dataset), Text(label), *numbers)
        if len(common) > LABELS:
            table.add_row("", f"and {len(common) - LABELS} more", *("" for _ in report.rows))
    return table


def _lengths(report: Report) -> Table:
    table = Table("domain", "prompts", "shortest", "median", "95%", "longest", title="tokens of a prompt")
    for domain, one in report.lengths.items():
        table.add_row(
            Text(domain), *(f"{number:,}" for number in (one.cases, one.shortest, one.median, one.p95, one.longest))
        )
    return table
