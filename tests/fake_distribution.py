"""Writes an installed distribution by hand: a module and the metadata that `pip install --target` would leave."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def install(
    folder: Path, name: str, plugins: Mapping[str, Mapping[str, str]], code: str = "", version: str = "1.0"
) -> None:
    """plugins: group -> entry points. code: of the module `name`, with dashes as underscores."""
    module = name.replace("-", "_")
    (folder / f"{module}.py").write_text(code)
    metadata = folder / f"{module}-{version}.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = []
    for group, entries in plugins.items():
        lines += [f"[qoqmed.{group}]", *(f"{key} = {value}" for key, value in entries.items())]
    (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n")
