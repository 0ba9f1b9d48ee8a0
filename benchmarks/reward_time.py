"""Time of reading and judging 512 x 8 responses of 1,000 tokens, beside a real training step.

The responses are made here: 4,000 characters of reasoning (4 a token), three boxes, an answer; masks of 512 x 512. The
step is one of the quickstart's DRPO stage (tiny policy, untrained) with responses of up to 1,000 tokens; its seconds
are taken times the responses and tokens that it has fewer. A larger policy makes the step longer, not the rewards.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from record import ROOT, keep, show

CASES, ROLLOUTS, TOKENS = 512, 8, 1_000
CHARACTERS = 4  # a token
MASK = 512  # pixels a side
REWARDS: dict[str, dict[str, Any]] = {
    "accuracy": {},
    "iou": {},
    "format": {},
    "visual_coherence": {},
    "label_accuracy": {},
    "hungarian_boxes": {},
    "tag_count": {},
    "soft_overlong": {"max_tokens": TOKENS},
    "length_window": {"shortest": 10, "longest": TOKENS},
    "exact_match": {},
    "rouge": {"part": "reasoning"},
}
PAPER = {"accuracy": 0.6, "iou": 0.2, "format": 0.2}
WORDS = "the picture shows a dark spot in left upper lobe with sharp edge and no sign of fluid or air beside it"


def cases() -> list[Any]:
    """Nine domains, as many of each; their masks as large as real ones."""
    import numpy as np

    from qoqmed.datasets.synthetic import Synthetic
    from qoqmed.types import Mask

    made = []
    for case in Synthetic(CASES, seed=5, balanced=True):
        mask = case.target.mask
        if mask is not None and mask.array is not None:
            rows, columns = (np.arange(MASK) * side // MASK for side in mask.array.shape)
            case = replace(case, target=replace(case.target, mask=Mask(array=mask.array[rows][:, columns])))
        made.append(case)
    return made


def response(case: Any, draw: random.Random) -> str:
    from qoqmed.tasks import form
    from qoqmed.types import Box

    words = draw.choices([*WORDS.split(" "), *case.label_space], k=TOKENS * CHARACTERS // 5)
    label = draw.choice(case.label_space)
    parts = [f"<think>{' '.join(words)[: TOKENS * CHARACTERS]}</think>"]
    if form.pictures(case):
        corners = [(draw.random() * 0.7, draw.random() * 0.7) for _ in range(3)]
        parts.append(form.write_boxes([Box(x, y, x + 0.2, y + 0.3, label) for x, y in corners], case, frame(case)))
    return "\n".join([*parts, rf"\boxed{{{label}}}"])


def frame(case: Any) -> Any:
    from qoqmed.reward_trial import frame_of

    return frame_of(case)


def timed(work: Callable[[], Any], repeats: int) -> tuple[float, float, Any]:
    """The least seconds of the clock and of this process, and what came of it."""
    clock, own, out = float("inf"), float("inf"), None
    for _ in range(repeats):
        started, worked = time.perf_counter(), time.process_time()
        out = work()
        clock, own = min(clock, time.perf_counter() - started), min(own, time.process_time() - worked)
    return clock, own, out


def measured(repeats: int) -> dict[str, tuple[float, float]]:
    """(seconds of the clock, of the CPU) by what was done, for all responses."""
    from qoqmed.build import make_reward
    from qoqmed.config.schema import RewardConfig
    from qoqmed.rewards.combine import combine, judge
    from qoqmed.tasks.diagnosis import Diagnosis
    from qoqmed.types import Rollout

    draw, task = random.Random(0), Diagnosis()
    pairs = [(case, response(case, draw)) for case in cases() for _ in range(ROLLOUTS)]
    asked = [case for case, _ in pairs]
    rollouts = [Rollout(case.id, 0, (0,) * TOKENS, text) for case, text in pairs]
    out: dict[str, tuple[float, float]] = {}

    def note(what: str, work: Callable[[], Any], times: int = repeats) -> Any:
        clock, own, found = timed(work, times)
        out[what] = (clock, own)
        return found

    readings = note("reading", lambda: [task.read(text, case, frame(case)) for case, text in pairs])
    made = {name: make_reward(name, RewardConfig(name, arguments=given)) for name, given in REWARDS.items()}
    columns = {}
    for name, reward in made.items():
        columns[name] = note(name, lambda reward=reward: judge({"r": reward}, asked, rollouts, readings))
        assert any(one["r"].value is not None for one in columns[name]) or name in ("visual_coherence", "exact_match")
    rows = [{name: columns[name][place]["r"] for name in PAPER} for place in range(len(pairs))]
    note("combining", lambda: [combine(row, PAPER) for row in rows])
    pooled = make_reward("accuracy", RewardConfig("accuracy", workers=1, timeout_s=60.0))
    judge({"r": pooled}, asked[:1], rollouts[:1], readings[:1])  # starts the worker
    note("accuracy in a worker", lambda: judge({"r": pooled}, asked, rollouts, readings), 1)
    pooled.close()
    return out


def step(prompts: int) -> dict[str, float]:
    """Seconds of one step for as many responses of as many tokens as the rewards were given."""
    from qoqmed import fit

    with tempfile.TemporaryDirectory() as folder:
        overrides = [f"trainer.out={folder}/run", "trainer.threads=1", "data.test=[]", "traces=ids", "callbacks=[]"]
        overrides += ["evaluation.limit=1", "stages.1.steps=1", f"stages.1.prompts={prompts}"]
        overrides += [f"rollout.max_new_tokens={TOKENS}", f"rollout.n={ROLLOUTS}", "stages.1.objective.minibatch=0"]
        result = fit(ROOT / "recipes" / "quickstart.yaml", overrides, stage="drpo")
        (line, *_) = (Path(result.folder) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    found = json.loads(line)
    phases = {name: value for name, value in found.items() if name.startswith("time/") and name != "time/reward"}
    length = found["completions/mean_length"]
    seconds = sum(phases.values())
    scale = CASES / prompts * TOKENS / length
    return {"prompts": prompts, "mean length": length, "s": seconds, "reward s": found["time/reward"], "scale": scale}


def main(repeats: int = 3, prompts: int = 4) -> None:
    import torch

    torch.set_num_threads(1)
    taken = measured(repeats)
    made = step(prompts)
    whole = made["s"] * made["scale"]
    together = ("reading", *PAPER, "combining")
    clock, own = (sum(taken[what][kind] for what in together) for kind in range(2))
    taken = {**taken, "QoQ-Med's three, read and combined": (clock, own)}
    taken["all that are here, read and combined"] = tuple(
        sum(taken[what][kind] for what in ("reading", "combining", *REWARDS)) for kind in range(2)
    )
    rows = [
        {"what": what, "s": s, "CPU s": cpu, "step s": whole, "% of the step": 100 * s / whole}
        for what, (s, cpu) in taken.items()
    ]
    show(f"reading and judging {CASES} x {ROLLOUTS} responses of {TOKENS} tokens, one thread", rows)
    settings = {"cases": CASES, "rollouts": ROLLOUTS, "tokens": TOKENS, "characters": TOKENS * CHARACTERS}
    settings |= {"mask": MASK, "repeats": repeats, "threads": 1, "step": made, "recipe": "recipes/quickstart.yaml"}
    print(f"kept in {keep('reward_time', rows, settings)}")


if __name__ == "__main__":
    main()
