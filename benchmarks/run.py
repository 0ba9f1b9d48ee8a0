"""The benchmarks that run on a CPU, about an hour in all: `make bench`, or `benchmarks/run.py NAME ...`.

`engines` and `engine_learning` need vLLM. The suite of training methods has a command of its own: `table2/run.py`.
"""

from __future__ import annotations

import sys

import advantage_time
import data_scale
import engine_learning
import engines
import learnability
import media_loading
import memory_soak
import packed_update
import reward_time
import step_phases

ALL = {
    "packed_update": packed_update.main,
    "step_phases": step_phases.main,
    "advantage_time": advantage_time.main,
    "reward_time": reward_time.main,
    "engines": engines.main,
    "engine_learning": engine_learning.main,
    "data_scale": data_scale.main,
    "media_loading": media_loading.main,
    "memory_soak": memory_soak.main,
    "learnability": learnability.main,
}


def main(names: list[str]) -> None:
    unknown = [name for name in names if name not in ALL]
    if unknown:
        sys.exit(f"no benchmark {', '.join(unknown)}; there are {', '.join(ALL)}")
    for name in names or ALL:
        ALL[name]()


if __name__ == "__main__":
    main(sys.argv[1:])
