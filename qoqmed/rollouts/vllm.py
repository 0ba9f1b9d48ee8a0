"""Rollout engine `vllm`: vLLM in the trainer's process, around the policy's weights; every modality natively.

It is made at the first `generate`, when the policy is where it will train. What it promises: docs/rollouts.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from qoqmed.contracts import PolicyHandle
from qoqmed.errors import PluginError, Problem
from qoqmed.packing import Prompt
from qoqmed.registry import arguments
from qoqmed.rollouts.vllm_engine import ENVIRONMENT, Engine, Options, require
from qoqmed.rollouts.vllm_isolation import isolated
from qoqmed.rollouts.vllm_requests import check_expanded, check_lengths, log_probs, request, settings
from qoqmed.rollouts.vllm_team import Ask, Team, check_team
from qoqmed.rollouts.vllm_watch import never, within
from qoqmed.types import Rollout, Sampling

PROBED = 16  # tokens of a probe
TOLERANCE = {"float32": 1e-3}  # nats a token, on average; of other types:
COARSE = 0.1

Result = TypeVar("Result")


class VllmRollouts:
    """max_model_len: tokens of a prompt with its answer. kv_cache_mb: on a CPU, for keys and values. gpu_memory: on a
    GPU, the share of its memory for the engine; sleep: free it during updates. tensor_parallel: neighbouring processes
    that share one engine; all take part in each call, with prompts of their own or without. enforce_eager: no CUDA
    graphs and no compilation; null: so on a CPU. probe_every: syncs between two comparisons with the policy, 0 for
    none. timeout_s: of one call. precision: `bf16` computes in bfloat16, all else in the type of the weights.
    """

    exact_log_probs = False

    def __init__(
        self,
        max_model_len: int = 8192,
        kv_cache_mb: int = 256,
        gpu_memory: float = 0.4,
        tensor_parallel: int = 1,
        sleep: bool = True,
        probe_every: int = 10,
        timeout_s: float = 3600.0,
        enforce_eager: bool | None = None,
        precision: str = "auto",
    ) -> None:
        bound = arguments.within
        arguments.check(
            bound("max_model_len", max_model_len, low=2),
            bound("kv_cache_mb", kv_cache_mb, low=1),
            bound("gpu_memory", gpu_memory, low=0.01, high=1.0),
            bound("tensor_parallel", tensor_parallel, low=1),
            bound("probe_every", probe_every, low=0),
            bound("timeout_s", timeout_s, low=0.0),
        )
        require()
        self.options = Options(max_model_len, kv_cache_mb, gpu_memory, tensor_parallel, sleep, enforce_eager, "")
        self.probe_every, self.timeout_s, self.precision = probe_every, timeout_s, precision
        self.engine: Engine | None = None
        self.team: Team | None = None
        self.probe: Prompt | None = None
        self.syncs, self.hung = 0, False

    def start(self, policy: PolicyHandle) -> None:
        """Raises UserError where `tensor_parallel` fits neither the number of processes nor the model."""
        check_team(self.options.tensor_parallel, policy)
        self.policy = policy

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[int]) -> list[list[Rollout]]:
        """`sampling.n` rollouts for each prompt. Raises UserError where one does not fit, PluginError where vLLM fails.

        A collective where the policy is sharded, and over the processes that share the engine.
        """
        with isolated(ENVIRONMENT):
            team = self.team = self.team or Team(self.options.tensor_parallel, self.timeout_s)
            asked = team.gather(Ask(prompts, sampling, seeds))
            engine = self._ready(team, [prompt for ask in asked for prompt in ask.prompts])
            return self._sample(engine, team, asked)

    def rest(self) -> None:
        """Free the GPU's memory (`sleep`): weights come again with the next sync or generation."""
        if self.engine is not None and not self.hung:
            with isolated(ENVIRONMENT):
                self._call("going to sleep", self.engine.sleep)

    def sync(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """New weights of the policy. Every `probe_every` times engine and policy are compared; PluginError where they
        differ."""
        if self.engine is None or self.team is None or self.engine.asleep:
            return  # it will begin, or wake, with the weights of that time
        with isolated(ENVIRONMENT):
            self._sync(self.engine, self.team, weights)

    def close(self) -> None:
        """Free what the engine holds."""
        if self.engine is not None and not self.hung:
            with isolated(ENVIRONMENT):
                self.engine.close()
            self.engine = None

    def _ready(self, team: Team, prompts: Sequence[Prompt]) -> Engine:
        """The engine with the policy's weights. prompts: of all that share it."""
        if self.engine is None:
            dtype = "bfloat16" if self.precision == "bf16" else str(self.policy.dtype).removeprefix("torch.")
            self.options = replace(self.options, dtype=dtype)
            self.engine = self._call("its start", partial(Engine, self.policy, self.options))
            self._call("the first sync of weights", partial(self.engine.first_sync, self.policy.weights()))
            self.probe = next(iter(prompts), None)
            if self.probe_every:
                team.together(partial(self._compare, self.engine))
        elif self.engine.asleep:
            self._sync(self.engine, team, self.policy.weights())
        else:
            self.engine.forget()  # what came before this call has no part in what it gives
        return self.engine

    def _sync(self, engine: Engine, team: Team, weights: Iterable[tuple[str, Tensor]]) -> None:
        self._call("the sync of weights", partial(engine.sync, weights))
        self.syncs += 1
        if self.probe_every and self.syncs % self.probe_every == 0:
            team.together(partial(self._compare, engine))

    def _sample(self, engine: Engine, team: Team, asked: Sequence[Ask]) -> list[list[Rollout]]:
        """Of this process's prompts. Every process of the team has all of them answered."""
        for ask in asked:
            check_lengths(ask.prompts, ask.sampling, engine.window)
        prompts = [prompt for ask in asked for prompt in ask.prompts]
        arguments = [settings(ask.sampling, seed, self._stop) for ask in asked for seed in ask.seeds]
        if not prompts:
            return []
        outputs = team.together(partial(self._run, engine, prompts, arguments))
        for prompt, output in zip(prompts, outputs, strict=True):
            check_expanded(prompt, output)
        team.check_same(outputs)
        groups, own = [], asked[team.rank]
        for prompt, seed, output in zip(own.prompts, own.seeds, team.own(asked, outputs), strict=True):
            children = sorted(output.outputs, key=lambda child: child.index)
            groups.append([self._rollout(prompt, seed, child) for child in children])
        return groups

    @property
    def _stop(self) -> list[int]:
        return sorted(self.policy.stop_token_ids)

    def _run(self, engine: Engine, prompts: Sequence[Prompt], arguments: Sequence[dict[str, Any]]) -> list[Any]:
        requests = [request(prompt) for prompt in prompts]
        hopeless = self.team.broken if self.team else never
        return self._call("the generation", partial(engine.generate, requests, arguments), hopeless)

    def _call(self, phase: str, work: Callable[[], Result], hopeless: Callable[[], bool] = never) -> Result:
        """See `within`. An engine that hangs can only be left alone; another waits for `close`."""
        if self.hung:
            raise PluginError(Problem("vLLM hangs since an earlier call", "rollout", mend="go on with --resume"))
        try:
            return within(self.timeout_s, phase, work, hopeless)
        except PluginError as error:
            self.hung = isinstance(error.__cause__, TimeoutError)
            raise

    def _rollout(self, prompt: Prompt, seed: int, child: Any) -> Rollout:
        ids = tuple(child.token_ids)
        return Rollout(
            case_id=prompt.case_id,
            index=child.index,
            token_ids=ids,
            text=self.policy.decode_text(ids),
            log_probs=log_probs(child),
            finish_reason="stop" if ids[-1] in self.policy.stop_token_ids else "length",
            seed=seed,
        )

    def _compare(self, engine: Engine) -> None:
        """Raises PluginError where the probe's greedy answer is far less (or more) likely in the policy."""
        with self.policy.whole():
            if self.probe is None:
                return
            greedy = Sampling(temperature=0.0, max_new_tokens=PROBED)
            (output,) = self._run(engine, [self.probe], [settings(greedy, 0, self._stop)])
            (child,) = output.outputs
            mine = torch.tensor(log_probs(child))
            theirs = self.policy.log_probs(self.probe, child.token_ids)
        engine.forget()
        difference, limit = float((mine - theirs).abs().mean()), TOLERANCE.get(self.options.dtype, COARSE)
        if difference > limit or math.isnan(difference):
            means = f"{float(mine.mean()):.5f} in the engine, {float(theirs.mean()):.5f} in the policy"
            what = f"engine and policy disagree after {self.syncs} syncs: {difference:.5f} nats a token"
            mend = "rollout.name=torch goes on without vLLM; rollout.probe_every=0 leaves this test out"
            got = f"mean log-probs of {len(mine)} tokens of {self.probe.case_id}: {means}"
            raise PluginError(Problem(what, "rollout", got, f"at most {limit} nats", mend))
