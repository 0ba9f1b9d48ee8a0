"""`import qoqmed.hf` makes transformers' AutoConfig, AutoModelForImageTextToText and AutoProcessor know our models.

    import qoqmed.hf
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(folder)

No code is taken from the folder: encoders are plugins of installed packages, named in config.json.
"""

from __future__ import annotations

import warnings

from qoqmed import registry
from qoqmed.errors import PluginError
from qoqmed.policy.registration import register


def _register_all() -> None:
    """A third party's broken backbone does not keep the others from being known."""
    for info in registry.available("backbones"):
        try:
            register(registry.load("backbones", info.name))
        except PluginError as error:
            warnings.warn(f"left out: {error}")


_register_all()
