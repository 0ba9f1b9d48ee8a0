"""vLLM against trainer and transformers: both backbones, embeddings tied or not, before and after training."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import served
import torch
from torch import Tensor

from qoqmed.config.schema import LoraConfig
from qoqmed.errors import PluginError
from qoqmed.policy import lora
from qoqmed.policy.handle import LivePolicy
from qoqmed.policy.loading import Loaded
from qoqmed.types import Sampling

GREEDY = Sampling(temperature=0.0, max_new_tokens=served.TOKENS)


def check(loaded: Loaded, policy: LivePolicy, engine: served.VllmRollouts) -> list[list[tuple[int, ...]]]:
    """Greedy tokens are transformers', log-probs the trainer's; gives the tokens."""
    prompts = served.prompts(loaded)
    out = engine.generate(prompts, GREEDY, range(len(prompts)))
    for prompt, (rollout,) in zip(prompts, out, strict=True):
        assert rollout.token_ids == served.transformers_greedy(loaded, prompt), prompt.case_id
    assert served.furthest(policy, prompts, out, 1.0) < 1e-4
    drawn = Sampling(n=3, temperature=0.7, max_new_tokens=served.TOKENS)
    sampled = engine.generate(prompts, drawn, range(len(prompts)))
    assert served.furthest(policy, prompts, sampled, 0.7) < 1e-4
    return served.tokens(out)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("backbone", ["qwen2_5_vl", "qwen3_vl"])
def test_engine_and_trainer_agree_before_and_after_training(backbone: str, tied: bool) -> None:
    loaded = served.load(backbone, tied)
    policy = served.handle(loaded)
    with served.engine(policy, probe_every=1) as engine:
        before = check(loaded, policy, engine)
        served.train(loaded, policy, served.prompts(loaded), 5)
        engine.sync(policy.weights())
        after = check(loaded, policy, engine)
        assert all(old != new for old, new in zip(before, after, strict=True))  # and the caches were emptied


def test_adapters_are_in_the_stream() -> None:
    loaded = served.load()
    lora.add(loaded.policy, LoraConfig(rank=2, parts=("language_model", "vision", "encoders")), seed=1)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in loaded.policy.named_parameters():
            if lora.MARK in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    policy = served.handle(loaded)
    with served.engine(policy) as engine:
        check(loaded, policy, engine)


class Altered(LivePolicy):
    """Its stream lacks a weight and has another one besides."""

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        lacking = ("model.language_model.layers.1.self_attn.k_proj.weight", "projectors.ecg.bias")
        yield from ((name, value) for name, value in super().weights() if name not in lacking)
        yield "model.language_model.layers.1.mlp.odd.bias", torch.zeros(3)


def test_weights_that_do_not_match_one_to_one_are_named() -> None:
    loaded = served.load()
    policy = Altered(loaded.policy, loaded.tokenizer, loaded.processor)
    with served.engine(policy) as engine, pytest.raises(PluginError, match="do not have the same weights") as error:
        engine.generate(served.prompts(loaded), GREEDY, range(6))
    (problem,) = error.value.problems
    assert "only the policy has model.language_model.layers.1.mlp.odd.bias;" in problem.got
    missing = ("language_model.model.layers.1.self_attn.qkv_proj.weight", "projectors.ecg.bias")
    assert problem.got.endswith(f"only the engine has {', '.join(missing)}")
