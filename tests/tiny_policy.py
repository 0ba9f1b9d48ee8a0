"""A policy of some 200k parameters with an ECG encoder, cases for it, and the plain way to its log-probs: the oracle.

The oracle knows nothing of packs: each response alone behind its prompt, positions by a rule of its own, full logits.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qoqmed.config.schema import Node
from qoqmed.packing import Prompt
from qoqmed.policy.loading import Loaded, load_tiny
from qoqmed.policy.policy import ClinicalPolicy
from qoqmed.policy.prompting import Prompter
from qoqmed.types import Case, Group, Medium, Rollout, Target
from qoqmed.updating import Targets

OPTIONS = {"hidden": 64, "layers": 2, "heads": 4, "vision_hidden": 32, "vision_layers": 2, "vocabulary": 340}
SHARP = 0.16
TEXTS = (
    "What is on this chest X-ray? Choose from: nodule, edema, normal.",
    "Which rhythm does this ECG show? Reason in <think></think>, answer in \\boxed{}.",
    '```json [{"bbox_2d": [1, 2, 30, 40], "label": "pleural effusion"}]```',
)


class Ask:
    """Task whose prompt is the case's text."""

    name = "ask"

    def prompt(self, case: Case) -> str:
        return case.text

    def check(self, case: Case) -> None:
        """Every case will do."""


ECG = Node("ecg_conv", {"width": 8, "num_tokens": 3, "rate_hz": 50.0, "window_s": 4.0})  # 3 tokens of 4 s at 50 Hz


def load(std: float = 0.02, seed: int = 0, backbone: str | None = None, **options: Any) -> Loaded:
    """std: of every matrix. At 0.02 the policy is nearly uniform; at SHARP log-probs and attention are far from it."""
    sizes, kind = OPTIONS | options, {"backbone": backbone}
    loaded = load_tiny(TEXTS * 9, {"ecg": ECG}, seed=seed, options=sizes, logprob_chunk=7, **kind)
    with torch.no_grad():
        for parameter in loaded.policy.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(std / parameter.std())
    return loaded


def prompter(
    loaded: Loaded, root: Path = Path(), *, count: int = 4, max_pixels: int = 84 * 84, **options: Any
) -> Prompter:
    """Pictures of up to 84 x 84 pixels: 9 tokens of 28 x 28."""
    loaded.processor.frames = count
    loaded.processor.resize_between(28 * 28, max_pixels)
    tasks: Mapping[str, Any] = {"ask": Ask()}
    return Prompter(loaded.policy.model, loaded.processor, tasks, root=root, **options)


def case(id: str, *media: Medium, text: str = "What is on this?") -> Case:
    return Case(id, "chest_xray", "synthetic", "ask", text, media, (), Target())


def picture(seed: int, height: int = 84, width: int = 84) -> Medium:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Medium("image", array=noise)


def ecg(seed: int) -> Medium:
    return Medium("ecg", array=np.random.default_rng(seed).standard_normal((12, 200)).astype(np.float32))


def group(case: Case, prompt: Prompt, lengths: Sequence[int], seed: int = 0, trainable: Sequence[bool] = ()) -> Group:
    """Responses of random tokens that may be sampled."""
    generator = torch.Generator().manual_seed(seed)
    rollouts = [
        Rollout(case.id, i, tuple(torch.randint(20, 250, (length,), generator=generator).tolist()), "")
        for i, length in enumerate(lengths)
    ]
    return Group(case, prompt, tuple(rollouts), trainable=tuple(trainable) or (True,) * len(lengths))


def plain_model(model: Any) -> Any:
    """Transformers' own model with the same weights, without encoders."""
    settings = {key: value for key, value in model.config.to_dict().items() if key not in ("encoders", "model_type")}
    plain = model.plain_class(model.plain_class.config_class(**settings))
    added = ("encoders.", "projectors.")
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith(added)})
    return plain.to(model.dtype)


