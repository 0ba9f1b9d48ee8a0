"""Low-rank adapters (LoRA, arXiv 2106.09685) through peft: beside every linear layer of the named parts, which stay
frozen themselves.

There is no dropout in them: the policy that samples and the one that is trained would differ by it. Adapters start at
zero (B = 0), so that the policy starts as its base.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from qoqmed.config.schema import LoraConfig
from qoqmed.errors import Problem, UserError
from qoqmed.media.refusals import need
from qoqmed.parallel import full

if TYPE_CHECKING:
    from qoqmed.policy.policy import ClinicalPolicy

MARK = ".lora_"  # in the names of adapters' weights


def add(policy: ClinicalPolicy, config: LoraConfig, seed: int) -> None:
    """Put adapters beside the linear layers of `config.parts`. Raises UserError where none is there."""
    peft = need("peft", "lora")
    inside = {id(module) for part in config.parts for root in policy.roots_of(part) for module in root.modules()}
    names = [
        name
        for name, module in policy.model.named_modules()
        if isinstance(module, nn.Linear)
        and id(module) in inside
        and _wanted(name, config.targets)
        and name != "lm_head"
    ]
    if not names:
        got = f"parts {', '.join(config.parts)}, targets {', '.join(config.targets)}"
        mend = "name layers such as q_proj, or leave model.lora.targets out for all of them"
        raise UserError(Problem("no linear layer of these names is in these parts", "model.lora", got, mend=mend))
    settings = peft.LoraConfig(r=config.rank, lora_alpha=config.alpha, lora_dropout=0.0, target_modules=names)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(settings, policy.model)


def _wanted(name: str, targets: tuple[str, ...]) -> bool:
    return name != "lm_head" and (not targets or name.rpartition(".")[2] in targets)


def layers(model: nn.Module) -> dict[str, Any]:
    """Adapted layers by name; none without LoRA."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}


@contextmanager
def off(model: nn.Module) -> Iterator[None]:
    """Inside, the model computes as if it had no adapters."""
    adapted = [layer for layer in layers(model).values() if not layer.disable_adapters]
    for layer in adapted:
        layer._disable_adapters = True  # peft's own switch would also change requires_grad
    try:
        yield
    finally:
        for layer in adapted:
            layer._disable_adapters = False


@torch.no_grad()
def plain_weights(policy: ClinicalPolicy) -> Iterator[tuple[str, Tensor]]:
    """(name, whole tensor) of the model's parameters and saved buffers, one at a time, named as without adapters.

    An adapted layer's weight comes with its adapters' product added; the policy stays as it is. Names are those of
    transformers' model in memory (`model.language_model.*`, `encoders.*`). A collective where the policy is sharded.
    """
    adapted = layers(policy.model)
    for name, value in policy.model.state_dict(keep_vars=True).items():
        if MARK in name or _twin(policy.model, name):
            continue
        layer, _, own = name.rpartition(".base_layer.")
        whole = full(value.detach())
        if layer in adapted and own == "weight":
            whole = whole + _product(adapted[layer]).to(whole.dtype)
        yield (f"{layer}.{own}" if layer else name), whole


def _twin(model: nn.Module, name: str) -> bool:
    """Whether this is the head's name of weights that the embeddings have, too."""
    return name == "lm_head.weight" and model.lm_head.weight is model.get_input_embeddings().weight  # type: ignore[operator, union-attr]


def _product(layer: Any) -> Tensor:
    """What the adapters of a layer add to its weight [out, in]."""
    deltas = []
    for key in layer.active_adapters:
        a, b = full(layer.lora_A[key].weight.detach()), full(layer.lora_B[key].weight.detach())
        deltas.append(b @ a * layer.scaling[key])
    return torch.stack(deltas).sum(0)


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Add the adapters to the weights beside them and take them away. It cannot be undone."""
    for name, layer in layers(model).items():
        layer.merge(safe_merge=True)
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, layer.get_base_layer())
