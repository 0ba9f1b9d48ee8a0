"""Between our prompts and rollouts and vLLM's requests and outputs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from qoqmed.errors import PluginError, Problem, UserError
from qoqmed.packing import Prompt
from qoqmed.types import Sampling

CHILDREN = 2**16  # seeds apart: the n responses of a request take as many in a row


def request(prompt: Prompt) -> dict[str, Any]:
    """Token ids with one placeholder an item, and the items as they were prepared for the trainer, too."""
    data: dict[str, list[Any]] = {}
    if prompt.pixel_values is not None and prompt.grids is not None:
        rows = torch.split(prompt.pixel_values, prompt.grids.prod(1).tolist())
        data["image"] = [{"pixel_values": own, "grid": grid} for own, grid in zip(rows, prompt.grids, strict=True)]
    for modality, items in prompt.series.items():
        data[modality] = [{"values": values} for values in items]
    out: dict[str, Any] = {"prompt_token_ids": prompt.token_ids[_kept(prompt)].tolist()}
    return out | ({"multi_modal_data": data} if data else {})


def _kept(prompt: Prompt) -> Tensor:
    """[P] bool: all tokens but the placeholders after the first one of each item."""
    keep = torch.ones(len(prompt.token_ids), dtype=torch.bool)
    if prompt.image_slots is not None and prompt.grids is not None:
        patches = prompt.grids.prod(1)
        merged = int(patches.sum()) // len(prompt.image_slots)
        keep[prompt.image_slots] = _firsts(patches // merged)
    for modality, slots in prompt.series_slots.items():
        items = len(prompt.series[modality])
        keep[slots] = _firsts(torch.full((items,), len(slots) // items))
    return keep


def _firsts(sizes: Tensor) -> Tensor:
    """[sum of sizes] bool, True at the start of each run."""
    first = torch.zeros(int(sizes.sum()), dtype=torch.bool)
    first[sizes.cumsum(0) - sizes] = True
    return first


def stream(seed: int) -> int:
    """The seed of a request's first response, in [0, 2^63); child j has this one plus j. No two requests share any."""
    digest = hashlib.blake2b(str(seed).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % 2**47 * CHILDREN


def settings(sampling: Sampling, seed: int, stop: Sequence[int]) -> dict[str, Any]:
    """Arguments of vLLM's SamplingParams."""
    return {
        "n": sampling.n,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k or -1,
        "max_tokens": sampling.max_new_tokens,
        "seed": stream(seed),
        "stop_token_ids": list(stop),
        "ignore_eos": True,  # its own idea of it: ours is among the stop tokens
        "logprobs": 0,  # of the sampled token
        "detokenize": False,
        "skip_reading_prefix_cache": False,
    }


def check_lengths(prompts: Sequence[Prompt], sampling: Sampling, longest: int) -> None:
    """Raises UserError where a prompt and its answer could be longer than the engine's window."""
    case, length = max(((p.case_id, len(p.token_ids)) for p in prompts), key=lambda pair: pair[1], default=("", 0))
    if not prompts or length + sampling.max_new_tokens <= longest:
        return
    got = f"{length} tokens of {case}, and {sampling.max_new_tokens} (rollout.max_new_tokens)"
    mend = "raise rollout.max_model_len, lower rollout.max_new_tokens, or take fewer frames or pixels (data.max_pixels)"
    what = "a prompt with its answer does not fit into the engine"
    raise UserError(Problem(what, "rollout.max_model_len", got, f"at most {longest} tokens", mend))


def check_expanded(prompt: Prompt, output: Any) -> None:
    """Raises PluginError where vLLM has read another prompt than the trainer will."""
    if list(output.prompt_token_ids) == prompt.token_ids.tolist():
        return
    got, expected = f"{len(output.prompt_token_ids)} tokens", f"the trainer's {len(prompt.token_ids)}"
    raise PluginError(Problem("vLLM has expanded the prompt's placeholders otherwise", prompt.case_id, got, expected))


def log_probs(output: Any) -> tuple[float, ...]:
    """Of one response's tokens, nats."""
    rows: Sequence[Mapping[int, Any]] = output.logprobs
    return tuple(row[token].logprob for token, row in zip(output.token_ids, rows, strict=True))
