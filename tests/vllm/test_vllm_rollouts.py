"""The engine `vllm` on one policy: seeds, batches, distributions, shared prompts, limits, media, memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import psutil
import pytest
import served
import tiny_policy as tiny
import torch

from qoqmed.contracts import Rollouts
from qoqmed.errors import UserError
from qoqmed.packing import Prompt
from qoqmed.policy.handle import LivePolicy
from qoqmed.policy.loading import Loaded
from qoqmed.rollouts.torch import restrict
from qoqmed.rollouts.vllm import VllmRollouts
from qoqmed.rollouts.vllm_engine import BATCHED, ENVIRONMENT
from qoqmed.rollouts.vllm_isolation import isolated
from qoqmed.types import Sampling


@pytest.fixture(scope="module")
def engine(policy: LivePolicy) -> Iterator[VllmRollouts]:
    with served.engine(policy, probe_every=0) as made:
        yield made


def test_the_engine_keeps_the_contract(engine: VllmRollouts) -> None:
    kept: Rollouts = engine
    assert kept.exact_log_probs is False


def test_a_rollout_does_not_depend_on_its_batch(engine: VllmRollouts, prompts: list[Prompt]) -> None:
    """Alone, in the other order, beside longer ones: the same tokens, log-probs to rounding."""
    sampling = Sampling(n=3, max_new_tokens=served.TOKENS)
    together = engine.generate(prompts, sampling, served.SEEDS)
    backwards = engine.generate(prompts[::-1], sampling, served.SEEDS[::-1])[::-1]
    alone = [engine.generate([prompt], sampling, [seed])[0] for prompt, seed in zip(prompts, served.SEEDS, strict=True)]
    assert served.tokens(together) == served.tokens(backwards) == served.tokens(alone)
    for group, own in zip(together, alone, strict=True):
        for one, other in zip(group, own, strict=True):
            assert one.log_probs == pytest.approx(other.log_probs, abs=1e-5)
    assert engine.generate(prompts, sampling, served.SEEDS) == together  # bit for bit
    other = engine.generate(prompts, sampling, (1, *served.SEEDS[1:]))
    assert [a == b for a, b in zip(other, together, strict=True)] == [False] + [True] * 5


def test_a_prompt_is_not_taken_in_parts(engine: VllmRollouts, loaded: Loaded) -> None:
    """More tokens than one forward takes: the stream of a prompt that is cut in two would begin too early."""
    encode, sampling = tiny.prompter(loaded), Sampling(max_new_tokens=2)
    prompts = [encode(tiny.case(str(i), text=f"{i}. " + "Say something, please. " * 8)) for i in range(100)]
    assert sum(len(prompt.token_ids) for prompt in prompts) > 1.5 * BATCHED
    together = engine.generate(prompts, sampling, range(100))
    alone = [engine.generate([prompt], sampling, [seed])[0] for seed, prompt in enumerate(prompts)]
    assert served.tokens(together) == served.tokens(alone)


def test_rollouts_of_neighbouring_seeds_share_no_stream(engine: VllmRollouts, prompts: list[Prompt]) -> None:
    """vLLM gives child j the seed plus j."""
    same = [prompts[0], replace(prompts[0], case_id="again")]
    out = engine.generate(same, Sampling(n=4, max_new_tokens=served.TOKENS), (5, 6))
    assert len({ids for group in served.tokens(out) for ids in group}) == 8
    assert [[rollout.index for rollout in group] for group in out] == [[0, 1, 2, 3]] * 2
    assert {(rollout.case_id, rollout.seed) for group in out for rollout in group} == {("text", 5), ("again", 6)}


@pytest.mark.parametrize(("top_p", "top_k"), [(0.7, 0), (1.0, 5), (0.8, 20)])
def test_log_probs_are_those_of_the_restricted_distribution(
    engine: VllmRollouts, loaded: Loaded, prompts: list[Prompt], top_p: float, top_k: int
) -> None:
    """Those of the engine `torch`, over logits by hand."""
    plain = tiny.plain_copy(loaded.policy)
    sampling = Sampling(n=2, temperature=0.9, top_p=top_p, top_k=top_k, max_new_tokens=8)
    for prompt, group in zip(prompts, engine.generate(prompts, sampling, served.SEEDS), strict=True):
        for rollout in group:
            with torch.no_grad():
                logits = tiny.plain_logits_by_hand(plain, prompt, rollout.token_ids)
            expected = restrict((logits / 0.9).log_softmax(-1), top_p, top_k)
            chosen = expected.gather(1, torch.tensor(rollout.token_ids)[:, None])[:, 0]
            assert rollout.log_probs == pytest.approx(chosen.tolist(), abs=1e-4)


def test_the_rollouts_of_a_group_share_their_prompt(engine: VllmRollouts, loaded: Loaded) -> None:
    """Counted in the model: the prompt's whole blocks of 32 tokens run once."""
    prompt = tiny.prompter(loaded)(tiny.case("long", tiny.picture(1), text="What is on this chest X-ray? " * 20))
    length, n = len(prompt.token_ids), 8
    assert length > 200 and engine.engine is not None
    seen: list[int] = []
    (model,) = engine.engine.llm.apply_model(lambda model: model)
    hook = model.language_model.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["positions"].shape[-1]), with_kwargs=True
    )
    engine.generate([prompt], Sampling(n=n, max_new_tokens=4), [1])
    hook.remove()
    assert sum(seen) <= length + n * (32 + 4)