def plain_copy(policy: ClinicalPolicy, dtype: torch.dtype = torch.float32) -> ClinicalPolicy:
    """The same weights under transformers' own SDPA."""
    plain = copy.deepcopy(policy).to(dtype)
    plain.model.set_attn_implementation("sdpa")
    return plain


def plain_logits(plain: ClinicalPolicy, prompt: Prompt, response: Sequence[int]) -> Tensor:
    """[R, V] before each token of the response: transformers' own forward; media are images or none."""
    own = torch.tensor(response)
    ids = torch.cat([prompt.token_ids, own])[None]
    kinds = torch.zeros_like(ids, dtype=torch.int)
    media = {}
    if prompt.pixel_values is not None:
        kinds[0, prompt.image_slots] = 1
        media = {"pixel_values": prompt.pixel_values.to(_dtype(plain)), "image_grid_thw": prompt.grids}
    logits = plain.model(input_ids=ids, mm_token_type_ids=kinds, use_cache=False, **media).logits[0]
    return _allowed(plain, logits[len(prompt.token_ids) - 1 : -1])


def plain_logits_by_hand(plain: ClinicalPolicy, prompt: Prompt, response: Sequence[int]) -> Tensor:
    """[R, V] before each token of the response: embeddings and positions by hand, any media."""
    model: Any = plain.model
    own = torch.tensor(response)
    embeds = model.get_input_embeddings()(torch.cat([prompt.token_ids, own])).clone()
    if prompt.pixel_values is not None:
        features = model.model.get_image_features(prompt.pixel_values.to(embeds.dtype), prompt.grids, return_dict=True)
        embeds[prompt.image_slots] = torch.cat(tuple(features.pooler_output))
    for modality, series in prompt.series.items():
        features, _ = model.encoders[modality](series.to(embeds.dtype))
        embeds[prompt.series_slots[modality]] = model.projectors[modality](features).flatten(0, 1)
    before = positions_by_hand(prompt)
    after = before.max() + 1 + torch.arange(len(own))
    positions = torch.cat([before, after.expand(3, -1)], 1)
    out = model.model.language_model(inputs_embeds=embeds[None], position_ids=positions[:, None], use_cache=False)
    return _allowed(plain, model.lm_head(out.last_hidden_state[0, len(prompt.token_ids) - 1 : -1]))


def positions_by_hand(prompt: Prompt) -> Tensor:
    """[3, P] by Qwen2-VL's rule: a picture's cells share its start in time and count rows and columns from there; what
    follows goes on after the longer side; all else counts by one."""
    images = set() if prompt.image_slots is None else set(prompt.image_slots.tolist())
    grids = iter([] if prompt.grids is None else prompt.grids.tolist())
    out: list[tuple[int, int, int]] = []
    at = 0
    while len(out) < len(prompt.token_ids):
        if len(out) in images:
            _, height, width = next(grids)
            rows, columns = height // 2, width // 2
            out += [(at, at + row, at + column) for row in range(rows) for column in range(columns)]
            at += max(rows, columns)
        else:
            out.append((at, at, at))
            at += 1
    return torch.tensor(out).T


def chosen_log_probs(logits: Tensor, response: Sequence[int], temperature: float = 1.0) -> Tensor:
    """[R, V] -> [R]."""
    return (logits / temperature).log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0]


def _allowed(plain: ClinicalPolicy, logits: Tensor) -> Tensor:
    return logits.masked_fill(plain.banned, -torch.inf)


def _dtype(plain: ClinicalPolicy) -> torch.dtype:
    return next(plain.parameters()).dtype


def targets(groups: Sequence[Group], advantages: Sequence[Sequence[float]]) -> Targets:
    """One advantage a response."""
    pairs = enumerate(zip(groups, advantages, strict=False))
    return Targets(
        {
            (g, i): torch.full((len(rollout.token_ids),), own[i])
            for g, (group, own) in pairs
            for i, rollout in enumerate(group.rollouts)
        }
    )
