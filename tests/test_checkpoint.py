"""Checkpoints: committed whole or not at all, bit-exact, readable by another number of processes."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from qoqmed import checkpoint
from qoqmed.errors import RunError


def small(value=0.0):
    return {"policy": {"w": torch.full((4, 3), value)}}


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    tensors = {"policy": {"a/b.c": torch.randn(3, 2), "half": torch.randn(4).bfloat16(), "step": torch.tensor(7.0)}}
    state = {"stage": "sft", "seen": [1, 2], "ema": {"mri": torch.arange(3.0)}, "nan": float("nan"), "none": None}
    path = checkpoint.save(tmp_path, 5, tensors, state)
    assert path.name == "step-00000005" and checkpoint.step_of(path) == 5
    loaded, back = checkpoint.load(path)
    assert loaded.keys() == {"policy"}
    for name, tensor in tensors["policy"].items():
        assert torch.equal(loaded["policy"][name], tensor) and loaded["policy"][name].dtype == tensor.dtype
    assert back["stage"] == "sft" and back["seen"] == [1, 2] and back["none"] is None and back["nan"] != back["nan"]
    assert torch.equal(back["ema"]["mri"], torch.arange(3.0))


def test_tied_and_strided_tensors_are_saved_whole(tmp_path):
    weight = torch.randn(4, 6)
    path = checkpoint.save(tmp_path, 1, {"policy": {"head": weight, "embed": weight, "turned": weight.t()}}, {})
    loaded = checkpoint.load(path).tensors["policy"]
    assert torch.equal(loaded["head"], weight) and torch.equal(loaded["embed"], weight)
    assert torch.equal(loaded["turned"], weight.t())


def test_what_json_cannot_hold_is_refused_with_its_place(tmp_path):
    with pytest.raises(TypeError, match=r"state\.callbacks\.mine\.0: .*not set"):
        checkpoint.save(tmp_path, 1, small(), {"callbacks": {"mine": [set()]}})
    with pytest.raises(TypeError, match=r"state\.counts: the key 3"):
        checkpoint.save(tmp_path, 1, small(), {"counts": {3: 1}})
    assert checkpoint.latest(tmp_path) is None


def test_no_pickle_in_the_folder(tmp_path):
    path = checkpoint.save(tmp_path, 1, small(), {"x": 1}, random=checkpoint.random_state())
    assert {file.suffix for file in path.iterdir()} == {".safetensors", ".json", ""}
    assert all(b"\x80\x04" not in file.read_bytes()[:2] for file in path.iterdir())


def test_the_newest_are_kept_with_the_best_and_the_protected(tmp_path):
    for step in range(1, 7):
        path = checkpoint.save(tmp_path, step, small(step), {}, keep=2, protect={"step-00000003"})
        if step == 2:
            checkpoint.mark_best(tmp_path, path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["best", "step-00000002", "step-00000003", "step-00000005", "step-00000006"]
    assert checkpoint.best(tmp_path) == tmp_path / "step-00000002"
    assert checkpoint.latest(tmp_path) == tmp_path / "step-00000006"


def test_a_save_that_was_killed_leaves_the_older_one(tmp_path):
    older = checkpoint.save(tmp_path, 1, small(1), {})
    draft = tmp_path / ".tmp-step-00000002"
    draft.mkdir()
    (draft / "policy.safetensors").write_bytes(b"half")
    assert checkpoint.latest(tmp_path) == older
    checkpoint.save(tmp_path, 2, small(2), {})
    assert not draft.exists() and checkpoint.load(tmp_path / "step-00000002").tensors["policy"]["w"][0, 0] == 2


@pytest.mark.parametrize("damage", ["truncate", "remove", "complete", "no complete", "version"])
def test_a_damaged_checkpoint_is_passed_over_and_never_loaded(tmp_path, damage):
    older = checkpoint.save(tmp_path, 1, small(1), {})
    newer = checkpoint.save(tmp_path, 2, small(2), {})
    file = newer / "policy.safetensors"
    if damage == "truncate":
        os.truncate(file, 20)
    elif damage == "remove":
        file.unlink()
    elif damage == "complete":
        (newer / "COMPLETE").write_text("[1")
    elif damage == "no complete":
        (newer / "COMPLETE").unlink()
    else:
        (newer / "COMPLETE").write_text('{"version": 99, "files": {}}')
    with pytest.warns(UserWarning, match=r"step-00000002 is passed over"):
        assert checkpoint.latest(tmp_path) == older
    with pytest.raises(RunError, match="cannot be used"):
        checkpoint.load(newer)


def test_bytes_that_are_no_safetensors_give_a_clear_error(tmp_path):
    path = checkpoint.save(tmp_path, 1, small(), {})
    file = path / "policy.safetensors"
    file.write_bytes(b"\xff" * file.stat().st_size)  # the size is right, the content is not
    with pytest.raises(RunError, match=r"policy\.safetensors"):
        checkpoint.load(path)


def test_a_step_saved_again_is_replaced_and_never_lost(tmp_path):
    checkpoint.save(tmp_path, 1, small(1), {}, keep=1)
    checkpoint.save(tmp_path, 1, small(2), {}, keep=1)
    assert checkpoint.load(tmp_path / "step-00000001").tensors["policy"]["w"][0, 0] == 2
    (tmp_path / "step-00000001").rename(tmp_path / ".old-step-00000001")  # killed between the two renames
    path = checkpoint.latest(tmp_path)
    assert checkpoint.step_of(path) == 1 and checkpoint.load(path).tensors["policy"]["w"][0, 0] == 2
    checkpoint.save(tmp_path, 1, small(3), {}, keep=1)
    checkpoint.prune(tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_kill_9_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    script = (
        "import sys, pathlib, torch; from qoqmed import checkpoint\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "for step in range(1, 100_000):\n"
        "    tensors = {'policy': {'w': torch.full((300, 300), float(step))}}\n"
        "    checkpoint.save(folder, step, tensors, {'step': step}, keep=1)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)])
    try:
        while checkpoint.latest(tmp_path) is None:
            assert process.poll() is None
            time.sleep(0.05)
        time.sleep(random.uniform(0.1, 0.4))
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    path = checkpoint.latest(tmp_path)
    tensors, state = checkpoint.load(path)
    assert state["step"] == checkpoint.step_of(path) and bool((tensors["policy"]["w"] == state["step"]).all())


def test_global_random_streams_continue(tmp_path):
    random.gauss(0, 1)  # leaves its second value behind
    np.random.randn(1)
    path = checkpoint.save(tmp_path, 1, small(), {}, random=checkpoint.random_state())

    def draw():
        return torch.randn(3).tolist(), random.gauss(0, 1), random.random(), np.random.randn(3).tolist()

    expected = draw()
    checkpoint.set_random_state(checkpoint.load_random(path))
    assert draw() == expected
    assert checkpoint.load_random(path, checkpoint.Ranks(0, world=2)) is None  # of another number of processes


def test_each_rank_keeps_its_own_stream(tmp_path):
    barrier = threading.Barrier(2)

    def rank(index):
        ranks = checkpoint.Ranks(index, 2, lambda: barrier.wait(30))
        return checkpoint.save(tmp_path, 1, small(index), {}, random={"x": torch.tensor(index)}, ranks=ranks)

    with ThreadPoolExecutor(2) as pool:
        path, same = pool.map(rank, range(2))
    assert path == same and checkpoint.load(path).tensors["policy"]["w"][0, 0] == 0  # rank 0's
    for index in range(2):
        assert checkpoint.load_random(path, checkpoint.Ranks(index, 2))["x"] == index


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 2))


def steps(model, optimizer, first, last):
    for step in range(first, last):
        data = torch.randn(8, 5, generator=torch.Generator().manual_seed(step))
        model(data).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def adamw(model, **options):
    return torch.optim.AdamW(
        [{"params": model[0].parameters(), "lr": 1e-2}, {"params": model[2].parameters()}], lr=1e-3, **options
    )


@pytest.mark.parametrize("options", [{}, {"amsgrad": True}, {"betas": (0.8, 0.95), "weight_decay": 0.3}])
def test_the_next_steps_are_bit_equal(tmp_path, options):
    model = network(0)
    optimizer = adamw(model, **options)
    steps(model, optimizer, 0, 3)
    optimizer.param_groups[0]["lr"] = 5e-3  # as a scheduler would
    tensors, numbers = checkpoint.optimizer_tensors(optimizer, model.named_parameters())
    assert "exp_avg/0.weight" in tensors and "step/2.bias" in tensors
    policy = checkpoint.gather(model.state_dict().items())
    path = checkpoint.save(tmp_path, 3, {"policy": policy, "optimizer": tensors}, {"optimizer": numbers})

    fresh = network(1)
    again = adamw(fresh)
    loaded, state = checkpoint.load(path)
    checkpoint.restore(fresh.state_dict().items(), loaded["policy"])
    checkpoint.load_optimizer(again, fresh.named_parameters(), loaded["optimizer"], state["optimizer"])
    assert again.param_groups[0]["lr"] == 5e-3 and isinstance(again.param_groups[0]["betas"], tuple)
    steps(model, optimizer, 3, 6)
    steps(fresh, again, 3, 6)
    for mine, theirs in zip(model.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_loading_does_not_tie_the_optimizer_to_the_file(tmp_path):
    model = network(0)
    optimizer = adamw(model)
    steps(model, optimizer, 0, 1)
    tensors, numbers = checkpoint.optimizer_tensors(optimizer, model.named_parameters())
    path = checkpoint.save(tmp_path, 1, {"optimizer": tensors}, {"optimizer": numbers})
    loaded, state = checkpoint.load(path)
    checkpoint.load_optimizer(optimizer, model.named_parameters(), loaded["optimizer"], state["optimizer"])
    steps(model, optimizer, 1, 3)
    assert torch.equal(
        checkpoint.load(path).tensors["optimizer"]["exp_avg/0.weight"], loaded["optimizer"]["exp_avg/0.weight"]
    )


def test_a_checkpoint_of_other_trained_parts_is_refused():
    model = network(0)
    optimizer = adamw(model)
    steps(model, optimizer, 0, 1)
    tensors, state = checkpoint.optimizer_tensors(optimizer, model.named_parameters())
    fewer = torch.optim.AdamW([{"params": model[0].parameters()}, {"params": [model[2].weight]}])
    with pytest.raises(RunError, match=r"2\.bias"):
        checkpoint.load_optimizer(fewer, model.named_parameters(), tensors, state)
    with pytest.raises(RunError, match=r"only: \['?|none besides|ghost"):
        checkpoint.restore(model.state_dict().items(), {**model.state_dict(), "ghost": torch.zeros(1)})
    wrong = {**model.state_dict(), "0.weight": torch.zeros(2, 2)}
    with pytest.raises(RunError, match=r"0\.weight"):
        checkpoint.restore(model.state_dict().items(), wrong)


@pytest.fixture
def mesh():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_sharded_parameters_go_through_whole_tensors(mesh):
    plain, sharded = network(0), network(0)
    for module in (sharded[0], sharded[2]):
        for name, parameter in list(module.named_parameters()):
            setattr(module, name, nn.Parameter(distribute_tensor(parameter.detach(), mesh, [Shard(0)])))
    one, two = torch.optim.AdamW(plain.parameters()), torch.optim.AdamW(sharded.parameters())
    for step in range(2):
        for parameter, other in zip(plain.parameters(), sharded.parameters(), strict=True):
            parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step))
            other.grad = distribute_tensor(parameter.grad.clone(), mesh, [Shard(0)])
        one.step(), two.step()
    tensors, state = checkpoint.optimizer_tensors(two, sharded.named_parameters())
    expected, same = checkpoint.optimizer_tensors(one, plain.named_parameters())
    assert state == same and tensors.keys() == expected.keys()
    assert all(type(value) is torch.Tensor and torch.equal(value, expected[name]) for name, value in tensors.items())
    two.state.clear()
    checkpoint.load_optimizer(two, sharded.named_parameters(), tensors, state)
    held = two.state[sharded[0].weight]
    assert isinstance(held["exp_avg"], DTensor) and held["exp_avg"].placements == (Shard(0),)
    assert not isinstance(held["step"], DTensor)
    weights = checkpoint.gather(plain.named_parameters())
    with torch.no_grad():
        sharded[0].weight.zero_()
    checkpoint.restore(sharded.named_parameters(), weights)
    assert torch.equal(sharded[0].weight.full_tensor(), plain[0].weight)
    assert checkpoint.gather(sharded.named_parameters(), checkpoint.Ranks(1, 2)) == {}
