"""`qoqmed fit RECIPE` by two processes, the second of which fails at its fourth call of the engine.

python -m torch.distributed.run --standalone --nproc_per_node=2 engine_dies.py RECIPE
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from qoqmed import cli
from qoqmed.rollouts.vllm_engine import Engine

generate, calls = Engine.generate, list[int]()


def die(self: Engine, *arguments: Any) -> list[Any]:
    calls.append(1)
    if len(calls) == 4 and os.environ["RANK"] == "1":
        time.sleep(3)  # the other process waits within vLLM by now
        raise RuntimeError("the engine is dead")
    return generate(self, *arguments)


if __name__ == "__main__":
    Engine.generate = die  # type: ignore[method-assign]
    cli.main(["fit", sys.argv[1], "trainer.devices=2"])
