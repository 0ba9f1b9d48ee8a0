"""Metrics as plain numbers, whatever they came as."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def plain(metrics: Mapping[str, Any]) -> dict[str, int | float]:
    """Tensors and numpy scalars of one element become numbers. NaN and infinities are kept."""
    return {name: value if type(value) in (int, float) else float(value) for name, value in metrics.items()}
