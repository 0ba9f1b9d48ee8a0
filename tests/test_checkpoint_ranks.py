"""A checkpoint of two FSDP2 ranks goes on in one process, and back, with the same weights and moments."""

import os
import socket
import subprocess
import sys

import pytest

SCRIPT = """
import os, sys
from pathlib import Path
import torch, torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from qoqmed import checkpoint

folder, first, last = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
dist.init_process_group("gloo")
ranks = checkpoint.Ranks(dist.get_rank(), dist.get_world_size(), dist.barrier)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 3))
fully_shard(model, mesh=init_device_mesh("cpu", (ranks.world,)))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
found = checkpoint.latest(folder)
if found is not None:
    tensors, state = checkpoint.load(found)
    checkpoint.restore(model.state_dict().items(), tensors["policy"])
    checkpoint.load_optimizer(optimizer, model.named_parameters(), tensors["optimizer"], state["optimizer"])
    assert (checkpoint.load_random(found, ranks) is None) == (state["world"] != ranks.world)
for step in range(first, last):
    data = torch.randn(8, 5, generator=torch.Generator().manual_seed(step))  # all ranks the same: equal to one process
    model(data).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
policy = checkpoint.gather(model.state_dict().items(), ranks)
moments, numbers = checkpoint.optimizer_tensors(optimizer, model.named_parameters(), ranks)
state = {"optimizer": numbers, "world": ranks.world}
random = checkpoint.random_state()
checkpoint.save(folder, last, {"policy": policy, "optimizer": moments}, state, random=random, ranks=ranks)
dist.destroy_process_group()
"""


def run(folder, world, first, last):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, str(folder), str(first), str(last)]
    ranks = [{**environment, "RANK": str(rank), "WORLD_SIZE": str(world)} for rank in range(world)]
    processes = [subprocess.Popen(command, env=rank) for rank in ranks]
    assert [process.wait(120) for process in processes] == [0] * world


@pytest.mark.slow
def test_the_number_of_processes_may_change(tmp_path):
    """Two ranks, then one, then two again: equal to plain torch in this process."""
    import torch
    from torch import nn

    from qoqmed import checkpoint

    for world, first, last in ((2, 0, 1), (1, 1, 2), (2, 2, 4)):
        run(tmp_path, world, first, last)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(4):
        data = torch.randn(8, 5, generator=torch.Generator().manual_seed(step))
        model(data).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    moments, _ = checkpoint.optimizer_tensors(optimizer, model.named_parameters())
    tensors = checkpoint.load(tmp_path / "step-00000004").tensors
    for expected, found in ((model.state_dict(), tensors["policy"]), (moments, tensors["optimizer"])):
        assert expected.keys() == found.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-7)
