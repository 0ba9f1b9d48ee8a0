"""A finished export as a table for a terminal."""

from __future__ import annotations

from rich.table import Table

from qoqmed.export import MERGED, TOLERANCE, Exported


def export_table(made: Exported) -> Table:
    """What was compared, and by how much it differs."""
    room = max(1.0, made.scale)
    title = f"{made.folder}: {made.checkpoint} in {made.dtype}"
    same = f"{made.tensors} tensors are equal bit for bit. Loaded in a clean process by transformers and qoqmed.hf."
    table = Table("logits of", "largest difference", "allowed", title=title, caption=same)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, value in made.differences.items():
        table.add_row(name, f"{value:.2g}", f"{TOLERANCE * room:.2g}")
    if made.merging is not None:
        table.add_row("policy before merging LoRA", f"{made.merging:.2g}", f"{MERGED * room:.2g}")
    for name in made.left_out:
        table.add_row(f"{name}: weights only", "-", "-")
    return table
