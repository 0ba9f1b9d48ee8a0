"""A policy from a recipe's `model` and `encoders`: `tiny` and a real checkpoint folder go through the same code."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from qoqmed import registry
from qoqmed.errors import Problem, UserError, near
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
    size = _size(options)
    tokenizer = tiny.tokenizer(texts, size)
    _add_placeholders(tokenizer, encoders)
    backbone = registry.load("backbones", "qwen2_5_vl")(tiny.model(tokenizer, size, seed))
    return _policy(backbone, tokenizer, tiny.image_processor(), encoders, seed, logprob_chunk)


def _size(options: Mapping[str, Any]) -> tiny.TinySize:
    known = [field.name for field in fields(tiny.TinySize)]
    problems = [
        Problem("unknown key", f"model.options.{name}", str(value), f"one of {', '.join(known)}", near(name, known))
        for name, value in options.items()
        if name not in known
    ]
    if problems:
        raise UserError(problems)
    return tiny.TinySize(**options)


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
    """A local transformers checkpoint (safetensors). The backbone is the plugin whose model_type the checkpoint has.

    Raises UserError, naming the folder, where it is none or cannot be read. Code that it may hold is never run.
    """
    adapter = _backbone(backbone or _model_type(path))
    with _reading(path):
        model, report = adapter.model_class.from_pretrained(
            path,
            dtype=getattr(torch, dtype),
            attn_implementation=dict(adapter.attention),
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
        if report["missing_keys"]:  # transformers only logs that it made them up
            raise ValueError(f"it lacks the weights {', '.join(sorted(report['missing_keys']))}")
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        images = Qwen2VLImageProcessorPil.from_pretrained(path, local_files_only=True)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    template = path / "chat_template.jinja"
    if tokenizer.chat_template is None and template.exists():
        tokenizer.chat_template = template.read_text(encoding="utf-8")
    _add_placeholders(tokenizer, encoders)
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model.resize_token_embeddings(len(tokenizer))
    return _policy(adapter(model), tokenizer, images, encoders, seed, logprob_chunk)


def _model_type(path: Path) -> str:
    """As config.json has it: transformers would refuse, and name no key, what it does not know itself."""
    file = path / "config.json"
    if not file.is_file():
        expected = "a folder with config.json, safetensors and a tokenizer"
        raise UserError(Problem("no checkpoint here", where="model.path", got=str(path), expected=expected))
    with _reading(path):
        return str(json.loads(file.read_text(encoding="utf-8")).get("model_type"))


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:  # boundary: by these transformers says what is wrong
        what = f"the checkpoint cannot be read: {' '.join(str(error).split())[:300]}"
        raise UserError(Problem(what, where="model.path", got=str(path))) from error


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
