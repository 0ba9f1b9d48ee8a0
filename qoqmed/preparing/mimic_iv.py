"""placeholder"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from qoqmed.preparing.left_out import LeftOut


def mimic_iv(root: Path, out: LeftOut) -> Iterator[dict[str, str]]:
    yield from ()
