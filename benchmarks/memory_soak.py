"""Resident memory over 2,000 steps of loading: sampler, loader threads, cache, prompts, and now and then rollouts.

Files of every kind are drawn in a mixture whose decoded media do not fit the cache, so that it turns over all the time.
A row is the median over 50 steps, each sampled; the slope is that of a least-squares line over the second half. A
steeper one than `BOUND_MB` fails. The allocator's own high-water mark creeps by some megabytes, step-wise and ever more
slowly, as large arrays come and go in several threads; the number of live Python objects beside it shows no leak.
"""

from __future__ import annotations

import gc
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from clinical_files import files
from media_loading import Cases, actor
from record import keep, show

BOUND_MB = 20.0  # per 1,000 steps: a leak of one picture of 512 x 512 in 38 steps is more
STEPS, EVERY, PROMPTS, WORKERS, CACHE_MB, ROLLOUTS = 2000, 50, 4, 2, 32, 100


def soak(made: Any, dataset: Any, steps: int) -> list[dict[str, Any]]:
    """A row every `EVERY` steps."""
    from copy import copy

    from qoqmed.actor import sort_out
    from qoqmed.datasets.sampler import Sampler
    from qoqmed.feeding import Feeder, drawn, resident_mb
    from qoqmed.types import Sampling

    sampler, rows, refused, sampled = Sampler([dataset]), [], Counter[str](), []
    stage: Any = SimpleNamespace(datasets=(dataset,), prompts=PROMPTS)
    started = time.perf_counter()
    with Feeder(made.admit_one, WORKERS, made.media) as feeder:
        for step in range(1, steps + 1):
            admitted = sort_out(feeder.take([place for _, place in drawn(stage, sampler)]))
            feeder.ahead([place for _, place in drawn(stage, copy(sampler))])
            refused.update(type(error).__name__ for error in admitted.refused)
            if step % ROLLOUTS == 0:
                actor = made.at(admitted, Sampling(2, max_new_tokens=16), step)
                actor.generate(admitted.cases, admitted.prompts)
            sampled.append(resident_mb())
            if step % EVERY == 0:
                counts = made.media.counts
                rows.append(
                    {
                        "step": step,
                        "rss MB": statistics.median(sampled[-EVERY:]),
                        "cache MB": counts.held_bytes / 2**20,
                        "cache hits": feeder.figures()["data/cache_hits"],
                        "objects": len(gc.get_objects()),
                        "threads": threading.active_count(),
                        "s": time.perf_counter() - started,
                    }
                )
    if refused:
        sys.exit(f"media were refused: {dict(refused)}")
    return rows


def main(steps: int = STEPS) -> None:
    import torch

    from qoqmed.media.cache import MediaCache
    from qoqmed.types import Medium

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root, found, source = files(Path(folder))
        media = MediaCache(CACHE_MB * 2**20)
        made = actor(media=media, root=root, max_pixels=65_536, frames=4)
        dataset = Cases([Medium(modality, path) for paths in found.values() for modality, path in paths])
        rows = soak(made, dataset, steps)
    late = rows[len(rows) // 2 :]
    line = np.polyfit([row["step"] for row in late], [row["rss MB"] for row in late], 1)
    slope = 1000 * float(line[0])
    show(f"resident memory while loading (files: {source})", rows[:: max(1, len(rows) // 10)] + rows[-1:])
    settings = {
        "steps": steps, "cases a step": PROMPTS, "workers": WORKERS, "cache MB": CACHE_MB, "files": source,
        "files of a kind": {kind: len(paths) for kind, paths in found.items()}, "rollouts every": ROLLOUTS,
        "MB per 1,000 steps, second half": slope, "bound": BOUND_MB,
    }  # fmt: skip
    print(f"kept in {keep('memory_soak', rows, settings)}")
    if slope > BOUND_MB:
        sys.exit(f"memory grows by {slope:.1f} MB in 1,000 steps; at most {BOUND_MB} are allowed")
    print(f"{slope:+.2f} MB in 1,000 steps of the second half (at most {BOUND_MB})")


if __name__ == "__main__":
    main()
