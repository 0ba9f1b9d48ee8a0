"""Four processes, two to an engine: greedy answers to prompts of their own. Each tells whether they are transformers'.

PYTHONPATH=tests python -m torch.distributed.run --standalone --nproc_per_node=4 tests/vllm/two_teams.py
"""

from __future__ import annotations

import served
import torch.distributed as dist

from qoqmed.rollouts.vllm import VllmRollouts
from qoqmed.types import Sampling

OWN = ([0, 1], [2], [], [3, 4, 5])  # prompts of each process


def main() -> None:
    dist.init_process_group("gloo")
    loaded, rank = served.load(), dist.get_rank()
    engine = VllmRollouts(max_model_len=512, kv_cache_mb=64, tensor_parallel=2)
    engine.start(served.handle(loaded))
    prompts = [prompt for place, prompt in enumerate(served.prompts(loaded)) if place in OWN[rank]]
    out = engine.generate(prompts, Sampling(temperature=0.0, max_new_tokens=served.TOKENS), [0] * len(prompts))
    right = [rollout.token_ids for (rollout,) in out] == [served.transformers_greedy(loaded, one) for one in prompts]
    print(f"process {rank}: {len(out)} answers, {'those' if right else 'not those'} of transformers", flush=True)
    dist.barrier()


if __name__ == "__main__":
    main()
