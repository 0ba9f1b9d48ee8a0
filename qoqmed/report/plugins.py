"""Installed plugins, one plugin in detail, and the doctor's findings, for a terminal or as plain content."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from qoqmed.contracts import GROUPS
from qoqmed.registry import Argument, Description, PluginInfo, spell

if TYPE_CHECKING:
    from qoqmed.doctor import Finding

_MARKS = {"ok": ("ok", "green"), "warn": ("warn", "yellow"), "missing": ("missing", "red")}


def plugins_table(plugins: Sequence[PluginInfo]) -> Table:
    """By group, with the distribution that offers each. A name that two offer is marked."""
    table = Table("group", "name", "distribution", "entry point", title="Plugins")
    keys = [(info.group, info.name) for info in plugins]
    for index, info in enumerate(plugins):
        first = index == 0 or plugins[index - 1].group != info.group
        last = index + 1 == len(plugins) or plugins[index + 1].group != info.group
        twice = keys.count((info.group, info.name)) > 1
        name = Text(f"{info.name} (offered twice)", style="red") if twice else Text(info.name)
        table.add_row(info.group if first else "", name, Text(info.origin), Text(info.value), end_section=last)
    return table


def description_view(description: Description) -> RenderableType:
    """A plugin's origin, docstring and arguments."""
    info = description.info
    head = Text.assemble((info.name, "bold"), f"  {info.group}: {GROUPS[info.group]}\n")
    head.append(f"from {info.origin}, {info.value}\n\n{description.text or 'No description.'}\n")
    if description.arguments is None:
        return Group(head, Text("Its arguments cannot be read."))
    if not description.arguments:
        return Group(head, Text("It takes no arguments."))
    table = Table("argument", "type", "default")
    for argument in description.arguments:
        table.add_row(Text(argument.name), Text(_type(argument)), Text(_default(argument)))
    return Group(head, table)


def description_json(description: Description) -> dict[str, Any]:
    """The same as plain content; types and defaults as text."""
    arguments = [
        {"name": one.name, "type": _type(one), "required": one.required, "default": _default(one)}
        for one in description.arguments or ()
    ]
    return {**asdict(description.info), "description": description.text, "arguments": arguments}


def findings_table(findings: Sequence[Finding]) -> Table:
    """What `qoqmed doctor` found, with the mend beneath each part that needs one."""
    table = Table("part", "", "found", title="Environment")
    for finding in findings:
        word, colour = _MARKS[finding.status]
        text = Text(finding.found)
        if finding.mend:
            text.append(f"\n{finding.mend}", style="bold")
        table.add_row(finding.part, Text(word, style=colour), text)
    return table


def _type(argument: Argument) -> str:
    return "anything" if argument.annotation is Any else spell(argument.annotation)


def _default(argument: Argument) -> str:
    return "required" if argument.required else repr(argument.default)
