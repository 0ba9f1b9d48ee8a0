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


def number(value: Any) -> str:
    """Whole numbers whole, others to four digits; a dash for what is not defined."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return f"{value:d}" if isinstance(value, int) else f"{value:.4g}"
