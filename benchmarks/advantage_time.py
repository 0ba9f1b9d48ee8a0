"""Time of the advantage step: DRPO against the number of questions, over steps, beside the others, and in a real step.

Rewards are like those of a run: 0.6 accuracy + 0.2 IoU + 0.2 format of nine domains as skewed as the synthetic data,
each question with a difficulty of its own. IoU makes nearly every reward vector one of a kind, which is the worst case
for k-means. The real step is one of the quickstart's DRPO stage with 512 questions.
"""

from __future__ import annotations

import json
import math
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from record import ROOT, keep, show

SIZES = (64, 128, 256, 512, 1024, 2048, 4096)
QUESTIONS, ROLLOUTS = 512, 8
TOKENS = (20, 200)  # of a response, for estimators of tokens
ESTIMATORS: dict[str, tuple[str, dict[str, Any]]] = {
    "grpo": ("grpo", {}),
    "dr_grpo": ("dr_grpo", {}),
    "rloo": ("rloo", {}),
    "remax": ("remax", {}),
    "reinforce_pp": ("reinforce_pp", {}),
    "gae": ("gae", {}),
    "drpo, domains only": ("drpo", {"cluster": False}),
    "drpo, at most 3 clusters": ("drpo", {"max_clusters": 3}),
    "drpo, at most 20 clusters": ("drpo", {"max_clusters": 20}),
    "drpo, sorted rewards": ("drpo", {"sort_rewards": True}),
    "drpo": ("drpo", {}),
}


def rewards(questions: int, seed: int) -> Any:
    """A table of everything that an estimator may ask for."""
    import torch

    from qoqmed.advantages.table import RewardTable
    from qoqmed.datasets.synthetic import SHARES

    draw = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Any:
        return torch.rand(*shape, generator=draw, dtype=torch.float64)

    chosen = torch.multinomial(torch.tensor(list(SHARES.values())), questions, replacement=True, generator=draw)
    skill = uniform(questions, 1)
    right = uniform(questions, ROLLOUTS) < skill
    overlap = skill * uniform(questions, ROLLOUTS)
    formed = uniform(questions, ROLLOUTS) < 0.95
    lengths = torch.randint(*TOKENS, (questions * ROLLOUTS,), generator=draw)
    n = int(lengths.sum())
    return RewardTable(
        questions=tuple(f"q{index}" for index in range(questions)),
        domains=tuple(list(SHARES)[index] for index in chosen.tolist()),
        question=torch.arange(questions).repeat_interleave(ROLLOUTS),
        reward=(0.6 * right + 0.2 * overlap + 0.2 * formed).flatten(),
        valid=torch.ones(questions * ROLLOUTS, dtype=torch.bool),
        kl=0.02 * uniform(questions * ROLLOUTS),
        baseline=0.6 * skill[:, 0],
        lengths=lengths,
        penalty=1e-4 * (uniform(n) - 0.5),
        values=uniform(n),
    )


def estimator(name: str, arguments: dict[str, Any]) -> Any:
    from qoqmed import registry
    from qoqmed.config.schema import Node

    return registry.make("advantages", Node(name, arguments))


def seconds(made: Any, table: Any) -> tuple[float, float]:
    """Of the clock, and of this process's own work: other work on the machine does not lengthen it."""
    started, worked = time.perf_counter(), time.process_time()
    made.estimate(table)
    return time.perf_counter() - started, time.process_time() - worked


def row(what: str, questions: int, taken: list[tuple[float, float]]) -> dict[str, Any]:
    """Medians of what was measured."""
    clock, work = ([one[index] for one in taken] for index in range(2))
    middle = {"median s": statistics.median(clock), "slowest s": max(clock), "median CPU s": statistics.median(work)}
    return {"what": what, "questions": questions, **middle, "step s": None, "% of the step": None}


def by_questions(repeats: int) -> list[dict[str, Any]]:
    made = estimator("drpo", {})
    seconds(made, rewards(64, seed=99))  # torch's own start
    return [
        row("drpo", questions, [seconds(made, rewards(questions, seed)) for seed in range(repeats)])
        for questions in SIZES
    ]


def by_estimator(repeats: int) -> list[dict[str, Any]]:
    tables = [rewards(QUESTIONS, seed) for seed in range(repeats)]
    return [
        row(what, QUESTIONS, [seconds(estimator(*of), table) for table in tables]) for what, of in ESTIMATORS.items()
    ]


def over_steps(steps: int) -> list[dict[str, Any]]:
    """One estimator through many steps: the first and the last ten; a window of past steps is full by then."""
    rows = []
    for what, arguments in (("drpo", {}), ("drpo, window of 4 steps", {"window": 4})):
        made = estimator("drpo", arguments)
        taken = [seconds(made, rewards(QUESTIONS, seed)) for seed in range(steps)]
        rows.append(row(f"{what}: steps 6 to 15", QUESTIONS, taken[5:15]))
        rows.append(row(f"{what}: steps {steps - 9} to {steps}", QUESTIONS, taken[-10:]))
    return rows


def in_a_step(longest: int) -> list[dict[str, Any]]:
    """One step of `qoqmed.fit`: the phase "advantage" (with the sequence KL of all rollouts) and the whole step.

    One thread does all of it, so that other work on the machine stretches both alike. Responses are cut short: at the
    recipe's own length the step is longer and the part smaller.
    """
    from qoqmed import fit

    with tempfile.TemporaryDirectory() as folder:
        overrides = [f"trainer.out={folder}/run", "trainer.threads=1", "data.test=[]", "traces=ids", "callbacks=[]"]
        overrides += ["stages.1.steps=1", f"stages.1.prompts={QUESTIONS}", f"rollout.max_new_tokens={longest}"]
        result = fit(ROOT / "recipes" / "quickstart.yaml", overrides, stage="drpo")
        (line, *_) = (Path(result.folder) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    found = json.loads(line)
    whole, taken = sum(value for name, value in found.items() if name.startswith("time/")), found["time/advantage"]
    times = {"median s": taken, "slowest s": taken, "median CPU s": None}
    what = f"drpo in the quickstart, untrained, responses of {longest} tokens"
    made = [seconds(estimator("drpo", {}), rewards(QUESTIONS, seed)) for seed in range(5)]
    noisy = row("drpo on rewards made here, beside that step", QUESTIONS, made)
    return [
        {"what": what, "questions": QUESTIONS, **times, "step s": whole, "% of the step": 100 * taken / whole},
        noisy | {"step s": whole, "% of the step": 100 * noisy["median s"] / whole},
    ]


def main(repeats: int = 7, steps: int = 50, longest: int = 16) -> None:
    sizes = by_questions(repeats)
    largest, middle = sizes[-1], next(one for one in sizes if one["questions"] == 256)
    growth = math.log(largest["median CPU s"] / middle["median CPU s"], largest["questions"] / middle["questions"])
    rows = [*sizes, *by_estimator(repeats), *over_steps(steps), *in_a_step(longest)]
    show("seconds of the advantage step, 8 rollouts a question, nine domains", rows)
    settings = {"repeats": repeats, "steps": steps, "rollouts": ROLLOUTS, "tokens": TOKENS, "longest response": longest}
    settings |= {"recipe": "recipes/quickstart.yaml", "exponent of questions in CPU s, 256 to 4096": growth}
    print(f"kept in {keep('advantage_time', rows, settings)}; time grows with questions to the power {growth:.2f}")


if __name__ == "__main__":
    main()
