"""qoqmed: reinforcement-learning post-training for clinical vision-language models. `import qoqmed` loads no torch."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {  # lazy name -> where it lives
    "fit": "qoqmed.fit:fit",
    "evaluate": "qoqmed.evaluate:evaluate",
    "predict": "qoqmed.predict:predict",
    "export": "qoqmed.export:export",
    "load": "qoqmed.build:load",
    "score": "qoqmed.offline:score",
    "estimate": "qoqmed.offline:estimate",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'qoqmed' has no attribute {name!r}")
    module, attribute = _PUBLIC[name].split(":")
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return __all__


class _Package(ModuleType):
    """`qoqmed.fit`, `predict` and the like stay functions, also once the modules of these names have been imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _PUBLIC and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
