"""What a build made, as tables for a terminal."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from qoqmed.preparing.build import Built
from qoqmed.preparing.spec import Spec


def built_json(built: Built) -> dict[str, Any]:
    """The content of build.json."""
    return asdict(built) | {"folder": str(built.folder), "source": str(built.source)}


def built_view(built: Built) -> RenderableType:
    """Cases of each label in each split, and what was left out, by reason."""
    kept = Table("label", *built.rows, title=f"{built.spec.data_set or built.spec.name} -> {built.folder}")
    for label in next(iter(built.labels.values())):
        kept.add_row(label, *(str(built.labels[split][label]) for split in built.rows))
    kept.add_section()
    kept.add_row("rows", *(str(count) for count in built.rows.values()))
    kept.add_row("patients", *(str(count) for count in built.patients.values()))
    parts: list[RenderableType] = [kept]
    if built.left_out:
        lost = Table("rows", "left out because", title="left_out.jsonl names each")
        for reason, count in built.left_out.items():
            lost.add_row(str(count), reason)
        parts.append(lost)
    parts += [f"note: {what} ({count})" for what, count in built.notes.items()]
    return Group(*parts)


def specs_view(specs: list[Spec]) -> RenderableType:
    """Every spec with its domain, data set and options; of one alone, its layout, too."""
    table = Table("name", "domain", "data set", "options", "licence")
    for spec in specs:
        options = " ".join(f"{key}={value}" for key, value in spec.options.items())
        table.add_row(spec.name, spec.domain, spec.data_set or spec.name, options, spec.licence)
    if len(specs) > 1:
        return table
    return Group(table, *(part.strip() for part in (specs[0].about, specs[0].layout) if part))
