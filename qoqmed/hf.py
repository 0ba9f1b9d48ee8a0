"""`import qoqmed.hf` makes transformers' AutoConfig, AutoModelForImageTextToText and AutoProcessor know our models.

    import qoqmed.hf
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(folder)

No code is taken from the folder: encoders are plugins of installed packages, named in config.json.
"""

from __future__ import annotations

from qoqmed import registry
from qoqmed.policy.registration import register

for _info in registry.available("backbones"):
    register(registry.load("backbones", _info.name))
