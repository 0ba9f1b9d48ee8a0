"""Make transformers know a backbone's clinical model, by its AutoClasses and by the names of weights on disk."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping

from qoqmed.policy.processor import ClinicalProcessor


def register(backbone: Any) -> None:
    """Doing it again changes nothing. On disk, weights keep the names that the plain model has there."""
    config = backbone.config_class
    AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoModelForImageTextToText.register(config, backbone, exist_ok=True)
    AutoProcessor.register(config, ClinicalProcessor, exist_ok=True)
    names = get_checkpoint_conversion_mapping(backbone.plain_class.__name__)
    if names is not None:
        register_checkpoint_conversion_mapping(backbone.__name__, names, overwrite=True)
