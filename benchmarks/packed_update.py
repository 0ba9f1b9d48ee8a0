"""Packed against naive update: CPU seconds and peak memory of one forward and backward over a step's groups.

naive: every response a padded row of its own with its prompt and its pixels, full logits, transformers' own SDPA
forward. packed: qoqmed's packs and chunked head. Each measurement is a process of its own, variants interleaved,
one thread; memory is the peak resident set over that after a warm-up on a small batch.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

from record import keep, show

SIZES: dict[str, dict[str, int]] = {
    "tiny 1M, vocabulary 704": {"hidden": 128, "layers": 3, "heads": 4, "vocabulary": 704},
    "small 23M, vocabulary 32,768": {"hidden": 256, "layers": 4, "heads": 4, "vocabulary": 32_768},
}
CASES = {"prompt 100": (60, 2), "prompt 400": (180, 8)}  # text tokens, images of 25 tokens
GROUP = 8


def measure(variant: str, size: str, case: str) -> dict[str, float]:
    """Run in a process of its own."""
    import torch

    torch.set_num_threads(1)
    model, policy = build(SIZES[size])
    update(variant, model, policy, groups(policy, 20, 1, 2, lengths=(4, 6)))
    model.zero_grad(set_to_none=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    batch = groups(policy, *CASES[case], GROUP, lengths=(40, 200))
    started = time.process_time()
    norm = update(variant, model, policy, batch)
    seconds = time.process_time() - started
    return {"cpu_s": seconds, "mb": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, "norm": norm}


def build(options: dict[str, int]) -> tuple[Any, Any]:
    import torch

    from qoqmed.policy import tiny
    from qoqmed.policy.policy import ClinicalPolicy
    from qoqmed.policy.qwen2_5_vl import ClinicalQwen2_5_VL

    tokenizer = tiny.tokenizer(["Which finding is on this chest X-ray?"] * 9, tiny.TinySize(vocabulary=400))
    model = tiny.model(
        ClinicalQwen2_5_VL, tokenizer, tiny.TinySize(options["hidden"], options["layers"], options["heads"]), seed=0
    )
    torch.manual_seed(0)
    model.resize_token_embeddings(options["vocabulary"], mean_resizing=False)
    return model, ClinicalPolicy(model, torch.zeros(options["vocabulary"], dtype=torch.bool))


def groups(policy: Any, text: int, images: int, n: int, lengths: tuple[int, int]) -> list[Any]:
    """Four groups of random tokens, images of 140 x 140 pixels."""
    import torch

    from qoqmed.packing import Prompt
    from qoqmed.types import Case, Group, Rollout, Target

    draw = torch.Generator().manual_seed(1)
    config = policy.model.config
    image, start, end = config.image_token_id, config.vision_start_token_id, config.vision_end_token_id
    out = []
    for k in range(4):
        picture = torch.tensor([start, *[image] * 25, end])
        ids = torch.cat([torch.randint(20, 250, (text,), generator=draw), *[picture] * images])
        is_image, grids = ids == image, torch.tensor([[1, 10, 10]] * images)
        positions = policy.backbone.positions(ids, is_image, grids)
        pixels = torch.randn(100 * images, 1176, generator=draw)
        prompt = Prompt(str(k), ids, positions, int(positions.max()) + 1, pixels, grids, is_image.nonzero()[:, 0])
        sizes = torch.randint(*lengths, (n,), generator=draw).tolist()
        rollouts = [
            Rollout(str(k), i, tuple(torch.randint(20, 250, (size,), generator=draw).tolist()), "")
            for i, size in enumerate(sizes)
        ]
        out.append(Group(Case(str(k), "", "", "", "", (), (), Target()), prompt, tuple(rollouts)))
    return out


def update(variant: str, model: Any, policy: Any, batch: list[Any]) -> float:
    """Forward, a policy-gradient loss with advantages +-1, backward; returns the gradient's norm."""
    import torch

    total = sum(len(rollout.token_ids) for group in batch for rollout in group.rollouts)
    if variant == "packed":
        from qoqmed.packing import pack

        for item in pack(batch, 16_384):
            signs = torch.tensor([1.0 - 2 * (i % 2) for _, i in item.members])[item.response]
            (-(policy(item).log_probs * signs).sum() / total).backward()
    else:
        for group in batch:
            (naive_loss(model, group) / total).backward()
    return float(torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]))


def naive_loss(model: Any, group: Any) -> Any:
    """One padded row a response; pixels repeated; logits of every response position."""
    import torch
    import torch.nn.functional as F

    n, longest = len(group.rollouts), max(len(rollout.token_ids) for rollout in group.rollouts)
    responses = torch.tensor([list(r.token_ids) + [0] * (longest - len(r.token_ids)) for r in group.rollouts])
    real = torch.tensor([[1] * len(r.token_ids) + [0] * (longest - len(r.token_ids)) for r in group.rollouts])
    prompt = group.prompt
    ids = torch.cat([prompt.token_ids.expand(n, -1), responses], 1)
    kinds = (ids == model.config.image_token_id).int()
    logits = model(
        input_ids=ids,
        attention_mask=torch.cat([torch.ones(n, len(prompt.token_ids), dtype=torch.long), real], 1),
        mm_token_type_ids=kinds,
        pixel_values=prompt.pixel_values.repeat(n, 1),
        image_grid_thw=prompt.grids.repeat(n, 1),
        logits_to_keep=longest + 1,
        use_cache=False,
    ).logits[:, :-1]
    log_probs = F.log_softmax(logits.float(), -1).gather(-1, responses[..., None])[..., 0]
    signs = torch.tensor([1.0 - 2 * (i % 2) for i in range(n)])[:, None]
    return -(log_probs * signs * real).sum()


def main(repeats: int = 3) -> None:
    rows: list[dict[str, Any]] = []
    for size in SIZES:
        for case in CASES:
            found: dict[str, list[dict[str, float]]] = {"packed": [], "naive": []}
            for _ in range(repeats):
                for variant, results in found.items():
                    command = [sys.executable, __file__, variant, size, case]
                    results.append(
                        json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
                    )
            middle = {v: {k: statistics.median(r[k] for r in rs) for k in rs[0]} for v, rs in found.items()}
            packed, naive = middle["packed"], middle["naive"]
            rows.append(
                {
                    "model": size,
                    "case": f"{case}, G = {GROUP}",
                    "naive CPU s": naive["cpu_s"],
                    "packed CPU s": packed["cpu_s"],
                    "times faster": naive["cpu_s"] / packed["cpu_s"],
                    "naive MB": naive["mb"],
                    "packed MB": packed["mb"],
                    "times less": naive["mb"] / packed["mb"],
                    "gradient norms differ by": abs(naive["norm"] / packed["norm"] - 1),
                }
            )
    show("one update over 4 groups, responses of 40-200 tokens (medians, one thread)", rows)
    print(f"kept in {keep('packed_update', rows, {'repeats': repeats, 'group': GROUP})}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(*sys.argv[1:4])))
    else:
        main()
