"""Engines `vllm` of their own: what may be sampled, what a probe and a failure tell, what is left alone."""

from __future__ import annotations

import logging
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import served
import torch

from qoqmed.errors import PluginError
from qoqmed.packing import Prompt
from qoqmed.policy.handle import LivePolicy
from qoqmed.policy.loading import Loaded
from qoqmed.rollouts.vllm import VllmRollouts
from qoqmed.types import Sampling


def test_banned_ids_are_never_sampled_and_stop_tokens_end() -> None:
    """A policy that is nearly uniform: every other id comes up."""
    loaded = served.load(std=0.02)
    policy = served.handle(loaded)
    prompt = served.prompts(loaded)[1]
    with served.engine(policy) as engine:
        (group,) = engine.generate([prompt], Sampling(n=200, max_new_tokens=20), [5])
    drawn = {token for rollout in group for token in rollout.token_ids}
    assert not drawn & policy.banned_token_ids
    assert len(drawn) > 0.9 * (len(loaded.policy.banned) - len(policy.banned_token_ids))
    (stop,) = policy.stop_token_ids
    for rollout in group:
        assert len(rollout.token_ids) == len(rollout.log_probs) and stop not in rollout.token_ids[:-1]
        assert (rollout.token_ids[-1] == stop) == (rollout.finish_reason == "stop")
        assert rollout.finish_reason == "stop" or len(rollout.token_ids) == 20
        assert rollout.text == loaded.tokenizer.decode([token for token in rollout.token_ids if token != stop])
    assert {rollout.finish_reason for rollout in group} == {"stop", "length"}


def test_a_probe_tells_that_engine_and_policy_differ(loaded: Loaded, policy: LivePolicy, prompts: list[Prompt]) -> None:
    with served.engine(policy, probe_every=2) as engine:
        engine.generate(prompts, Sampling(max_new_tokens=2), served.SEEDS)
        stale = [(name, value * 0.5 if "lm_head" in name else value) for name, value in policy.weights()]
        engine.sync(iter(stale))
        with pytest.raises(PluginError, match="engine and policy disagree after 2 syncs") as error:
            engine.sync(iter(stale))
        assert " in the engine, -" in str(error.value) and " in the policy" in str(error.value)


# ---- what goes wrong inside


@pytest.fixture
def broken(policy: LivePolicy, prompts: list[Prompt]) -> Iterator[VllmRollouts]:
    with served.engine(policy, probe_every=0) as made:
        made.generate(prompts[:1], Sampling(max_new_tokens=1), [1])
        yield made


def test_an_engine_that_hangs_is_told_and_let_go(broken: VllmRollouts, prompts: list[Prompt]) -> None:
    assert broken.engine is not None
    broken.engine.llm.generate = lambda *args, **kwargs: time.sleep(2)
    broken.timeout_s = 0.2
    with pytest.raises(PluginError, match=r"vLLM did not come back from the generation in 0\.2 s"):
        broken.generate(prompts, Sampling(max_new_tokens=2), served.SEEDS)
    with pytest.raises(PluginError, match="vLLM hangs since an earlier call"):
        broken.generate(prompts, Sampling(max_new_tokens=2), served.SEEDS)
    (left,) = [thread for thread in threading.enumerate() if thread.name == "rollouts"]
    assert left.daemon
    left.join()
    broken.hung = False  # for the test's own tidying up


def test_an_engine_that_dies_is_told_with_its_phase(broken: VllmRollouts, prompts: list[Prompt]) -> None:
    def die(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    assert broken.engine is not None
    broken.engine.llm.generate = die
    with pytest.raises(PluginError, match="vLLM failed in the generation") as error:
        broken.generate(prompts, Sampling(max_new_tokens=2), served.SEEDS)
    assert "can't allocate memory" in str(error.value) and "raise rollout.kv_cache_mb" in str(error.value)


# ---- what it leaves alone


def test_the_trainers_state_is_as_before(policy: LivePolicy, prompts: list[Prompt]) -> None:
    torch.set_num_threads(2)
    torch.manual_seed(5)
    np.random.seed(6)
    random.seed(7)
    before = state()
    with served.engine(policy) as engine:
        engine.generate(prompts, Sampling(n=2, max_new_tokens=4), served.SEEDS)
        assert state() == before
        engine.sync(policy.weights())
        assert state() == before
    assert state() == before
    torch.set_num_threads(1)
    assert torch.get_num_threads() == 1  # vLLM's stub would have kept 2


def state() -> dict[str, Any]:
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": np.random.get_state()[1].tolist(),
        "python": random.getstate(),
        "threads": torch.get_num_threads(),
        "environment": dict(os.environ),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "grad": torch.is_grad_enabled(),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "logging": (logging.getLogger().level, list(logging.getLogger().handlers)),
    }
