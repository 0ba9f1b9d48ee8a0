"""Rollout engine `torch`: the policy itself samples, in process; for small models, tests and machines without vLLM.

A prompt is computed once for its group. Every rollout has its own stream of uniform numbers from its seed, so that it
does not depend on what else is in the batch. Log-probs are those of the distribution that was sampled from.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from qoqmed.contracts import PolicyHandle
from qoqmed.packing import Prompt
from qoqmed.types import Rollout, Sampling

COMPACT = 0.75  # drop finished rows once this share of the grid, or less, goes on


class TorchRollouts:
    """batch: responses that are decoded at the same time, at least one group."""

    exact_log_probs = True  # the policy itself samples

    def __init__(self, batch: int = 512) -> None:
        self.batch = batch

    def start(self, policy: PolicyHandle) -> None:
        self.policy = policy

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[int]) -> list[list[Rollout]]:
        """`sampling.n` rollouts for each prompt, in order; rollout i of a prompt draws from the stream (seed, i)."""
        at_once = max(1, self.batch // sampling.n)
        out: list[list[Rollout]] = []
        with self.policy.whole():
            for start in range(0, len(prompts), at_once):
                part = slice(start, start + at_once)
                out += self._batch(prompts[part], sampling, seeds[part])
        return out

    def rest(self) -> None:
        """It samples with the trainer's own weights and keeps nothing between calls."""

    def sync(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Nothing to do: the engine samples from the policy's own weights."""

    def close(self) -> None:
        """Nothing is held."""

    def _batch(self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[int]) -> list[list[Rollout]]:
        policy, n, longest = self.policy, sampling.n, sampling.max_new_tokens
        prefix = policy.prefill(prompts)
        cache = policy.decoder(prefix, n, longest)
        rows = len(prompts) * n
        hidden = prefix.hidden.repeat_interleave(n, 0)
        starts = prefix.starts.repeat_interleave(n)
        uniform = streams(seeds, n, longest).to(hidden.device)
        tokens = torch.zeros(rows, longest, dtype=torch.long, device=hidden.device)
        log_probs = torch.zeros(rows, longest, device=hidden.device)
        length = torch.full((rows,), longest, device=hidden.device)
        row = torch.arange(rows, device=hidden.device)  # which response each row of the grid writes
        alive = torch.ones(rows, dtype=torch.bool, device=hidden.device)
        stop = torch.tensor(sorted(policy.stop_token_ids), device=hidden.device)
        for t in range(longest):
            drawn, logp = sample(policy.logits(hidden), uniform[row, t], sampling)
            tokens[row[alive], t], log_probs[row[alive], t] = drawn[alive], logp[alive]
            ended = alive & torch.isin(drawn, stop)
            length[row[ended]] = t + 1
            alive = alive & ~ended
            if t + 1 == longest or not alive.any():
                break
            going_on, keep, widest = grid(alive.view(-1, n))
            if len(keep) <= COMPACT * len(row):
                cache.keep(going_on, keep, widest)
                row, alive, drawn, n = row[keep], alive[keep], drawn[keep], widest
            hidden = policy.decode(drawn, starts[row] + t, cache)
        return self._collect(prompts, sampling, seeds, tokens, log_probs, length, stop)

    def _collect(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        seeds: Sequence[int],
        tokens: Tensor,
        log_probs: Tensor,
        length: Tensor,
        stop: Tensor,
    ) -> list[list[Rollout]]:
        out = []
        for p, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
            group = []
            for i in range(sampling.n):
                row = p * sampling.n + i
                ids = tuple(tokens[row, : int(length[row])].tolist())
                stopped = bool((tokens[row, int(length[row]) - 1] == stop).any())
                group.append(
                    Rollout(
                        case_id=prompt.case_id,
                        index=i,
                        token_ids=ids,
                        text=self.policy.decode_text(ids),
                        log_probs=tuple(log_probs[row, : len(ids)].tolist()),
                        finish_reason="stop" if stopped else "length",
                        seed=seed,
                    )
                )
            out.append(group)
        return out


def streams(seeds: Sequence[int], n: int, length: int) -> Tensor:
    """[len(seeds) * n, length] float64 in [0, 1): row (p, i) comes from its own generator, seeded by (seed p, i)."""
    rows = [np.random.default_rng((seed, i)).random(length) for seed in seeds for i in range(n)]
    return torch.from_numpy(np.stack(rows))


def sample(logits: Tensor, uniform: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """logits [R, V] float32, uniform [R] float64 -> token ids [R] and their log-probs [R] float32.

    By inversion of the cumulative distribution. temperature 0 takes the largest logit, with its log-prob at 1.
    """
    log_probs = (logits / (sampling.temperature or 1.0)).log_softmax(-1)
    if sampling.temperature == 0:
        drawn = logits.argmax(-1)
    else:
        log_probs = restrict(log_probs, sampling.top_p, sampling.top_k)
        cumulative = log_probs.double().exp().cumsum(-1)
        total = cumulative[:, -1:]
        below = torch.minimum(uniform[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
        drawn = torch.searchsorted(cumulative, below, right=True)[:, 0]
    return drawn, log_probs.gather(1, drawn[:, None])[:, 0]


def restrict(log_probs: Tensor, top_p: float, top_k: int) -> Tensor:
    """Keep the `top_k` likeliest tokens (0: all), then the smallest set that holds `top_p`; renormalised."""
    if top_k == 0 and top_p == 1.0:
        return log_probs
    ordered, index = log_probs.sort(-1, descending=True)
    keep = torch.ones_like(ordered, dtype=torch.bool)
    if top_k:
        keep[:, top_k:] = False
    kept = ordered.masked_fill(~keep, -torch.inf).softmax(-1)
    keep &= kept.cumsum(-1) - kept < top_p  # the token that crosses top_p stays
    masked = ordered.masked_fill(~keep, -torch.inf).log_softmax(-1)
    return torch.full_like(log_probs, -torch.inf).scatter(1, index, masked)


def grid(alive: Tensor) -> tuple[Tensor, Tensor, int]:
    """alive [P, G] bool -> prompts that go on [P'], rows [P' * G'] of the old grid, and G'.

    Each prompt keeps its alive rows first; prompts with fewer than the most are filled up with finished rows.
    """
    prompts = alive.any(1).nonzero()[:, 0]
    n = int(alive.sum(1).max())
    first = (~alive[prompts]).to(torch.int8).argsort(dim=1, stable=True)[:, :n]  # alive before finished
    return prompts, (prompts[:, None] * alive.shape[1] + first).flatten(), n
