"""`model: {name: tiny}`: a backbone of about a million parameters with its own tokenizer, from a seed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from qoqmed.policy.pictures import Pictures

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *Pictures.media_tokens)
INITIALIZER_RANGE = 0.05  # wider than transformers' 0.02: so narrow a model learns to look sooner (docs/experiments.md)
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class TinySize:
    """Sizes of the tiny policy; the defaults make about one million parameters."""

    hidden: int = 128
    layers: int = 3
    heads: int = 4
    vision_hidden: int = 64
    vision_layers: int = 2
    vocabulary: int = 768  # of the trained tokenizer, special tokens included


def tokenizer(texts: Iterable[str], size: TinySize) -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on `texts`: any text can be encoded, the ones seen in few tokens. Deterministic."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size.vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=[token for token in SPECIAL if token not in ("<|im_end|>", "<|endoftext|>")],
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def image_processor(patch: int = 14) -> Qwen2VLImageProcessorPil:
    return Qwen2VLImageProcessorPil(patch_size=patch)


def model(backbone: Any, tokenizer: PreTrainedTokenizerFast, size: TinySize, seed: int) -> Any:
    """Random weights from `seed`; the global random state is left as it was."""
    ids = {token: int(tokenizer.convert_tokens_to_ids(token)) for token in SPECIAL}
    config = backbone.tiny_config(size, ids, _round_up(len(tokenizer), 64))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return backbone._from_config(config, attn_implementation=dict(backbone.attention))


def text_config(size: TinySize, token_ids: Mapping[str, int], vocabulary: int) -> dict[str, Any]:
    """What the text configs of the backbones have in common."""
    head = size.hidden // size.heads
    return {
        "initializer_range": INITIALIZER_RANGE,
        "hidden_size": size.hidden,
        "intermediate_size": 3 * size.hidden,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.heads // 2,
        "vocab_size": vocabulary,
        "max_position_embeddings": 4096,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "mrope_section": [head // 2 - 2 * (3 * head // 16), 3 * head // 16, 3 * head // 16],
        },
        "bos_token_id": token_ids["<|im_start|>"],
        "eos_token_id": token_ids["<|im_end|>"],
        "pad_token_id": token_ids["<|endoftext|>"],
    }


def vision_config(size: TinySize) -> dict[str, Any]:
    """What the vision configs of the backbones have in common."""
    return {
        "initializer_range": INITIALIZER_RANGE,
        "depth": size.vision_layers,
        "hidden_size": size.vision_hidden,
        "intermediate_size": 2 * size.vision_hidden,
        "num_heads": 2,
        "out_hidden_size": size.hidden,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }


def special_ids(token_ids: Mapping[str, int]) -> dict[str, Any]:
    """Ids of the media tokens, by the names of a config."""
    return {
        "image_token_id": token_ids["<|image_pad|>"],
        "video_token_id": token_ids["<|video_pad|>"],
        "vision_start_token_id": token_ids["<|vision_start|>"],
        "vision_end_token_id": token_ids["<|vision_end|>"],
        "tie_word_embeddings": False,
    }


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
