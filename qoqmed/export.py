"""A run's policy as a folder that transformers loads: model, processor, model card; checked before it gets its name."""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig

from qoqmed.build import build_actor
from qoqmed.checkpoint.files import open_to_umask
from qoqmed.config.schema import Recipe
from qoqmed.errors import Problem, RunError
from qoqmed.policy import lora, reload
from qoqmed.policy.loading import Loaded
from qoqmed.registry.arguments import check, one_of
from qoqmed.report.card import card
from qoqmed.report.record import describe, gather
from qoqmed.run import RunFolder, restore_policy
from qoqmed.types import SPATIAL

TOLERANCE = 1e-6  # of logits, after loading; times the largest logit where that is above 1
MERGED = 1e-4  # the same in float32 for adapters added to the weights: it rounds
DTYPES = ("float32", "bfloat16", "float16")
CHECKPOINTS = ("best", "last")


class ExportError(RuntimeError):
    """The exported model does not compute what the run's does. Nothing is left of it."""


@dataclass(frozen=True)
class Exported:
    """A finished export.

    differences: by conversation (text, image, each encoder's modality, all together), the largest difference of logits
    between the saved model in a clean process and the policy in this one. scale: the largest logit. merging: the
    largest difference that merging adapters made; None without adapters. left_out: modalities that no made-up array
    could ask for, whose weights alone were compared.
    """

    folder: Path
    checkpoint: str
    dtype: str
    tensors: int
    differences: Mapping[str, float]
    scale: float
    merging: float | None
    left_out: tuple[str, ...]

    @property
    def largest(self) -> float:
        return max(self.differences.values())


def export(run: str | Path, out: str | Path, *, dtype: str | None = None, checkpoint: str = "best") -> Exported:
    """Write a run's policy to `out`, then load it in a clean process and compare.

    dtype: float32, bfloat16 or float16; None keeps the run's. checkpoint: best (the last where no metric chose) or
    last. Raises UserError where `out` is in use or `run` is no run; ExportError where the copy computes otherwise.
    """
    check(one_of("--checkpoint", checkpoint, CHECKPOINTS))
    if dtype is not None:
        check(one_of("--dtype", dtype, DTYPES))
    folder, target = RunFolder(Path(run)), Path(out)
    recipe = folder.recipe()
    with _draft(target) as draft:
        loaded, chosen = _load(folder, recipe, last=checkpoint == "last")
        asked, left_out = questions(loaded)
        adapted = bool(lora.layers(loaded.policy.model))
        before = reload.logits(loaded.policy.model, loaded.processor, asked) if adapted else {}
        lora.merge(loaded.policy.model)
        model = loaded.policy.model
        if dtype is not None:
            _cast(model, getattr(torch, dtype))
        after = reload.logits(model, loaded.processor, asked)
        _write(draft, folder, recipe, loaded, chosen)
        weights, kind = reload.digests(model), model.dtype
        del model, loaded  # the clean process needs the memory
        with tempfile.TemporaryDirectory() as work:
            try:
                found, saved = reload.in_a_clean_process(draft, Path(work), asked, kind)
            except RuntimeError as error:
                raise ExportError(f"{error}\nNothing was kept of {target}") from error
        merging = _largest(before, after) if adapted and dtype in (None, "float32") else None
        scale = max(float(values.abs().max()) for values in after.values())
        differences = {name: _difference(after[name], found[name]) for name in asked}
        made = Exported(
            target, chosen.name, str(kind).removeprefix("torch."), len(weights), differences, scale, merging, left_out
        )
        _require_equal(made, weights, saved)
    return made


def _load(folder: RunFolder, recipe: Recipe, last: bool) -> tuple[Loaded, Path]:
    """The policy with its weights; rewards and engine, which may be somebody's plugins, are not needed."""
    plain = replace(recipe, rewards={}, rollout=replace(recipe.rollout, name="torch", arguments={}))
    _, loaded = build_actor(plain)
    chosen = restore_policy(folder.path, loaded.policy, last)
    loaded.policy.eval()
    return loaded, chosen


