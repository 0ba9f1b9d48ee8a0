"""Fabric and FSDP2: how many processes there are, how the policy is sharded, what ranks tell each other."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.run import parse_args, run
from torch.distributed.tensor import DTensor

from qoqmed.errors import Problem, UserError
from qoqmed.media.torchvision_ops import repair

repair()  # before lightning is imported: a torchvision built for another torch breaks that import

from lightning.fabric import Fabric  # noqa: E402
from lightning.fabric.plugins.environments import SLURMEnvironment  # noqa: E402
from lightning.fabric.strategies import ModelParallelStrategy  # noqa: E402

Item = TypeVar("Item")


class FSDP2Strategy(ModelParallelStrategy):
    """Pure data parallelism over all ranks; policy and reference are two FSDP roots."""

    def __init__(self, precision: str) -> None:
        dtype = torch.bfloat16 if precision == "bf16" else None
        self._mixed = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32 if dtype else None)
        super().__init__(self._shard, tensor_parallel_size=1)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes  # "auto" would mean the number of nodes
        super().setup_environment()

    def _shard(self, module: Any, mesh: DeviceMesh) -> Any:
        for policy in (module.policy, module.reference):
            if isinstance(policy, nn.Module):
                shard(policy, mesh["data_parallel"], self._mixed)
        return module


def shard(policy: Any, mesh: DeviceMesh, mixed: MixedPrecisionPolicy) -> None:
    """Decoder layers are groups; encoders, vision tower, embeddings and head lie in the root group."""
    for block in policy.modules():
        if type(block).__name__ in policy.model.block_names:
            fully_shard(block, mesh=mesh, mp_policy=mixed, reshard_after_forward=True)
    fully_shard(policy, mesh=mesh, mp_policy=mixed, reshard_after_forward=True)
    policy.set_reduce_scatter_unused_params(True)  # ranks may use different encoders
    for method in ("prefill", "decode", "logits"):
        register_fsdp_forward_method(policy, method)


def under_launcher() -> bool:
    """Whether torchrun or srun has already started this process as one of its ranks."""
    return any(name in os.environ for name in ("LOCAL_RANK", "TORCHELASTIC_RUN_ID")) or under_srun()


def under_srun() -> bool:
    """Whether SLURM runs this process as one of several tasks. A job of one task is launched as without SLURM."""
    by_torchrun = "TORCHELASTIC_RUN_ID" in os.environ  # which may run inside a job
    return not by_torchrun and int(os.environ.get("SLURM_NTASKS", "1")) > 1 and SLURMEnvironment.detect()


def slurm_tasks() -> tuple[int, int]:
    """(tasks a node, nodes) of the job that this process is a task of. Raises UserError where they make no grid."""
    tasks, nodes = int(os.environ["SLURM_NTASKS"]), int(os.environ.get("SLURM_NNODES", "1"))
    if "SLURM_JOB_ID" in os.environ and "SLURM_STEP_ID" not in os.environ:
        what = f"a job of {tasks} tasks, and srun did not start this process"
        raise UserError(Problem(what, "SLURM", mend="put srun before the command: srun qoqmed fit ..."))
    a_node = int(os.environ.get("SLURM_NTASKS_PER_NODE", "0"))
    if a_node * nodes != tasks:
        got = f"{tasks} tasks on {nodes} nodes, {a_node or 'no number of them'} a node"
        mend = "start the job with --nodes and --ntasks-per-node, one task for each GPU"
        raise UserError(Problem("the job's tasks are not spread evenly over its nodes", "SLURM", got, mend=mend))
    return a_node, nodes


def relaunch(arguments: Sequence[str], devices: int) -> NoReturn:
    """Run torchrun with `devices` ranks of `python -m qoqmed ARGUMENTS`, and exit as the first rank that failed did.

    Raises UserError, once, with what ranks have told of wrong input.
    """
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # it repeats what the ranks say
    os.environ["QOQMED_LAUNCHED"] = "1"
    cores = len(os.sched_getaffinity(0))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // devices)))
    options = ["--standalone", f"--nproc_per_node={devices}", "--max_restarts=0", "-m", "qoqmed", *arguments]
    try:
        run(parse_args(options))  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        told = [row for failure in error.failures.values() for row in failure.error_file_data.get("problems", ())]
        if told:
            raise UserError([Problem(**row) for row in {str(row): row for row in told}.values()]) from None
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            raise SystemExit(f"the process of rank {rank} was ended by {failure.signal_name()}") from None
        raise SystemExit(failure.exitcode) from None
    except SignalException as stop:  # the ranks had it too, and have saved
        raise SystemExit(128 + stop.sigval) from None
    finally:
        del os.environ["QOQMED_LAUNCHED"]  # of the ranks, not of this process
    raise SystemExit(0)


def make_fabric(accelerator: str, devices: int, num_nodes: int, strategy: str, precision: str) -> Fabric:
    """FSDP2 when asked for or when there is more than one process, else a single device."""
    if under_srun():
        devices, num_nodes = slurm_tasks()
    world = devices * num_nodes
    if strategy == "single" and world > 1:
        got = f"single, with {world} processes"
        mend = "set trainer.strategy to auto, or trainer.devices and trainer.num_nodes to 1"
        raise UserError(
            Problem("several processes need a strategy that keeps them together", "trainer.strategy", got, mend=mend)
        )
    sharded = strategy == "fsdp2" or (strategy == "auto" and world > 1)
    kind = accelerator if accelerator != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    chosen: Any = FSDP2Strategy(precision) if sharded else "auto"
    return Fabric(accelerator=kind, devices=devices, num_nodes=num_nodes, strategy=chosen)


def count_devices(devices: int | str, accelerator: str) -> int:
    """Processes per node: the launcher's number wins over the recipe; auto is every GPU, or one process on CPU."""
    if under_srun():
        return slurm_tasks()[0]
    if under_launcher():
        return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if isinstance(devices, int):
        return devices
    return max(1, torch.cuda.device_count()) if accelerator in ("auto", "cuda") else 1


@contextmanager
def whole(policy: nn.Module) -> Iterator[None]:
    """Every rank holds all of the policy's weights inside: each may do as many forwards as its own responses take.

    A collective where the policy is sharded.
    """
    shards = [module for module in policy.modules() if isinstance(module, FSDPModule)]
    for shard in shards:
        shard.set_reshard_after_forward(False, recurse=False)
        shard.unshard()
    try:
        yield
    finally:
        for shard in shards:
            shard.set_reshard_after_forward(True, recurse=False)
            shard.reshard()


def full(tensor: Tensor) -> Tensor:
    """A sharded tensor whole (a collective); a plain one as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather(item: Item) -> list[Item]:
    """`item` of every rank, in rank order; on one process [item]."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return [item]
    out: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(out, item)
    return out


def add_up(values: Mapping[str, float]) -> dict[str, float]:
    """Sums over ranks, by name; a name that a rank lacks counts as 0."""
    total: dict[str, float] = {}
    for part in gather(dict(values)):
        for name, value in part.items():
            total[name] = total.get(name, 0.0) + value
    return total
