"""Encoders and projectors beside a transformers vision-language model: a mixin before its class.

A time series becomes `Encoder.num_tokens` placeholders in the prompt; projected features take their place in the token
embeddings, and positions there count like text. `config.encoders` holds what rebuilds the encoders, by modality:

    {"ecg": {"name": "ecg_jepa", "arguments": {"pool": "mean"}, "placeholder": "<|ecg_pad|>", "token_id": 151665,
             "distribution": "qoqmed", "version": "0.1.0"}}
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from qoqmed import registry
from qoqmed.config.schema import Node
from qoqmed.errors import PluginError, Problem, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel as Host
else:
    Host = object

Spec = Mapping[str, Any]  # one entry of `config.encoders`

WEIGHTS = "weights"  # the argument that names a file to start from: saved models hold the weights themselves


def encoder_spec(node: Node, encoder: Any, token_id: int) -> dict[str, Any]:
    """What `config.encoders` keeps of an encoder: all its arguments, and the package that it comes from."""
    info = registry.find("encoders", node.name, node.where)
    bound = inspect.signature(type(encoder)).bind(**node.arguments)
    bound.apply_defaults()
    rest = {p.name for p in bound.signature.parameters.values() if p.kind is inspect.Parameter.VAR_KEYWORD}
    given = {**{k: v for k, v in bound.arguments.items() if k not in rest}, **bound.kwargs}
    arguments = {key: _plain(value) for key, value in given.items() if key != WEIGHTS}
    return {
        "name": node.name,
        "arguments": arguments,
        "placeholder": str(encoder.placeholder),
        "token_id": token_id,
        "distribution": info.distribution,
        "version": info.version,
    }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def make_encoder(modality: str, spec: Spec) -> nn.Module:
    """The encoder of an entry of `config.encoders`. Raises PluginError, naming its package, where it is not there."""
    name, where = spec["name"], f"config.json: encoders.{modality}"
    if name not in {info.name for info in registry.available("encoders")}:
        origin = f"{spec['distribution']} {spec['version']}"
        mend = f"install {origin}; without it this model cannot be loaded"
        what = f"this model's encoder {name!r} is not installed"
        raise PluginError(Problem(what, where, f"no plugin {name!r} of qoqmed.encoders", f"that of {origin}", mend))
    encoder: nn.Module = registry.make("encoders", Node(name, spec["arguments"], where))
    return encoder


def with_series(plain: Callable[..., Any]) -> Callable[..., Any]:
    """The plain model's forward with one more keyword, `series`: modality -> prepared tensors [items, ...] float32, all
    items of the batch in the order of their placeholders, row after row.

    It raises ValueError where placeholders and features do not match in number.
    """

    def forward(self: Any, *args: Any, series: Mapping[str, Tensor] | None = None, **kwargs: Any) -> Any:
        if not series:
            return plain(self, *args, **kwargs)
        input_ids = args[0] if args else kwargs.get("input_ids")
        if input_ids is None:
            raise ValueError("`series` needs `input_ids`: the placeholders in them say where the features go")
        with self.placed(input_ids, series):
            return plain(self, *args, **kwargs)

    signature = inspect.signature(plain)  # transformers reads the names of a model's inputs there
    *named, rest = signature.parameters.values()
    extra = inspect.Parameter("series", inspect.Parameter.KEYWORD_ONLY, default=None)
    forward.__signature__ = signature.replace(parameters=[*named, extra, rest])  # type: ignore[attr-defined]
    return forward


class Clinical(Host):
    """Mixin before a transformers model class, whose config has `encoders`.

    The class also needs `forward = with_series(PlainModel.forward)`.
    """

    encoders: nn.ModuleDict
    projectors: nn.ModuleDict

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        made = {modality: make_encoder(modality, spec) for modality, spec in (config.encoders or {}).items()}
        self._host(made)

    def _host(self, encoders: Mapping[str, nn.Module]) -> None:
        hidden = self.config.get_text_config().hidden_size
        self.encoders = nn.ModuleDict(dict(encoders))
        self.projectors = nn.ModuleDict({m: nn.Linear(_width(encoder), hidden) for m, encoder in encoders.items()})

    def add_encoders(self, encoders: Mapping[str, nn.Module], specs: Mapping[str, Spec]) -> None:
        """Take these encoders, with fresh projectors; earlier ones of the model stay as they are."""
        earlier = dict(self.projectors.items())
        kept = {modality: encoder for modality, encoder in self.encoders.items() if modality not in encoders}
        self._host({**kept, **encoders})
        for module in (*encoders.values(), *self.projectors.values()):  # one dtype: FSDP and a saved model have no more
            for parameter in module.parameters():
                parameter.data = parameter.data.to(self.dtype)
        self.projectors.update({modality: earlier[modality] for modality in kept})
        self.config.encoders = {**(self.config.encoders or {}), **{m: dict(spec) for m, spec in specs.items()}}

    def series_features(self, modality: str, values: Tensor) -> Tensor:
        """Prepared items [B, ...] -> projected features [B * num_tokens, hidden]."""
        encoder, projector = self.encoders[modality], self.projectors[modality]
        first = next(encoder.parameters(), values)
        features, real = encoder(values.to(first.device, first.dtype))  # [B, N, D], [B, N]
        if features.shape[1] != encoder.num_tokens or not bool(real.all()):
            got = f"{features.shape[1]} a series, {int((~real).sum())} of them not real"
            what = f"the encoder of {modality!r} gives other features than it announces"
            raise PluginError(Problem(what, f"encoders.{modality}", got, f"num_tokens: {encoder.num_tokens}, all real"))
        return projector(features.to(projector.weight.dtype)).flatten(0, 1)  # type: ignore[no-any-return]

    @contextmanager
    def placed(self, input_ids: Tensor, series: Mapping[str, Tensor]) -> Iterator[None]:
        """Inside, the token embeddings of placeholders are projected features."""

        def place(_: nn.Module, __: Any, embeds: Tensor) -> Tensor:
            for modality, values in series.items():
                inside = input_ids == self.config.encoders[modality]["token_id"]
                features = self.series_features(modality, values).to(embeds)
                if int(inside.sum()) != len(features):
                    count = f"{int(inside.sum())} placeholders and {len(features)} features"
                    raise ValueError(f"{modality}: {count} for {len(values)} items do not match")
                embeds = embeds.masked_scatter(inside[..., None], features)
            return embeds

        handle = self.get_input_embeddings().register_forward_hook(place)
        try:
            yield
        finally:
            handle.remove()

    def prepare_inputs_for_generation(self, *args: Any, is_first_iteration: bool | None = False, **kwargs: Any) -> Any:
        """The series are in the cache after the first step."""
        series = kwargs.pop("series", None)
        inputs = super().prepare_inputs_for_generation(*args, is_first_iteration=is_first_iteration, **kwargs)
        drop = not is_first_iteration and kwargs.get("use_cache", True)
        return inputs if drop else {**inputs, "series": series}

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: Tensor | None = None, **kwargs: Any
    ) -> Any:
        """Several sequences a prompt: the items of a row are repeated row by row."""
        series = kwargs.pop("series", None)
        if series and input_ids is not None:
            counts = {m: (input_ids == self.config.encoders[m]["token_id"]).sum(1) for m in series}
            kwargs["series"] = {m: _repeat(values, counts[m], expand_size) for m, values in series.items()}
        return super()._expand_inputs_for_generation(expand_size, is_encoder_decoder, input_ids, **kwargs)

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Missing encoders start as their own constructors make them, not as transformers would; projectors are linear
        layers like any other. What a checkpoint has given is left alone."""
        for modality, encoder in cast(Mapping[str, nn.Module], getattr(self, "encoders", {})).items():
            if not _whole(encoder):
                _fill(encoder, make_encoder(modality, self.config.encoders[modality]))
        super().initialize_weights()


