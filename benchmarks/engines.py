"""Tokens per second of the rollout engines `torch` and `vllm` and of transformers' `generate`, in one run.

The same policy, prompts (pictures and ECGs of the quickstart, four responses each) and number of tokens. `generate`
gets every response as a row of its own, as it knows no shared prompt. Beside it: how long an engine takes to start and
to take new weights, and how far its log-probs are from the trainer's. On a GPU: `benchmarks/engines.py cuda`, which
nobody has run yet.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from record import ROOT, keep, show

SIZES: Mapping[str, Mapping[str, Any]] = {
    "1M": {"hidden": 128, "layers": 3},
    "25M": {"hidden": 512, "layers": 8, "heads": 8, "vision_hidden": 128, "vision_layers": 4},
}
PROMPTS, RESPONSES, TOKENS, REPEATS = 16, 4, 48, 3


def actor_of(size: Mapping[str, Any], engine: str, device: str) -> Any:
    """The quickstart's policy of that size, with an engine, on the device."""
    from qoqmed import config
    from qoqmed.build import build_actor

    options = ", ".join(f"{key}: {value}" for key, value in size.items())
    words = [f"model.options={{{options}}}", f"rollout={{name: {engine}}}", f"trainer.accelerator={device}"]
    recipe = config.load(ROOT / "recipes" / "quickstart.yaml", words)
    actor, loaded = build_actor(recipe)
    loaded.policy.to(device).eval()
    return actor


def admitted(actor: Any) -> Any:
    from qoqmed.datasets.synthetic import Synthetic

    data = Synthetic(size=PROMPTS, seed=5, balanced=True)
    return actor.admit([(data, index) for index in range(PROMPTS)])


def timed(work: Callable[[], int]) -> float:
    """Tokens per second: the median of some repeats after one of warm-up."""
    work()
    rates = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        tokens = work()
        rates.append(tokens / (time.perf_counter() - started))
    return statistics.median(rates)


def engine_row(name: str, size: Mapping[str, Any], device: str) -> dict[str, Any]:
    """An engine of ours."""
    import torch

    from qoqmed.packing import pack
    from qoqmed.types import Group, Sampling

    actor = actor_of(size, name, device)
    chosen, sampling = admitted(actor), Sampling(n=RESPONSES, max_new_tokens=TOKENS)
    seeds, made = list(range(PROMPTS)), []

    def sample() -> int:
        made[:] = actor.engine.generate(chosen.prompts, sampling, seeds)
        return sum(len(rollout.token_ids) for group in made for rollout in group)

    started = time.perf_counter()
    sample()
    first = time.perf_counter() - started
    rate = timed(sample)
    started = time.perf_counter()
    actor.engine.sync((key, value.detach()) for key, value in actor.handle.weights())
    sync = time.perf_counter() - started
    groups = [
        Group(case, prompt, tuple(own)) for case, prompt, own in zip(chosen.cases, chosen.prompts, made, strict=True)
    ]
    gaps = []
    with torch.no_grad():
        for item in pack(groups, 4096):
            found = actor.handle.policy(item).log_probs.cpu()
            given = [value for g, i in item.members for value in groups[g].rollouts[i].log_probs]
            gaps.append((found - torch.tensor(given)).abs())
    actor.close()
    gap = torch.cat(gaps)
    figures = {"tokens/s": rate, "first call s": first, "sync s": sync}
    return {**figures, "gap mean": gap.mean().item(), "gap max": gap.max().item()}


def generate_row(size: Mapping[str, Any], device: str) -> dict[str, Any]:
    """Transformers, its rows eight at a time."""
    import torch

    actor = actor_of(size, "torch", device)
    chosen = admitted(actor)
    model = actor.handle.policy.model
    model.set_attn_implementation("sdpa")
    processor = actor.prompter.processor
    messages = [
        [{"role": "user", "content": [*media(case), {"type": "text", "text": actor.prompter.task(case).prompt(case)}]}]
        for case in chosen.cases
    ]

    def sample() -> int:
        tokens = 0
        for conversation in messages:
            batch = processor.apply_chat_template([conversation] * RESPONSES, add_generation_prompt=True).to(device)
            out = model.generate(**batch, do_sample=True, max_new_tokens=TOKENS, eos_token_id=None)
            tokens += (out.shape[1] - batch["input_ids"].shape[1]) * RESPONSES
        return tokens

    with torch.no_grad():
        started = time.perf_counter()
        sample()
        first = time.perf_counter() - started
        rate = timed(sample)
    return {"tokens/s": rate, "first call s": first, "sync s": 0.0, "gap mean": 0.0, "gap max": 0.0}


def media(case: Any) -> list[dict[str, Any]]:
    return [{"type": medium.modality, medium.modality: medium.array} for medium in case.media]


def main(device: str = "cpu", sizes: Sequence[str] = tuple(SIZES)) -> None:
    rows: list[dict[str, Any]] = []
    for size in sizes:
        peer = generate_row(SIZES[size], device)
        for name, row in (
            ("transformers generate", peer),
            ("torch", engine_row("torch", SIZES[size], device)),
            ("vllm", engine_row("vllm", SIZES[size], device)),
        ):
            rows.append({"model": size, "engine": name, **row, "ratio": row["tokens/s"] / peer["tokens/s"]})
        show(f"{PROMPTS} prompts x {RESPONSES} responses x {TOKENS} tokens on {device}", rows)
    settings = {"prompts": PROMPTS, "responses": RESPONSES, "tokens": TOKENS, "device": device, "sizes": dict(SIZES)}
    print(f"kept in {keep('engines' if device == 'cpu' else f'engines_{device}', rows, settings)}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
