"""A call into vLLM with a time limit. It runs in a thread of its own; one that hangs is left behind there."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

import torch

from qoqmed.errors import PluginError, Problem, UserError

POLL_S = 1.0

Result = TypeVar("Result")


class Abandoned(PluginError):
    """A call was left alone because it can never come back."""


def never() -> bool:
    """Nothing is hopeless."""
    return False


def within(seconds: float, phase: str, work: Callable[[], Result], hopeless: Callable[[], bool] = never) -> Result:
    """What `work` gives. Raises PluginError, naming the phase, where it fails or hangs; hopeless: see `limited`."""
    try:
        return limited(seconds, work, hopeless)
    except UserError:
        raise
    except TimeoutError as error:
        if hopeless():
            mend = "what the other one says comes first; go on with --resume"
            what = f"{phase} was given up: another process that shares this engine has failed"
            raise Abandoned(Problem(what, "rollout", mend=mend)) from error
        mend = "go on with --resume; where it is only slow, raise rollout.timeout_s"
        what = f"vLLM did not come back from {phase} in {seconds:g} s"
        raise PluginError(Problem(what, "rollout.timeout_s", mend=mend)) from error
    except Exception as error:  # boundary: vLLM fails in as many ways as it has layers
        told = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
        raise PluginError(Problem(f"vLLM failed in {phase}", "rollout", told, mend=_mend(error))) from error


def _mend(error: Exception) -> str:
    memory = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "memory" in str(error).lower()
    less = "lower rollout.gpu_memory, rollout.max_model_len or trainer.tokens_per_pack, or raise rollout.kv_cache_mb; "
    return (less if memory else "") + "go on with --resume, or with rollout.name=torch"


def limited(seconds: float, work: Callable[[], Result], hopeless: Callable[[], bool] = never) -> Result:
    """What `work()` gives or raises. Raises TimeoutError where it has not come back in time, or will not by what
    `hopeless` says, which is asked every second: its thread goes on, and does not keep the process alive."""
    results: list[Result] = []
    errors: list[BaseException] = []
    device = torch.cuda.current_device() if torch.cuda.is_available() else None
    grad, threads = torch.is_grad_enabled(), torch.get_num_threads()

    def run() -> None:
        try:
            torch._C.set_num_threads(threads)  # as the other two, it is a thread's own; torch.set_num_threads is a stub
            if device is not None:
                torch.cuda.set_device(device)
            with torch.set_grad_enabled(grad):
                results.append(work())
        except BaseException as error:  # boundary: whatever it is, the caller's thread has to hear of it
            errors.append(error)

    thread = threading.Thread(target=run, name="rollouts", daemon=True)
    thread.start()
    end = time.monotonic() + seconds
    while thread.is_alive() and not hopeless() and (left := end - time.monotonic()) > 0:
        thread.join(min(left, POLL_S))
    if thread.is_alive():
        raise TimeoutError
    if errors:
        raise errors[0]
    return results[0]
