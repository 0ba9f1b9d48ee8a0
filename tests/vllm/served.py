"""What the tests of vLLM share: policies in every form, their prompts, transformers' own answers, training by hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import tiny_policy as tiny
import torch
from torch import Tensor

from qoqmed.packing import Prompt, pack
from qoqmed.policy.handle import LivePolicy
from qoqmed.policy.loading import Loaded
from qoqmed.rollouts.vllm import VllmRollouts
from qoqmed.types import Group, Rollout

STD = 0.1  # log-probs far from uniform; at `tiny.SHARP` a hidden size of 128 is beyond what float32 holds to 1e-5
TOKENS = 24
SEEDS = (11, 22, 33, 44, 55, 66)  # one a prompt
KINDS = ("text", "image", "ecg", "image and two ECGs", "interleaved", "two images of unlike sizes")


def load(backbone: str = "qwen2_5_vl", tied: bool = False, std: float = STD) -> Loaded:
    loaded = tiny.load(std, backbone=backbone, hidden=128)  # heads of 32, the fewest that vLLM's attention takes
    model = loaded.policy.model
    if tied:
        model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = True
        model.lm_head.weight = model.get_input_embeddings().weight
    loaded.policy.eval()
    return loaded


def handle(loaded: Loaded) -> LivePolicy:
    return LivePolicy(loaded.policy, loaded.tokenizer, loaded.processor)


def prompts(loaded: Loaded) -> list[Prompt]:
    """One of each of `KINDS`, in that order."""
    question = "First <image>, <ecg>, then <ecg> and <image>: what has changed?"
    cases = [
        tiny.case("text", text="Say something, please."),
        tiny.case("image", tiny.picture(1)),
        tiny.case("ecg", tiny.ecg(1), text="Which rhythm does this ECG show? Reason."),
        tiny.case("image and two ECGs", tiny.picture(2, 56, 84), tiny.ecg(2), tiny.ecg(3)),
        tiny.case("interleaved", tiny.ecg(4), tiny.picture(3), tiny.picture(4, 84, 56), tiny.ecg(5), text=question),
        tiny.case("two images of unlike sizes", tiny.picture(5, 28, 84), tiny.picture(6)),
    ]
    assert tuple(case.id for case in cases) == KINDS
    encode = tiny.prompter(loaded)
    return [encode(case) for case in cases]


@contextmanager
def engine(policy: LivePolicy, **options: Any) -> Iterator[VllmRollouts]:
    made = VllmRollouts(**{"max_model_len": 512, "kv_cache_mb": 64, **options})
    made.start(policy)
    try:
        yield made
    finally:
        made.close()


def transformers_greedy(loaded: Loaded, prompt: Prompt, tokens: int = TOKENS) -> tuple[int, ...]:
    """Token ids of transformers' own `generate`."""
    model: Any = loaded.policy.model
    ids = prompt.token_ids[None]
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    inputs["mm_token_type_ids"] = (ids == loaded.processor.image_token_id).int()
    if prompt.pixel_values is not None:
        inputs |= {"pixel_values": prompt.pixel_values, "image_grid_thw": prompt.grids}
    if prompt.series:
        inputs["series"] = dict(prompt.series)
    stop = int(loaded.tokenizer.eos_token_id)
    banned = loaded.policy.banned.nonzero()[:, 0].tolist()
    settings = {"do_sample": False, "max_new_tokens": tokens, "suppress_tokens": banned, "pad_token_id": 0}
    out = model.generate(**inputs, **settings, eos_token_id=stop)
    return tuple(out[0, ids.shape[1] :].tolist())


def train(loaded: Loaded, policy: LivePolicy, items: Sequence[Prompt], steps: int) -> None:
    """Steps of AdamW that move every weight."""
    optimizer = torch.optim.AdamW(loaded.policy.parameters(), lr=3e-3)
    for step in range(steps):
        for item in items:
            loss = -_log_probs(policy, item, range(20 + step, 32 + step)).mean()
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def _log_probs(policy: LivePolicy, item: Prompt, token_ids: Sequence[int]) -> Tensor:
    group = Group(tiny.case("any"), item, (Rollout("any", 0, tuple(token_ids), ""),))
    (row,) = pack([group], 1)
    return policy.policy(row).log_probs


def tokens(out: Sequence[Sequence[Rollout]]) -> list[list[tuple[int, ...]]]:
    return [[rollout.token_ids for rollout in group] for group in out]


def furthest(policy: LivePolicy, items: Sequence[Prompt], out: list[list[Rollout]], temperature: float) -> float:
    """The largest difference to the trainer's log-probs."""
    differences = [
        (torch.tensor(rollout.log_probs) - policy.log_probs(item, rollout.token_ids, temperature)).abs().max()
        for item, group in zip(items, out, strict=True)
        for rollout in group
    ]
    return float(max(differences))
