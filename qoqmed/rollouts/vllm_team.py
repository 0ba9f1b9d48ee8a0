"""Neighbouring processes that share one engine (`tensor_parallel`): each holds a part of every layer, all are asked the
same, and each keeps the answers to its own prompts.

vLLM's "external launcher" forms the same teams: ranks 0 to T-1, T to 2T-1, and so on. Its schedulers run one each
process and tell each other nothing: they stay in step only as long as all get the same requests in the same order.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import torch.distributed as dist

from qoqmed.contracts import PolicyHandle
from qoqmed.errors import PluginError, Problem, UserError
from qoqmed.packing import Prompt
from qoqmed.rollouts.vllm_watch import Abandoned
from qoqmed.types import Sampling

WHERE = "rollout.tensor_parallel"
PATIENCE_S = 60.0  # for the others, beyond the time of a call

Item = TypeVar("Item")


@dataclass(frozen=True)
class Ask:
    """What one process wants sampled. seeds: one per prompt."""

    prompts: Sequence[Prompt]
    sampling: Sampling
    seeds: Sequence[int]


class Team:
    """The processes of this one's engine. To make one of several is a collective over all processes of the run."""

    def __init__(self, size: int, timeout_s: float) -> None:
        self.rank, self.key = 0, ""
        self.group: Any = None
        self.store: Any = None
        if size > 1:
            longest, world = timedelta(seconds=timeout_s + PATIENCE_S), cast(Any, dist.group.WORLD)
            self.group, _ = dist.new_subgroups(size, timeout=longest, backend="gloo")  # type: ignore[no-untyped-call]
            self.rank, self.key = dist.get_rank() % size, f"qoqmed/vllm/{dist.get_rank() // size}"
            self.store = world.get_group_store().clone()  # a connection of its own: the other one may be waiting

    def gather(self, item: Item) -> list[Item]:
        """`item` of each process, in order."""
        if self.group is None:
            return [item]
        out: list[Any] = [None] * dist.get_world_size(self.group)
        dist.all_gather_object(out, item, group=self.group)
        return out

    def broken(self) -> bool:
        """Whether one of the processes has failed: the others would wait for it within vLLM."""
        return self.store is not None and bool(self.store.check([self.key]))

    def together(self, work: Callable[[], Item]) -> Item:
        """What `work` gives here. What it raises on one process is raised on all."""
        made: list[Item] = []
        error: UserError | None = None
        try:
            made.append(work())
        except UserError as raised:  # kept as a value: the others have to hear of it
            error = raised
            if self.store is not None:
                self.store.set(self.key, b"failed")
        found = [one for one in self.gather(error) if one is not None]
        if found:
            mine = [] if error is None else [error]  # it knows its cause and its place
            raise min(mine + found, key=lambda one: isinstance(one, Abandoned))
        return made[0]

    def own(self, asked: Sequence[Ask], items: Sequence[Item]) -> Sequence[Item]:
        """Of one item for each prompt of all that was asked, those of this process."""
        start = sum(len(ask.prompts) for ask in asked[: self.rank])
        return items[start : start + len(asked[self.rank].prompts)]

    def check_same(self, outputs: Sequence[Any]) -> None:
        """Raises PluginError where vLLM has given the processes unlike tokens: they have fallen out of step."""
        ids = [[list(child.token_ids) for child in output.outputs] for output in outputs]
        digest = hashlib.blake2b(json.dumps(ids).encode(), digest_size=8).hexdigest()
        digests = self.gather(digest)
        if len(set(digests)) > 1:
            got = f"checksums of their token ids: {', '.join(digests)}"
            mend = "go on with --resume, or with rollout.tensor_parallel=1"
            raise PluginError(Problem("the processes of one engine have sampled unlike tokens", WHERE, got, mend=mend))


def check_team(size: int, policy: PolicyHandle) -> None:
    """Raises UserError where neither the processes nor the model's layers can be shared out to teams of `size`."""
    if size == 1:
        return
    world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if world % size:
        what = "the processes of the run do not make whole teams of this size"
        got = f"{size}, with {world} {'process' if world == 1 else 'processes'}"
        fitting = " or ".join(str(n) for n in range(1, world + 1) if world % n == 0)
        mend = f"{WHERE}={fitting}, or a multiple of {size} processes (trainer.devices, trainer.num_nodes)"
        raise UserError(Problem(what, WHERE, got, "a divisor of the number of processes", mend))
    with tempfile.TemporaryDirectory(prefix="qoqmed-vllm-") as name:
        policy.describe(Path(name))
        config = json.loads((Path(name) / "config.json").read_text(encoding="utf-8"))
    wrong = indivisible(size, config)
    if wrong:
        fitting = " or ".join(str(n) for n in range(1, size) if world % n == 0 and not indivisible(n, config))
        what = "the model's layers cannot be cut into as many equal parts"
        got = f"{size}, with {', '.join(f'{count} {name}' for name, count in wrong.items())}"
        raise UserError(Problem(what, WHERE, got, "a divisor of each of these numbers", f"{WHERE}={fitting}"))


def indivisible(size: int, config: Mapping[str, Any]) -> dict[str, int]:
    """What vLLM cuts into `size` equal parts and cannot, by name. Key-value heads may be fewer: each is then copied."""
    text, vision = config["text_config"], config["vision_config"]
    counts = {
        "attention heads": text["num_attention_heads"],
        "features within a layer (intermediate_size)": text["intermediate_size"],
        "attention heads of the vision tower": vision["num_heads"],
        "features within a layer of the vision tower": vision["intermediate_size"],
    }
    wrong = {name: int(count) for name, count in counts.items() if count % size}
    pairs = int(text.get("num_key_value_heads") or text["num_attention_heads"])
    return wrong | ({"key-value heads": pairs} if pairs % size and size % pairs else {})
