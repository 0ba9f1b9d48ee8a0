"""What adversarial responses earn (`qoqmed.reward_checking`), for a terminal and as plain content."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from qoqmed.report.tables import number
from qoqmed.reward_checking import Checked
from qoqmed.reward_trial import Tried


def reward_check_json(checked: Checked) -> dict[str, Any]:
    """Plain content. `responses` by score, the highest first."""
    return {
        "passed": checked.passed,
        "threshold": checked.threshold,
        "high": [one.name for one in checked.high],
        "broken": [one.name for one in checked.broken],
        "best": {name: {"name": one.name, "value": one.rewards[name]} for name, one in checked.best.items()},
        "cases": list(checked.cases),
        "synthetic": checked.synthetic,
        "references": [asdict(one) for one in checked.references],
        "responses": [asdict(one) for one in checked.tried],
    }


def reward_check_view(checked: Checked) -> RenderableType:
    """A table of all kinds of response, what broke, and the finding in words."""
    names = list(dict.fromkeys(name for one in checked.references + checked.tried for name in one.rewards))
    source = "made up" if checked.synthetic else "of data.train"
    caption = f"means over {len(checked.cases)} cases {source}; yellow: at least {checked.threshold:g}"
    table = Table("response", "score", "highest", *names, "s", title="Rewards of responses", caption=caption)
    for column in table.columns[1:]:
        column.justify = "right"
    for place, one in enumerate(checked.references + checked.tried):
        last = place == len(checked.references) - 1
        style = "dim" if place <= len(checked.references) - 1 else "bold yellow" if one in checked.high else ""
        table.add_row(*_cells(one, names, checked.threshold), style=style, end_section=last)
    return Group(table, *_findings(checked))


def _cells(one: Tried, names: list[str], threshold: float) -> list[Text | str]:
    values = [one.rewards.get(name) for name in names]
    cells = [Text(number(value), style="yellow" if (value or 0.0) >= threshold else "") for value in values]
    score = "invalid" if one.broken and one.score is None else number(one.score)
    return [one.name, score, number(one.highest), *cells, f"{one.seconds:.3f}"]


def _findings(checked: Checked) -> list[Text]:
    best = [f"{name} {number(one.rewards[name])} for {one.name!r}" for name, one in checked.best.items()]
    out = [Text(f"each reward alone pays at most: {'; '.join(best)}")]
    for one in checked.broken:
        out += [Text(f"broken by {one.name!r}: {reason}", style="red") for reason in one.broken]
    for one in checked.high:
        told = "; ".join(f"{name}: {reason}" for name, reason in one.reasons.items() if reason)
        out.append(Text(f"scores high: {one.name!r}, {number(one.score)} ({told})", style="yellow"))
    if checked.passed:
        out.append(Text(f"no adversarial response scores {checked.threshold:g} or more, and none breaks a reward"))
    return out
