"""What commands write: results on stdout, what went wrong on stderr."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from typing import Any

import typer
from rich.console import Console, RenderableType


def show(result: RenderableType | dict[str, Any] | list[Any]) -> None:
    """A table, or plain content as JSON."""
    if isinstance(result, (dict, list)):
        typer.echo(json.dumps(_finite(result), indent=2, allow_nan=False))
    else:
        Console(width=None if sys.stdout.isatty() else 160).print(result)


def show_lines(rows: Sequence[dict[str, Any]]) -> None:
    """JSON Lines."""
    for row in rows:
        typer.echo(json.dumps(_finite(row), allow_nan=False))


def say(text: str) -> None:
    """A line, or several, of what went wrong."""
    Console(stderr=True, soft_wrap=True).print(text, style="red", markup=False, highlight=False)


def _finite(value: Any) -> Any:
    """JSON has no NaN: what is not defined is null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
