"""A policy from a recipe's `model` and `encoders`: `tiny` and a real checkpoint folder go through the same code."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from qoqmed import registry
from qoqmed.config.schema import Node
from qoqmed.errors import Problem, UserError, near
from qoqmed.policy import tiny
from qoqmed.policy.clinical import check_encoders, encoder_spec
from qoqmed.policy.policy import ClinicalPolicy
from qoqmed.policy.processor import ClinicalProcessor
from qoqmed.policy.registration import register

PREFIX = "qoqmed_"  # the model_type of a clinical model is this and the plain one's


@dataclass(frozen=True)
class Loaded:
    """A policy with what its prompts need."""

    policy: ClinicalPolicy
    processor: ClinicalProcessor

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer


def load_tiny(
    texts: Iterable[str],
    encoders: Mapping[str, Node],
    *,
    seed: int,
    options: Mapping[str, Any],
    backbone: str | None = None,
    logprob_chunk: int = 512,
) -> Loaded:
    """The embedded policy: a tokenizer trained on `texts`, weights from `seed`."""
    size = _size(options)
    tokenizer = tiny.tokenizer(texts, size)
    made = _make(encoders, seed)
    _add_placeholders(tokenizer, made)  # before the model: its vocabulary has room for them
    adapter = _backbone(backbone or "qwen2_5_vl")
    model = tiny.model(adapter, tokenizer, size, seed)
    images = tiny.image_processor(model.patch)
    return _loaded(model, tokenizer, images, None, encoders, made, seed, logprob_chunk)


def _size(options: Mapping[str, Any]) -> tiny.TinySize:
    known = [field.name for field in fields(tiny.TinySize)]
    problems = [
        Problem("unknown key", f"model.options.{name}", str(value), f"one of {', '.join(known)}", near(name, known))
        for name, value in options.items()
        if name not in known
    ]
    if problems:
        raise UserError(problems)
    size = tiny.TinySize(**options)
    if size.heads % 2 or size.hidden % (8 * size.heads) or size.vision_hidden % 8:
        got = f"hidden {size.hidden}, heads {size.heads}, vision_hidden {size.vision_hidden}"
        expected = "heads even, hidden a multiple of 8 x heads, vision_hidden a multiple of 8"
        raise UserError(Problem("sizes that do not fit together", "model.options", got, expected))
    return size


def load_path(
    path: Path,
    encoders: Mapping[str, Node],
    *,
    seed: int,
    dtype: str = "float32",
    backbone: str | None = None,
    gradient_checkpointing: bool = False,
    logprob_chunk: int = 512,
) -> Loaded:
    """A local folder in transformers' layout (safetensors): a plain backbone, or a clinical model with its encoders.

    Encoders of the recipe that the model lacks are added to it. The backbone is the plugin of the folder's model_type.
    Raises UserError, naming the folder, where it is none or cannot be read. Code that it may hold is never run.
    """
    adapter = _backbone(backbone or _model_type(path))
    register(adapter)
    with _reading(path):
        settings, _ = adapter.config_class.get_config_dict(path, local_files_only=True)
        settings.pop("model_type", None)  # a plain folder has the plain one
        model, report = adapter.from_pretrained(
            path,
            config=adapter.config_class.from_dict(settings),
            dtype=getattr(torch, dtype),
            attn_implementation=dict(adapter.attention),
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
        if report["missing_keys"]:  # transformers only logs that it made them up
            raise ValueError(f"it lacks the weights {', '.join(sorted(report['missing_keys']))}")
        processor = ClinicalProcessor.from_pretrained(path)
        if processor.chat_template is None:
            raise ValueError("it has no chat template (chat_template.jinja, or in tokenizer_config.json)")
    if gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    check_encoders(encoders, model.config.encoders or {})
    added = {modality: node for modality, node in encoders.items() if modality not in (model.config.encoders or {})}
    made = _make(added, seed)
    tokenizer = processor.tokenizer
    _add_placeholders(tokenizer, made)
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model.resize_token_embeddings(len(tokenizer))
    template = processor.chat_template
    return _loaded(model, tokenizer, processor.image_processor, template, added, made, seed, logprob_chunk)


def _model_type(path: Path) -> str:
    """As config.json has it: transformers would refuse, and name no key, what it does not know itself."""
    file = path / "config.json"
    if not file.is_file():
        expected = "a folder with config.json, safetensors and a tokenizer"
        raise UserError(Problem("no checkpoint here", where="model.path", got=str(path), expected=expected))
    with _reading(path):
        config = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("config.json holds no object")
        return str(config.get("model_type")).removeprefix(PREFIX)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # boundary: transformers reads files of others, and fails in many ways
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


def _make(encoders: Mapping[str, Node], seed: int) -> dict[str, Any]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 2)
        made = {modality: registry.make("encoders", node) for modality, node in encoders.items()}
    problems = [
        Problem(
            "the encoder reads another modality", f"encoders.{key}", f"{encoders[key].name}: {encoder.modality}", key
        )
        for key, encoder in made.items()
        if encoder.modality != key
    ]
    what = "this is no placeholder of an encoder"
    problems += [
        Problem(what, f"encoders.{key}", f"{encoders[key].name}: {encoder.placeholder}", f"<|{key}_pad|>")
        for key, encoder in made.items()
        if encoder.placeholder != f"<|{key}_pad|>"
    ]
    if problems:
        raise UserError(problems)
    return made


def _add_placeholders(tokenizer: Any, encoders: Mapping[str, Any]) -> None:
    pads = [str(encoder.placeholder) for encoder in encoders.values()]
    tokens = [pad.replace("_pad|>", f"_{part}|>") for pad in pads for part in ("start", "pad", "end")]
    tokenizer.add_special_tokens({"additional_special_tokens": tokens}, replace_extra_special_tokens=False)


def _loaded(
    model: Any,
    tokenizer: Any,
    images: Any,
    template: str | None,
    nodes: Mapping[str, Node],
    encoders: Mapping[str, Any],
    seed: int,
    chunk: int,
) -> Loaded:
    """Add the encoders, initialise their projectors from `seed`, and ban what must not be sampled."""
    specs = {
        modality: encoder_spec(nodes[modality], encoder, int(tokenizer.convert_tokens_to_ids(encoder.placeholder)))
        for modality, encoder in encoders.items()
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        model.add_encoders(encoders, specs)
    banned = torch.zeros(model.lm_head.weight.shape[0], dtype=torch.bool)
    banned[len(tokenizer) :] = True
    stop = tokenizer.eos_token_id
    banned[[i for i in tokenizer.all_special_ids if i != stop]] = True
    processor = ClinicalProcessor(images, tokenizer, template, model.config.encoders)
    return Loaded(ClinicalPolicy(model, banned, chunk), processor)
