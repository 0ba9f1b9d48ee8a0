"""A folder of checkpoints: `step-00000030/` holds safetensors files, `state.json` and, written last, `COMPLETE`.

A checkpoint is made under `.tmp-step-N`, brought to the disk and renamed. Killed at any moment, the folder holds the
older checkpoints untouched. `COMPLETE` lists every file with its size: what does not match is never loaded.
"""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from qoqmed.checkpoint.files import fsync, replace_text
from qoqmed.checkpoint.state import join, split
from qoqmed.errors import Problem, RunError

VERSION = 1
_COMMITTED = re.compile(r"(?:\.old-)?step-(\d{8,})")


@dataclass(frozen=True)
class Ranks:
    """This process among those that save together. barrier: returns when all of them have called it."""

    index: int = 0
    world: int = 1
    barrier: Callable[[], None] = lambda: None


ALONE = Ranks()


class Loaded(NamedTuple):
    """tensors: by file name, then by tensor name, on the CPU. state: as it was saved, tuples as lists."""

    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


def save(
    folder: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    *,
    random: Mapping[str, Tensor] | None = None,
    keep: int = 3,
    protect: Collection[str] = (),
    ranks: Ranks = ALONE,
) -> Path:
    """Commit a checkpoint and prune older ones; every rank calls it. Returns the committed folder.

    tensors: file name -> whole tensors (`gather`, `optimizer_tensors`); what ranks other than 0 pass is left out.
    state: JSON values, and tensors anywhere among them; rank 0's counts. random: this rank's `random_state()`.
    """
    final, draft = folder / f"step-{step:08d}", folder / f".tmp-step-{step:08d}"
    if ranks.index == 0:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
    ranks.barrier()
    if random is not None:
        write_tensors(draft / f"random-{ranks.index:05d}.safetensors", random)
    if ranks.index == 0:
        content, loose = split(state)
        for name, values in {**tensors, "state": loose}.items():
            write_tensors(draft / f"{name}.safetensors", values)
        (draft / "state.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    ranks.barrier()
    if ranks.index == 0:
        _commit(draft, final, step, ranks.world)
        prune(folder, keep, protect)
    ranks.barrier()
    return final


def latest(folder: Path) -> Path | None:
    """The newest checkpoint that is whole. A damaged one is passed over with a warning."""
    for path in reversed(_committed(folder)):
        flaw = _flaw(path)
        if flaw is None:
            return path
        warnings.warn(f"the checkpoint {path} is passed over: {flaw}", stacklevel=2)
    return None


def load(path: Path) -> Loaded:
    """Tensors by file, mapped rather than read, and the state. Raises RunError where the checkpoint is damaged."""
    flaw = _flaw(path)
    if flaw is not None:
        raise _damaged(path, flaw)
    names = sorted(file.stem for file in path.glob("*.safetensors") if not file.stem.startswith("random-"))
    tensors = {name: read_tensors(path / f"{name}.safetensors") for name in names}
    try:
        content = json.loads((path / "state.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise _damaged(path, f"state.json is no JSON: {error}") from error
    loose = tensors.pop("state")
    return Loaded(tensors, join(content, loose))


def step_of(path: Path) -> int:
    """The step after which a checkpoint was made."""
    match = _COMMITTED.fullmatch(path.name)
    assert match is not None, path
    return int(match[1])


def best(folder: Path) -> Path | None:
    """The checkpoint that `mark_best` named, None where there is none."""
    mark = folder / "best"
    path = folder / mark.read_text(encoding="utf-8").strip() if mark.exists() else None
    return path if path is not None and path.is_dir() else None


def mark_best(folder: Path, path: Path) -> None:
    """Name the best checkpoint, which `prune` then leaves in place."""
    replace_text(folder / "best", path.name + "\n", durable=True)


def prune(folder: Path, keep: int, protect: Collection[str] = ()) -> None:
    """Leave the `keep` newest whole checkpoints, the best one and those named; sweep what a killed save left behind."""
    whole = [path for path in _committed(folder) if _flaw(path) is None]
    named = best(folder)
    kept = {*whole[-keep:], *(folder / name for name in protect), *([named] if named is not None else [])}
    for path in whole:
        if path not in kept:
            path.rename(
                path.with_name(f".gone-{path.name}")
            )  # a kill while files are deleted leaves no damaged checkpoint
    replaced = [path for path in folder.glob(".old-*") if folder / path.name.removeprefix(".old-") in whole]
    for path in (*replaced, *folder.glob(".gone-*"), *folder.glob(".tmp-step-*")):
        shutil.rmtree(path, ignore_errors=True)


def read_tensors(file: Path) -> dict[str, Tensor]:
    """One safetensors file; RunError where it is damaged."""
    try:
        return load_file(file)
    except SafetensorError as error:
        raise _damaged(file.parent, f"{file.name}: {error}") from error


def write_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """One safetensors file, replaced whole. Tensors that share memory are written one by one."""
    seen: set[int] = set()
    plain = {}
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        storage = value.untyped_storage().data_ptr()
        plain[name] = value.clone() if storage in seen else value  # safetensors refuses tied weights
        seen.add(storage)
    draft = file.with_name(f".{file.name}.tmp")
    save_file(plain, draft)
    fsync(draft)
    draft.replace(file)


def _commit(draft: Path, final: Path, step: int, world: int) -> None:
    files = {path.name: path.stat().st_size for path in sorted(draft.iterdir())}
    for name in files:
        fsync(draft / name)
    (draft / "COMPLETE").write_text(json.dumps({"version": VERSION, "step": step, "world": world, "files": files}))
    fsync(draft / "COMPLETE")
    fsync(draft)
    old = final.with_name(f".old-{final.name}")
    if final.exists():  # of the same step: it stays loadable until the new one is in place
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
    draft.rename(final)
    fsync(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def _committed(folder: Path) -> list[Path]:
    """Committed folders by step; of one step, the one that replaces the other comes last."""
    paths = [path for path in folder.glob("*") if _COMMITTED.fullmatch(path.name) and path.is_dir()]
    return sorted(paths, key=lambda path: (step_of(path), not path.name.startswith(".")))


def _flaw(path: Path) -> str | None:
    """What is wrong with a checkpoint, as far as names and sizes tell."""
    if not (path / "COMPLETE").is_file():
        return "it has no file COMPLETE"
    try:
        listed = json.loads((path / "COMPLETE").read_text(encoding="utf-8"))
        version, files = listed["version"], dict(listed["files"])
    except (ValueError, TypeError, KeyError):
        return "its file COMPLETE is damaged"
    if version != VERSION:
        return f"its format is version {version}, this qoqmed reads {VERSION}"
    for name, size in files.items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if (path / name).stat().st_size != size:
            return f"{name} has {(path / name).stat().st_size} bytes, {size} were written"
    return None


def _damaged(path: Path, flaw: str) -> RunError:
    mend = "resume from an older one: qoqmed fit RECIPE --resume auto passes over damaged checkpoints"
    return RunError(
        Problem("this checkpoint cannot be used", str(path), flaw, "a checkpoint that was saved whole", mend)
    )
