"""A work-around for a torchvision that was built for another torch.

Its compiled operators do not load then, and `import torchvision` fails with "operator torchvision::nms does not exist"
(and with it parts of transformers and torchmetrics), though we use none of them. Declaring the two schemas that its
import asks for mends the import; calling one of these operators still fails.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from functools import cache

import torch

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


@dataclass(frozen=True)
class TorchvisionState:
    """works: `import torchvision` does. repaired: by this module. error: why it does not, or did not."""

    installed: bool
    works: bool
    repaired: bool = False
    error: str = ""


@cache
def repair() -> TorchvisionState:
    """Import torchvision; for each operator that its import misses, declare the schema and try again. Acts once."""
    if importlib.util.find_spec("torchvision") is None:
        return TorchvisionState(installed=False, works=False)
    first = error = _import_error()
    for name, schema in _SCHEMAS.items():
        if f"operator torchvision::{name} does not exist" in error:
            _declare(schema)
            error = _import_error()
    return TorchvisionState(installed=True, works=not error, repaired=bool(first) and not error, error=error or first)


@cache  # keeps the library: its schema lives as long as it does
def _declare(schema: str) -> torch.library.Library:
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    library.define(schema)  # type: ignore[no-untyped-call]
    return library


def _import_error() -> str:
    try:
        importlib.import_module("torchvision")
    except Exception as error:  # boundary: torchvision's import fails in as many ways as it can be built wrongly
        return f"{type(error).__name__}: {error}"
    return ""
