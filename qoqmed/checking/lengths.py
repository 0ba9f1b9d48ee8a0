"""Tokens of the prompts as a model reads them: media decoded, placeholders expanded. Needs its tokenizer and image
processor; its weights are not loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qoqmed.build import OnDemand
from qoqmed.checking.findings import ERROR, WARNING, Findings, Spread
from qoqmed.checking.rows import Row
from qoqmed.config.schema import Node
from qoqmed.errors import DataError, Problem, UserError
from qoqmed.geometry import Geometry
from qoqmed.policy.processor import ClinicalProcessor
from qoqmed.policy.prompting import Prompter
from qoqmed.registry import make
from qoqmed.types import SPATIAL


class _NoWeights:
    """What a prompter asks of a backbone, where only lengths matter."""

    def geometry(self, width: int, height: int, low: int, high: int) -> Geometry:
        return Geometry(width, height, width, height, 1, 1)

    def positions(self, token_ids: Tensor, is_image: Tensor, grids: Tensor | None) -> Tensor:
        return torch.arange(len(token_ids))


def lengths(
    rows: Sequence[Row],
    model: Path,
    root: Path,
    findings: Findings,
    *,
    frames: int = 4,
    pixels: tuple[int, int] = (65_536, 524_288),
    max_tokens: int = 16_384,
) -> dict[str, Spread]:
    """By domain. model: a folder in transformers' layout. pixels: fewest and most of a picture. What a prompt cannot be
    made of is an error; modalities that the model has no encoder for are left out, which is told once."""
    if not (model / "config.json").is_file():
        raise UserError(
            Problem("no model is there", "--model", str(model), "a folder with config.json and a tokenizer")
        )
    try:
        processor = ClinicalProcessor.from_pretrained(model)
    except Exception as error:  # boundary: transformers reads files of others, and fails in many ways
        what = f"the model's tokenizer or image processor cannot be read: {' '.join(str(error).split())[:300]}"
        raise UserError(Problem(what, "--model", str(model), "a folder with config.json and a tokenizer")) from error
    processor.frames = frames
    processor.resize_between(*pixels)
    questions = OnDemand("domains", lambda name: make("domains", Node(name)).phrasings[0])
    tasks = OnDemand("tasks", lambda name: make("tasks", Node(name), questions=questions))
    prompter = Prompter(_NoWeights(), processor, tasks, root=root)
    known = SPATIAL | set(processor.encoders)
    counted: dict[str, list[int]] = {}
    left_out: dict[str, int] = {}
    for row in rows:
        case = replace(row.case, id=row.where)
        for modality in {medium.modality for medium in case.media} - known:
            left_out[modality] = left_out.get(modality, 0) + 1
        if any(medium.modality not in known for medium in case.media):
            continue
        try:
            tokens = len(prompter(case).token_ids)
        except DataError as error:
            findings.add("length", ERROR, *error.problems)
            continue
        counted.setdefault(case.domain, []).append(tokens)
        if tokens > max_tokens:
            mend = "fewer frames or pixels, or a larger trainer.tokens_per_pack"
            what = f"the prompt has {tokens:,} tokens"
            findings.add("length", WARNING, Problem(what, row.where, expected=f"at most {max_tokens:,}", mend=mend))
    for modality, count in left_out.items():
        what = f"{count} prompts are not measured: the model has no encoder for {modality!r}"
        findings.add("length", WARNING, Problem(what, str(model), mend="give a model folder that has it"))
    return {domain: _spread(numbers) for domain, numbers in sorted(counted.items())}


def _spread(numbers: Sequence[int]) -> Spread:
    values: Any = np.quantile(numbers, [0, 0.5, 0.95, 1], method="higher")
    return Spread(len(numbers), *(int(value) for value in values))