@contextmanager
def _draft(target: Path) -> Iterator[Path]:
    """A folder beside `target` that gets its name when the block ends well, and is removed when it does not."""
    if any(part.endswith(":") for part in target.parts):
        raise RunError(Problem("a URL is no folder: nothing is uploaded", "DIR", str(target)))
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        what, mend = "the folder to export to is in use, and nothing is overwritten", "name a new folder"
        raise RunError(Problem(what, str(target), "it is not empty", "a folder that is not there yet", mend))
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    draft.mkdir()
    try:
        yield draft
        open_to_umask(draft)
        draft.replace(target)  # an empty folder gives way
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _write(draft: Path, folder: RunFolder, recipe: Recipe, loaded: Loaded, chosen: Path) -> None:
    model, rollout = loaded.policy.model, recipe.rollout
    sampled = rollout.temperature > 0
    drawn = {"temperature": rollout.temperature, "top_p": rollout.top_p, "top_k": rollout.top_k} if sampled else {}
    model.generation_config = GenerationConfig(
        do_sample=sampled,
        max_new_tokens=rollout.max_new_tokens,
        eos_token_id=int(loaded.tokenizer.eos_token_id),
        pad_token_id=int(loaded.tokenizer.pad_token_id),
        suppress_tokens=loaded.policy.banned.nonzero()[:, 0].tolist(),  # what training never samples
        **drawn,
    )
    model.save_pretrained(draft)
    loaded.processor.save_pretrained(draft)
    record = gather(folder, recipe, describe(model, recipe), chosen)
    (draft / "qoqmed.json").write_text(record.to_json(), encoding="utf-8")
    (draft / "README.md").write_text(card(record), encoding="utf-8")


@torch.no_grad()
def _cast(model: Any, dtype: torch.dtype) -> None:
    """As transformers casts when it loads: parameters; saved buffers only where a model made in this dtype has them in
    it; rotary frequencies, which are not saved, never."""
    with torch.device("meta"):
        twin = dict(type(model)._from_config(copy.deepcopy(model.config), dtype=dtype).named_buffers())
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    for name, value in model.named_buffers():
        if name in model.state_dict():
            value.data = value.data.to(twin[name].dtype)


def questions(loaded: Loaded) -> tuple[dict[str, reload.Conversation], tuple[str, ...]]:
    """Conversations from a seed that use all that the model reads, and the modalities that none could be made for."""
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (90, 120, 3), dtype=np.uint8)
    series = {m: _accepted(reader, rng) for m, reader in loaded.processor.readers.items() if m not in SPATIAL}
    read = [(modality, array) for modality, array in series.items() if array is not None]
    asked: dict[str, reload.Conversation] = {
        "text": ["What speaks for atrial fibrillation?"],
        "image": [("image", picture), "What is on this picture?"],
        **{modality: [(modality, array), "What does this show?"] for modality, array in read},
    }
    if read:
        asked["together"] = ["First", *read, "then", ("image", picture), "and now: what is new?"]
    return asked, tuple(sorted(series.keys() - dict(read)))


def _accepted(reader: Any, rng: np.random.Generator) -> Any:
    """The first made-up array that the encoder takes: an ECG, one channel, a picture, a volume; None: none of them."""
    shapes = ((12, 5000), (1, 5000), (5000,), (64, 64))
    made = [rng.integers(0, 256, shape, dtype=np.uint8) for shape in ((90, 120, 3), (4, 64, 64, 3))]
    for array in [rng.standard_normal(shape).astype(np.float32) for shape in shapes] + made:
        try:
            reader.prepare(array)
        except Exception:  # boundary: the contract states no shapes, and a third party's code may raise anything
            continue
        return array
    return None


def _difference(one: Tensor, other: Tensor) -> float:
    """The largest; infinite where the shapes differ or a number is NaN."""
    if one.shape != other.shape:
        return float("inf")
    return float((one - other).abs().nan_to_num(nan=torch.inf).max())


def _largest(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> float:
    return max(_difference(before[name], after[name]) for name in before)


def _require_equal(made: Exported, weights: Mapping[str, str], saved: Mapping[str, str]) -> None:
    """Raises ExportError with everything that differs."""
    wrong: Sequence[str] = sorted(
        name for name in weights.keys() | saved.keys() if weights.get(name) != saved.get(name)
    )
    room = max(1.0, made.scale)
    told = [f"{len(wrong)} of {made.tensors} tensors differ: {', '.join(wrong[:5])}"] if wrong else []
    told += [
        f"logits of {name!r} differ by {value:.3g} (at most {TOLERANCE * room:.1g})"
        for name, value in made.differences.items()
        if not value <= TOLERANCE * room
    ]
    if made.merging is not None and not made.merging <= MERGED * room:
        told.append(f"merging the adapters changes logits by {made.merging:.3g} (at most {MERGED * room:.1g})")
    if told:
        found = "\n".join(f"    {line}" for line in told)
        raise ExportError(f"the exported model does not compute what the run's does:\n{found}\nNothing was kept of it")
