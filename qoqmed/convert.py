"""Weights that others published, as safetensors: read without running any code of theirs, checked, written whole."""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from qoqmed.checkpoint.files import fsync, open_to_umask
from qoqmed.encoders.ecg_jepa import EcgJepa
from qoqmed.encoders.weights import differences
from qoqmed.errors import Problem, UserError

LAYOUT = "{'encoder': weights by name, 'epoch': a whole number}, as torch.save writes it"
_GLOBAL = re.compile(r"\bglobal:?\s+(?:GLOBAL\s+)?([\w.]+)", re.IGNORECASE)


@dataclass(frozen=True)
class Converted:
    """What was written to `path`. sha256: of the file that was read. parameters: those that train."""

    path: Path
    sha256: str
    epoch: int
    tensors: int
    parameters: int


def ecg_jepa(file: str | Path, out: str | Path) -> Converted:
    """The published ECG-JEPA pickle -> float32 safetensors for the encoder `ecg_jepa`.

    Raises UserError where `file` is no such pickle, holds anything but plain values and tensors (no code of it runs),
    or differs from the encoder in any name or shape; and where `out` exists.
    """
    file, out = Path(file), Path(out)
    _check_paths(file, out)
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
        opened.seek(0)
        content = _unpickle(opened, file)
    given, epoch = _layout(content, file)
    with torch.device("meta"):
        encoder = EcgJepa()
    problems = differences(encoder.state_dict(), given, str(file)) or _values(given, file)
    if problems:
        raise UserError(problems)
    tensors = {
        name: tensor.detach().to(torch.float32).clone(memory_format=torch.contiguous_format)
        for name, tensor in given.items()
    }
    _write(
        tensors,
        out,
        {"format": "pt", "encoder": "ecg_jepa", "source": file.name, "sha256": digest, "epoch": str(epoch)},
    )
    return Converted(out, digest, epoch, len(tensors), sum(p.numel() for p in encoder.parameters()))


def _check_paths(file: Path, out: Path) -> None:
    problems = []
    if not file.is_file():
        what = "the path is a folder" if file.is_dir() else "there is no such file"
        problems.append(Problem(what, got=str(file), expected="the published pickle, a file"))
    if out.exists() or out.is_symlink():
        problems.append(
            Problem("the output exists and is not replaced", got=str(out), mend="remove it, or name another")
        )
    elif not out.parent.is_dir():
        problems.append(Problem("there is no such folder for the output", got=str(out.parent), mend="make it first"))
    if problems:
        raise UserError(problems)


def _unpickle(opened: IO[bytes], file: Path) -> Any:
    """Plain values and tensors only: torch refuses a pickle that names anything else, before it is called."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols, which a strange file chooses
            return torch.load(opened, map_location="cpu", weights_only=True)
    except Exception as error:  # boundary: corrupt and hostile pickles fail in any way
        named = _GLOBAL.search(str(error))
        if named:
            what = f"the file is refused: it holds code or objects ({named[1]}); nothing of it was run"
            mend = "take it from its publisher again"
        else:
            what = f"the file cannot be read ({type(error).__name__}): it is cut short, or no torch pickle"
            mend = "compare its size and hash with the publisher's, and fetch it again"
        raise UserError(Problem(what, got=str(file), expected=LAYOUT, mend=mend)) from error


def _layout(content: Any, file: Path) -> tuple[dict[str, Tensor], int]:
    """The weights and the epoch, where the file holds these two and nothing else."""
    if isinstance(content, Mapping) and content.keys() == {"encoder", "epoch"}:
        given, epoch = content["encoder"], content["epoch"]
        named = isinstance(given, Mapping) and all(
            isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in given.items()
        )
        if named and type(epoch) is int:
            return dict(given), epoch
    held = type(content).__name__
    if isinstance(content, Mapping):
        held += f" of {', '.join(f'{name!r}: {type(value).__name__}' for name, value in list(content.items())[:10])}"
    raise UserError(Problem("the file has another layout", got=f"{file}: {held}", expected=LAYOUT))


def _values(given: Mapping[str, Tensor], file: Path) -> list[Problem]:
    """Dense floating-point numbers, all finite."""
    bad = [
        name
        for name, tensor in given.items()
        if tensor.layout != torch.strided or not tensor.is_floating_point() or not bool(tensor.isfinite().all())
    ]
    return [Problem(f"weights are no finite numbers: {', '.join(bad)}", got=str(file))] if bad else []


def _write(tensors: dict[str, Tensor], out: Path, metadata: dict[str, str]) -> None:
    """Whole or not at all, on the disk on return."""
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        save_file(tensors, temporary, metadata)
        fsync(temporary)
        open_to_umask(temporary)
        temporary.replace(out)
        fsync(out.parent)
    finally:
        temporary.unlink(missing_ok=True)
