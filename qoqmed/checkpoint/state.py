"""A state dict as JSON: tensors found among its values are taken out and put back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

_MARK = "$tensor"


def split(state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """State -> what JSON can hold, and the tensors by their place. TypeError, naming the place, on anything else."""
    tensors: dict[str, Tensor] = {}
    content = _take(state, "", tensors)
    assert isinstance(content, dict)
    return content, tensors


def join(content: dict[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The inverse of `split`, but for tuples, which come back as lists."""
    return {key: _put(value, tensors) for key, value in content.items()}


def _take(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[place] = value
        return {_MARK: place}
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(
                    f"state{place}: the key {key!r} is {type(key).__name__}; a checkpoint keeps only str keys"
                )
        return {key: _take(item, f"{place}.{key}", tensors) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_take(item, f"{place}.{i}", tensors) for i, item in enumerate(value)]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"state{place}: a checkpoint keeps JSON values and tensors, not {type(value).__name__}")


def _put(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if set(value) == {_MARK}:
            return tensors[value[_MARK]].clone()
        return {key: _put(item, tensors) for key, item in value.items()}
    return [_put(item, tensors) for item in value] if isinstance(value, list) else value
