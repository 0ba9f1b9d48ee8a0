"""Does DRPO learn the same on vLLM as on the engine `torch`? Three seeds, each from one warm start, half the steps.

The quickstart's warm start once a seed, then its DRPO stage from there with either engine. The figures are macro-F1 on
50 fresh test cases of each domain, and the mean reward of the last ten steps.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from record import ROOT, keep, show

SEEDS, STEPS = (1, 2, 3), 30
RECIPE = ROOT / "recipes" / "quickstart.yaml"


def fresh(seed: int) -> list[str]:
    """As in `learnability`: cases that no tuning has seen."""
    return [
        f"seed={seed}",
        f"data.train.0.seed={7000 + seed}",
        f"data.test.0.seed={8000 + seed}",
        f"stages.warm_start.data.train.0.seed={9000 + seed}",
        f"stages.warm_start.data.train.1.seed={9500 + seed}",
    ]


def reward_at_the_end(folder: Path) -> float:
    rows = map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    values = [row["reward"] for row in rows if "reward" in row]
    return statistics.mean(values[-10:])


def main() -> None:
    from qoqmed import fit

    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        for seed in SEEDS:
            start = fit(RECIPE, [*fresh(seed), f"trainer.out={place}/warm-{seed}"], stage="warm_start").folder
            for engine in ("torch", "vllm"):
                words = [f"rollout.name={engine}", f"trainer.out={place}/{engine}-{seed}", f"stages.drpo.steps={STEPS}"]
                result = fit(RECIPE, [*fresh(seed), *words], stage="drpo", from_run=str(start))
                tests = [one for one in result.evaluations if one.split == "test"]
                before, after = (one.greedy["overall"]["f1"] for one in (tests[0], tests[-1]))
                figures = {"warm start": before, "DRPO": after, "reward": reward_at_the_end(result.folder)}
                rows.append({"seed": seed, "engine": engine, **figures})
                show(f"DRPO of {STEPS} steps from one warm start a seed", rows)
    print(f"kept in {keep('engine_learning', rows, {'steps': STEPS, 'recipe': 'recipes/quickstart.yaml'})}")


if __name__ == "__main__":
    main()
