"""What a rollout engine sees of the running policy (contract `PolicyHandle`)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qoqmed import parallel
from qoqmed.packing import Prompt, pack
from qoqmed.policy import lora
from qoqmed.policy.attention import Decode
from qoqmed.policy.policy import ClinicalPolicy, Prefix
from qoqmed.types import Case, Group, Rollout, Target


class LivePolicy:
    """The trained policy and its tokenizer. processor: what `describe` writes besides; no other method needs it."""

    def __init__(self, policy: ClinicalPolicy, tokenizer: Any, processor: Any = None) -> None:
        self.policy, self.tokenizer, self.processor = policy, tokenizer, processor
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

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.policy.model.lm_head.weight.dtype  # type: ignore[no-any-return]

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """See `lora.plain_weights`."""
        return lora.plain_weights(self.policy)

    def describe(self, folder: Path) -> None:
        """Write the model without its weights: config.json, tokenizer, processor."""
        model = self.policy.model
        config = {**model.config.to_dict(), "architectures": [type(model).__name__], "dtype": str(self.dtype)[6:]}
        (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
        self.processor.save_pretrained(folder)

    @torch.no_grad()
    def log_probs(self, prompt: Prompt, token_ids: Sequence[int], temperature: float = 1.0) -> Tensor:
        """[T] float32 on the CPU, of these tokens as a response: the policy's own forward, as in training."""
        case = Case(prompt.case_id, "", "", "", "", (), (), Target())
        group = Group(case, prompt, (Rollout(prompt.case_id, 0, tuple(token_ids), ""),))
        training = self.policy.training
        self.policy.eval()
        (row,) = pack([group], 1)
        out: Tensor = self.policy(row, temperature).log_probs
        self.policy.train(training)
        return out.float().cpu()

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
