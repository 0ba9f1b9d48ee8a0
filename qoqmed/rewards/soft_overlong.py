"""DAPO's soft overlong punishment (arXiv:2503.14476, eq. 13), which MedMO uses: a penalty for long responses.

    0 to L_max - L_cache tokens: 0;  from there to L_max: ((L_max - L_cache) - |y|) / L_cache;  beyond: -1

|y| counts the response's tokens, its stop token too. It is below zero, so difficulty (DRPO) leaves it out.
"""

from __future__ import annotations

from collections.abc import Sequence

from qoqmed.registry.arguments import check, within
from qoqmed.types import Case, Reading, Rollout, Verdict

CACHE_SHARE = 0.2  # DAPO's: 4,096 of 20,480


class SoftOverlong:
    """max_tokens: L_max, as a rule `${rollout.max_new_tokens}`. cache_tokens: L_cache; null: a fifth of that."""

    low = -1.0
    high = 0.0

    def __init__(self, max_tokens: int, cache_tokens: int | None = None) -> None:
        cache = max(1, round(max_tokens * CACHE_SHARE)) if cache_tokens is None else cache_tokens
        check(within("max_tokens", max_tokens, low=1), within("cache_tokens", cache, low=1, high=max(max_tokens, 1)))
        self.max_tokens, self.cache_tokens = max_tokens, cache

    def score(self, cases: Sequence[Case], rollouts: Sequence[Rollout], readings: Sequence[Reading]) -> list[Verdict]:
        return [self._verdict(len(rollout.token_ids)) for rollout in rollouts]

    def _verdict(self, tokens: int) -> Verdict:
        if not tokens:
            return Verdict.not_applicable("the number of tokens is not known: the response was read from a file")
        over = tokens - (self.max_tokens - self.cache_tokens)
        value = -min(max(over / self.cache_tokens, 0.0), 1.0)
        return Verdict(value + 0.0, reason=f"{tokens} tokens of {self.max_tokens}")  # 0, not -0