def test_a_prompt_that_is_too_long_is_told(engine: VllmRollouts, prompts: list[Prompt]) -> None:
    with pytest.raises(UserError, match="does not fit into the engine") as error:
        engine.generate(prompts, Sampling(max_new_tokens=480), served.SEEDS)
    (problem,) = error.value.problems
    assert problem.where == "rollout.max_model_len" and problem.expected == "at most 512 tokens"
    assert problem.got.startswith(f"{max(len(p.token_ids) for p in prompts)} tokens of interleaved, and 480")


def test_no_prompts_give_no_rollouts(engine: VllmRollouts) -> None:
    assert engine.generate([], Sampling(), []) == []


def test_raw_media_give_what_prepared_ones_give(engine: VllmRollouts, loaded: Loaded, prompts: list[Prompt]) -> None:
    """As a plain user of vLLM gives them, with one placeholder an item."""
    media = [tiny.picture(2, 56, 84), tiny.ecg(2), tiny.ecg(3)]
    text = loaded.processor.apply_chat_template(
        [{"role": "user", "content": [*({"type": m.modality, m.modality: m.array} for m in media), text_item()]}],
        tokenize=False,
        add_generation_prompt=True,
    )
    raw = {"image": [media[0].array], "ecg": [media[1].array, media[2].array]}
    assert engine.engine is not None
    with isolated(ENVIRONMENT):
        arguments = {"temperature": 0.0, "max_tokens": 16, "ignore_eos": True, "detokenize": False, "logprobs": 0}
        (out,) = engine.engine.generate([{"prompt": text, "multi_modal_data": raw}], [arguments])
    assert out.prompt_token_ids == prompts[3].token_ids.tolist()
    (group,) = engine.generate([prompts[3]], Sampling(temperature=0.0, max_new_tokens=16), [1])
    assert tuple(out.outputs[0].token_ids) == group[0].token_ids


def text_item() -> dict[str, str]:
    return {"type": "text", "text": "What is on this?"}


# ---- syncs


def test_twenty_syncs_leak_no_memory(engine: VllmRollouts, policy: LivePolicy, prompts: list[Prompt]) -> None:
    sampling = Sampling(n=2, max_new_tokens=4)
    before = 0
    for number in range(25):
        engine.sync(policy.weights())
        engine.generate(prompts, sampling, served.SEEDS)
        if number == 4:
            before = psutil.Process().memory_info().rss
    assert psutil.Process().memory_info().rss - before < 16 * 2**20
