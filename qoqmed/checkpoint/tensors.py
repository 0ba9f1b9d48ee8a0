"""Weights and optimizer state as plain whole tensors by name, sharded (FSDP2) or not, and back, bit for bit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from qoqmed.checkpoint.folder import ALONE, Ranks
from qoqmed.errors import Problem, RunError

_CHOICES = frozenset(
    {"foreach", "fused", "capturable", "differentiable"}
)  # how, not what: the resuming process decides


def gather(named: Iterable[tuple[str, Tensor]], ranks: Ranks = ALONE) -> dict[str, Tensor]:
    """Whole tensors on the CPU of rank 0, nothing on the others. A collective where a tensor is sharded."""
    out = {}
    for name, tensor in named:
        whole = _whole(tensor.detach())
        if ranks.index == 0:
            out[name] = whole.cpu()
    return out


@torch.no_grad()
def restore(named: Iterable[tuple[str, Tensor]], tensors: Mapping[str, Tensor]) -> None:
    """Copy saved tensors into parameters and buffers of the same names and shapes, sharded or not."""
    pairs = dict(named)
    _same_names("weights", set(tensors), set(pairs))
    for name, tensor in pairs.items():
        saved = tensors[name]
        if saved.shape != tensor.shape or saved.dtype != tensor.dtype:
            raise _other(name, f"{saved.dtype} {tuple(saved.shape)}", f"{tensor.dtype} {tuple(tensor.shape)}")
        tensor.copy_(_like(saved, tensor))


def optimizer_tensors(
    optimizer: Optimizer, named_parameters: Iterable[tuple[str, Tensor]], ranks: Ranks = ALONE
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors "exp_avg/<parameter>", JSON of hyper-parameters and plain numbers). A collective where sharded."""
    names = {id(parameter): name for name, parameter in named_parameters}
    tensors: dict[str, Tensor] = {}
    groups, numbers = [], {}
    for group in optimizer.param_groups:
        chosen = [names[id(parameter)] for parameter in group["params"]]
        plain = {key: _number(value) for key, value in group.items() if key != "params" and key not in _CHOICES}
        groups.append({"params": chosen, "options": plain})
        for name, parameter in zip(chosen, group["params"], strict=True):
            state = optimizer.state.get(parameter, {})
            held = ((f"{key}/{name}", value) for key, value in state.items() if isinstance(value, Tensor))
            tensors |= gather(held, ranks)
            numbers[name] = {key: value for key, value in state.items() if not isinstance(value, Tensor)}
    return tensors, {"groups": groups, "numbers": {name: value for name, value in numbers.items() if value}}


def load_optimizer(
    optimizer: Optimizer,
    named_parameters: Iterable[tuple[str, Tensor]],
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
) -> None:
    """Put back what `optimizer_tensors` gave; the next steps are those of the optimizer that was saved."""
    named = dict(named_parameters)
    names = {id(parameter): name for name, parameter in named.items()}
    if len(state["groups"]) != len(optimizer.param_groups):
        raise _other("parameter groups", str(len(state["groups"])), str(len(optimizer.param_groups)))
    for group, saved in zip(optimizer.param_groups, state["groups"], strict=True):
        _same_names("trained parameters", set(saved["params"]), {names[id(parameter)] for parameter in group["params"]})
        for key, value in saved["options"].items():
            group[key] = _as_type_of(group.get(key), value)
    optimizer.state.clear()
    for name, values in state["numbers"].items():
        optimizer.state[named[name]].update(values)
    for place, value in tensors.items():
        key, name = place.split("/", 1)
        parameter = named[name]
        optimizer.state[parameter][key] = _state_like(value, parameter, optimizer)


def _state_like(value: Tensor, parameter: Tensor, optimizer: Optimizer) -> Tensor:
    """On the parameter's device and sharded as it is; step counts stay on the CPU unless the kernel wants them."""
    if value.dim() == 0 and parameter.dim() > 0:
        group = next(g for g in optimizer.param_groups if any(p is parameter for p in g["params"]))
        on_device = bool(group.get("fused") or group.get("capturable"))
        return value.to(parameter.device, copy=True) if on_device else value.clone()
    return _like(value, parameter).clone()


def _like(value: Tensor, model: Tensor) -> Tensor:
    if isinstance(model, DTensor) and value.shape == model.shape:
        moved = value.to(model.device_mesh.device_type)
        return distribute_tensor(moved, model.device_mesh, model.placements, src_data_rank=None)
    return value.to(model.device)


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _number(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) else value


def _as_type_of(current: Any, value: Any) -> Any:
    if isinstance(current, Tensor):
        return torch.full_like(current, value)
    return tuple(value) if isinstance(current, tuple) else value


def _same_names(what: str, saved: set[str], present: set[str]) -> None:
    if saved != present:
        raise _other(what, _some(saved - present) or "fewer", _some(present - saved) or "none besides")


def _some(names: set[str]) -> str:
    first = sorted(names)[:3]
    return ", ".join(first) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _other(where: str, got: str, expected: str) -> RunError:
    mend = "resume with the recipe that the run was started with (recipe.yaml in its folder)"
    return RunError(
        Problem("the checkpoint does not fit this model", where, f"in the checkpoint only: {got}", expected, mend)
    )
