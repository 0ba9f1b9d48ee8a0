"""What a rollout engine sees of the running policy (contract `PolicyHandle`)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor

from qoqmed import parallel
from qoqmed.packing import Prompt
from qoqmed.policy.attention import Decode
from qoqmed.policy.policy import ClinicalPolicy, Prefix


class LivePolicy:
    """The trained policy and its tokenizer."""

    def __init__(self, policy: ClinicalPolicy, tokenizer: Any) -> None:
        self.policy, self.tokenizer = policy, tokenizer
        self.stop_token_ids = frozenset({int(tokenizer.eos_token_id)})
        self.banned_token_ids = frozenset(policy.banned.nonzero()[:, 0].tolist())

    def decode_text(self, token_ids: Sequence[int]) -> str:
        """Token ids -> text, without the stop token; special tokens that were sampled would be shown."""
        ids = [i for i in token_ids if i not in self.stop_token_ids]
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def encode_text(self, text: str) -> tuple[int, ...]:
        """A gold response -> its token ids, with the stop token."""
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return (*ids, int(self.tokenizer.eos_token_id))

    def whole(self) -> AbstractContextManager[None]:
        return parallel.whole(self.policy)

    def prefill(self, prompts: Sequence[Prompt]) -> Prefix:
        return self.policy.prefill(prompts)

    def decoder(self, prefix: Prefix, n: int, capacity: int) -> Decode:
        return Decode(prefix.cache, prefix.lengths, n, capacity)

    def decode(self, token_ids: Tensor, positions: Tensor, cache: Decode) -> Tensor:
        return self.policy.decode(token_ids, positions, cache)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.policy.logits(hidden)
