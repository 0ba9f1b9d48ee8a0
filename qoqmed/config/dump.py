"""A recipe back to plain content and YAML that loads to an equal recipe; secrets are blotted out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from omegaconf import OmegaConf

from qoqmed.config.schema import Recipe, RewardConfig

REDACTED = "<redacted>"
_SECRET = re.compile(r"(^|_)(token|password|passwd|secret|api_?key|access_?key|credentials?)$", re.IGNORECASE)


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """Every key with its value, in the form of a recipe file."""
    content = _plain(recipe)
    assert isinstance(content, dict)
    return content


def to_yaml(recipe: Recipe) -> str:
    """`to_dict` as YAML. A literal `${` is escaped: nothing is left to interpolate."""
    return OmegaConf.to_yaml(OmegaConf.create(_escape(to_dict(recipe))))


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        content = {field.name: getattr(value, field.name) for field in fields(value)}
        if "arguments" in content:  # a plugin: its arguments stand beside its name
            content.pop("where", None)  # its YAML path; an argument may have the same name
            content |= content.pop("arguments")
        return _plain(content)
    if isinstance(value, Mapping):
        return {key: REDACTED if _is_secret(key, item) else _keyed(key, item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _keyed(key: str, item: Any) -> Any:
    content = _plain(item)
    if isinstance(item, RewardConfig) and item.name == key:
        del content["name"]
    return content


def _is_secret(key: object, value: Any) -> bool:
    return isinstance(key, str) and isinstance(value, str) and _SECRET.search(key) is not None


def _escape(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _escape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escape(item) for item in value]
    return value.replace("${", "\\${") if isinstance(value, str) else value