def _repeat(values: Tensor, tokens: Tensor, times: int) -> Tensor:
    """Items in row order -> each row's items `times` times. tokens [rows]: placeholders of each row."""
    per_item = int(tokens.sum()) // len(values)
    rows = torch.split(values, (tokens // per_item).tolist())
    return torch.cat([row for row in rows for _ in range(times)])


def _whole(encoder: nn.Module) -> bool:
    """Whether a checkpoint gave all of it."""
    return all(getattr(value, "_is_hf_initialized", False) for value in chain(encoder.parameters(), encoder.buffers()))


def _fill(encoder: nn.Module, fresh: nn.Module) -> None:
    """Copy what no checkpoint gave: missing weights, and buffers that are not saved. Then all of it is initialised."""
    made = dict(chain(fresh.named_parameters(), fresh.named_buffers()))
    for name, value in chain(encoder.named_parameters(), encoder.named_buffers()):
        if not getattr(value, "_is_hf_initialized", False):
            value.copy_(made[name])
    for part in chain(encoder.modules(), encoder.parameters(), encoder.buffers()):
        part._is_hf_initialized = True  # type: ignore[attr-defined]


def _width(encoder: Any) -> int:
    return int(encoder.width)


def check_encoders(wanted: Mapping[str, Node], specs: Mapping[str, Spec]) -> None:
    """Raises UserError where a recipe describes an encoder that the model already has otherwise."""
    problems = [
        Problem(
            "the model already has another encoder for this modality",
            where=f"encoders.{modality}",
            got=f"{node.name} {dict(node.arguments)}",
            expected=f"{specs[modality]['name']} {specs[modality]['arguments']}",
            mend=f"leave encoders.{modality} out of the recipe: the model brings its own",
        )
        for modality, node in wanted.items()
        if modality in specs and (node.arguments.get(WEIGHTS) is not None or not _same(node, specs[modality]))
    ]
    if problems:
        raise UserError(problems)


def _same(node: Node, spec: Spec) -> bool:
    given = {key: _plain(value) for key, value in node.arguments.items() if key != WEIGHTS}
    return bool(node.name == spec["name"] and all(spec["arguments"].get(k) == v for k, v in given.items()))
