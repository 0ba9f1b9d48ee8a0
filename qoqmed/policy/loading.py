"""A policy from a recipe's `model` and `encoders`: `tiny` and a real checkpoint folder go through the same code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from qoqmed import registry
from qoqmed.errors import Problem, UserError
from qoqmed.policy import tiny
from qoqmed.policy.policy import ClinicalPolicy


@dataclass(frozen=True)
class Loaded:
    """A policy with what its prompts need."""

    policy: ClinicalPolicy
    tokenizer: Any
    image_processor: Any


def load_tiny(
    texts: Iterable[str],
    encoders: Mapping[str, nn.Module],
    *,
    seed: int,
    options: Mapping[str, Any],
    logprob_chunk: int = 512,
) -> Loaded:
    """The embedded policy: a tokenizer trained on `texts`, weights from `seed`."""
    size = tiny.TinySize(**options)
    tokenizer = tiny.tokenizer(texts, size)
    _add_placeholders(tokenizer, encoders)
    backbone = registry.load("backbones", "qwen2_5_vl")(tiny.model(tokenizer, size, seed))
    return _policy(backbone, tokenizer, tiny.image_processor(), encoders, seed, logprob_chunk)


def load_path(
    path: Path,
    encoders: Mapping[str, nn.Module],
    *,
    seed: int,
    dtype: str = "float32",
    backbone: str | None = None,
    gradient_checkpointing: bool = False,
    logprob_chunk: int = 512,
) -> Loaded:
    """A local transformers checkpoint (safetensors). The backbone is the plugin whose model_type the checkpoint has."""
    config = AutoConfig.from_pretrained(path, local_files_only=True)
    adapter = _backbone(backbone or config.model_type)
    model = adapter.model_class.from_pretrained(
        path,
        dtype=getattr(torch, dtype),
        attn_implementation=dict(adapter.attention),
        local_files_only=True,
        use_safetensors=True,
    )
    if gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    template = path / "chat_template.jinja"
    if tokenizer.chat_template is None and template.exists():
        tokenizer.chat_template = template.read_text(encoding="utf-8")
    _add_placeholders(tokenizer, encoders)
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer))
    images = Qwen2VLImageProcessorPil.from_pretrained(path, local_files_only=True)
    return _policy(adapter(model), tokenizer, images, encoders, seed, logprob_chunk)


def _backbone(name: str) -> Any:
    known = [info.name for info in registry.available("backbones")]
    if name not in known:
        raise UserError(
            Problem(
                f"no backbone reads the model type {name!r}",
                where="model.path",
                expected=f"one of {', '.join(known)}",
                mend="install a plugin that offers it, or name one by `model.backbone`",
            )
        )
    return registry.load("backbones", name)


def _add_placeholders(tokenizer: Any, encoders: Mapping[str, nn.Module]) -> None:
    names = [str(encoder.placeholder).removeprefix("<|").removesuffix("_pad|>") for encoder in encoders.values()]
    tokens = [f"<|{name}_{part}|>" for name in names for part in ("start", "pad", "end")]
    tokenizer.add_special_tokens({"additional_special_tokens": tokens}, replace_extra_special_tokens=False)


def _policy(
    backbone: Any, tokenizer: Any, images: Any, encoders: Mapping[str, nn.Module], seed: int, chunk: int
) -> Loaded:
    """Ban what must not be sampled, and initialise the projectors from `seed`."""
    vocabulary = backbone.head.weight.shape[0]
    banned = torch.zeros(vocabulary, dtype=torch.bool)
    banned[len(tokenizer) :] = True
    stop = tokenizer.eos_token_id
    banned[[i for i in tokenizer.all_special_ids if i != stop]] = True
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        policy = ClinicalPolicy(backbone, encoders, banned, chunk)
    policy.projectors.to(backbone.head.weight.dtype)
    return Loaded(policy, tokenizer, images)
