"""Does the quickstart learn? Its recipe on three seeds, each with train and test cases that no tuning has seen.

The table gives macro-F1 over the nine domains (50 test cases each) untrained, after the warm start and after DRPO,
greedy and sampled at temperature 1; wall seconds are of the whole run. About five minutes a seed on two idle cores.
"""

from __future__ import annotations

import tempfile
import time
from typing import Any

from record import ROOT, keep, show

SEEDS = (1, 2, 3)


def run(seed: int, folder: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """One seed: a row for greedy and one for sampling, and the figures per domain."""
    from qoqmed import fit

    overrides = [
        f"seed={seed}",
        f"trainer.out={folder}/seed-{seed}",
        f"data.train.0.seed={7000 + seed}",
        f"data.test.0.seed={8000 + seed}",
        f"stages.warm_start.data.train.0.seed={9000 + seed}",
        f"stages.warm_start.data.train.1.seed={9500 + seed}",
    ]
    started = time.perf_counter()
    result = fit(ROOT / "recipes" / "quickstart.yaml", overrides)
    seconds = time.perf_counter() - started
    tests = [evaluation for evaluation in result.evaluations if evaluation.split == "test"]
    rows, domains = [], {}
    for kind in ("greedy", "sampled"):
        results = [getattr(evaluation, kind) for evaluation in tests]
        start, warm, last = (values["overall"]["f1"] for values in results)
        row = {"seed": seed, "answers": kind, "untrained": start, "warm start": warm, "DRPO": last}
        rows.append({**row, "gain of DRPO": last - warm, "wall s": seconds})
        domains[kind] = {name: [values["domains"][name]["f1"] for values in results] for name in results[0]["domains"]}
    return rows, domains


def main() -> None:
    rows: list[dict[str, Any]] = []
    domains: dict[int, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in SEEDS:
            made, domains[seed] = run(seed, folder)
            rows += made
            show("macro-F1 of the quickstart, fresh test cases", rows)
    print(f"kept in {keep('learnability', rows, {'recipe': 'recipes/quickstart.yaml', 'domains': domains})}")


if __name__ == "__main__":
    main()
