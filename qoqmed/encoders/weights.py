"""Weights of encoders in safetensors files, read strictly: every tensor that differs is told at once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from qoqmed.errors import Problem, UserError


def load(module: nn.Module, file: str | Path, beside: tuple[str, ...] = (), mend: str = "") -> None:
    """Copies a file into `module`, in its own dtype. Tensors under the names `beside` (a classifier) are left out.

    Raises UserError where the file cannot be read, or lacks, adds or shapes a tensor otherwise than `module`.
    """
    if not Path(file).is_file():
        raise UserError(Problem("there is no such weights file", got=str(file), expected="a safetensors file"))
    try:
        given = load_file(file)
    except (SafetensorError, OSError) as error:
        what = f"the weights cannot be read: {error}"
        raise UserError(Problem(what, got=str(file), expected="a safetensors file", mend=mend)) from error
    expected = module.state_dict()
    left_out = [name for name in given if name not in expected and name.startswith(tuple(f"{one}." for one in beside))]
    given = {name: tensor for name, tensor in given.items() if name not in left_out}
    problems = differences(expected, given, str(file))
    if problems:
        raise UserError(problems)
    module.load_state_dict(given)


def differences(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], file: str) -> list[Problem]:
    """Missing, unexpected and misshapen tensors, one problem for each of the three, with all the names."""
    missing = [name for name in expected if name not in given]
    unexpected = [name for name in given if name not in expected]
    misshapen = [
        f"{name} {list(given[name].shape)} instead of {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in given and given[name].shape != tensor.shape
    ]
    kinds = (("are missing", missing), ("are unexpected", unexpected), ("have another shape", misshapen))
    return [
        Problem(f"{len(names)} of the weights {kind}: {', '.join(map(str, names))}", got=file)
        for kind, names in kinds
        if names
    ]
