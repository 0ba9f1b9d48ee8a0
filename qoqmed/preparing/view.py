"""What a build made, as tables for a terminal."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from qoqmed.preparing.build import Built
from qoqmed.preparing.spec import Spec


def built_json(built: Built) -> dict[str, Any]:
    """The content of build.json."""
    return asdict(built) | {"folder": str(built.folder), "source": str(built.source)}


def built_view(built: Built) -> RenderableType:
    """Cases of each label in each split, and what was left out, by reason."""
    kept = Table("label", *built.rows, title=escape(f"{built.spec.data_set or built.spec.name} -> {built.folder}"))
    for label in next(iter(built.labels.values())):
        kept.add_row(Text(label), *(str(built.labels[split][label]) for split in built.rows))
    kept.add_section()
    kept.add_row("rows", *(str(count) for count in built.rows.values()))
    kept.add_row("patients", *(str(count) for count in built.patients.values()))
    parts: list[RenderableType] = [kept]
    if built.left_out:
        lost = Table("rows", "left out because", title="left_out.jsonl names each", title_justify="left")
        for reason, count in built.left_out.items():
            lost.add_row(str(count), Text(reason))
        parts.append(lost)
    parts += [Text(f"note: {what} ({count})") for what, count in built.notes.items()]
    return Group(*parts)


def specs_view(specs: list[Spec]) -> RenderableType:
    """Every spec with its domain, data set and names of options; one alone with all that a reader needs to know."""
    if len(specs) == 1:
        return _spec_view(specs[0])
    table = Table("name", "domain", "data set", "options")
    for spec in specs:
        table.add_row(spec.name, spec.domain, spec.data_set or spec.name, " ".join(spec.options))
    return table


def _spec_view(spec: Spec) -> RenderableType:
    table = Table(show_header=False, box=None)
    options = " ".join(f"{key}={value}" for key, value in spec.options.items())
    told = {"data set": f"{spec.data_set or spec.name} ({spec.domain})", "about": spec.about, "layout": spec.layout}
    for what, text in (told | {"options": options, "licence": spec.licence}).items():
        if text:
            table.add_row(what, Text(text.strip()))
    return table
