"""The entry point `qoqmed` of vLLM's plugin group `vllm.general_plugins`."""

from __future__ import annotations


def register() -> None:
    """Make vLLM know the clinical models, by the names of our transformers classes. Doing it again changes nothing.

    Every process of vLLM's calls this, whatever model it is for: a plain one pays for these imports, too.
    """
    from vllm import ModelRegistry

    import qoqmed.hf  # noqa: F401  (AutoConfig and AutoProcessor know our models by it)
    from qoqmed.serving.models import MODELS

    known = ModelRegistry.get_supported_archs()
    for name, model in MODELS.items():
        if name not in known:  # the class itself: a name would be looked at in a process of its own, for seconds
            ModelRegistry.register_model(name, model)
