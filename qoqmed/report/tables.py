"""Results as tables for a terminal. Nothing here prints: the command line does."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich.table import Table

SHOWN = ("accuracy", "f1", "precision", "recall", "specificity", "exact_match", "support", "reward")


def metrics_table(result: Mapping[str, Any]) -> Table:
    """`{"overall": .., "domains": .., "datasets": ..}`: a row for all, each domain, each of its data sets.

    Of a clinical result the columns of `SHOWN`, so that the table fits a terminal; of any other metric all.
    """
    rows: list[tuple[str, Mapping[str, float]]] = [("overall", result["overall"])]
    for domain, values in result["domains"].items():
        rows.append((domain, values))
        own = {name: of for name, of in result["datasets"].items() if name.partition("/")[0] == domain}
        if len(own) > 1:  # a domain's only data set would repeat its row
            rows += [(f"  {name.partition('/')[2]}", of) for name, of in own.items()]
    found = list(dict.fromkeys(name for _, values in rows for name in values))
    columns = [name for name in SHOWN if name in found] or found
    hidden = len(found) - len(columns)
    table = Table("", *columns, title="Metrics", caption=f"{hidden} more with --json" if hidden else None)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, values in rows:
        table.add_row(name, *(number(values.get(column)) for column in columns), end_section=name == "overall")
    return table


def advantage_table(result: Mapping[str, Any]) -> Table:
    """What an estimator did: for each domain, then for each of its clusters, n, mean reward and temperature."""
    threshold = result["kl"]["threshold"]
    damping = "no KL damping" if threshold is None else f"KL damping above the threshold {number(threshold)}"
    table = Table(title="Advantages", caption=f"{len(result['advantages'])} rollouts; {damping}. --json has them all.")
    table.add_column("domain, its clusters")
    for column in ("questions", "mean reward", "temperature"):
        table.add_column(column, justify="right")
    for domain, values in result["domains"].items():
        clusters = values.get("clusters") or []
        table.add_row(domain, *_cells(values), end_section=not clusters)
        for index, cluster in enumerate(clusters, 1):
            table.add_row(f"  cluster {index}", *_cells(cluster), style="dim", end_section=index == len(clusters))
    return table


def number(value: Any) -> str:
    """Whole numbers whole, others to four digits; a dash for what is not defined."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return f"{value:d}" if isinstance(value, int) else f"{value:.4g}"


def _cells(values: Mapping[str, Any]) -> list[str]:
    return [number(values.get(name)) for name in ("n", "mean_reward", "temperature")]
