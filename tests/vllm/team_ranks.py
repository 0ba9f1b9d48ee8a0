"""What each of two processes does that share an engine (`tensor_parallel: 2`); test_vllm_team.py reads what it tells.

PYTHONPATH=tests python -m torch.distributed.run --standalone --nproc_per_node=2 tests/vllm/team_ranks.py KIND TIED OUT
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import served
import tiny_policy as tiny
import torch.distributed as dist

from qoqmed.errors import UserError
from qoqmed.packing import Prompt
from qoqmed.policy.loading import Loaded
from qoqmed.rollouts.vllm import VllmRollouts
from qoqmed.rollouts.vllm_requests import log_probs
from qoqmed.types import Rollout, Sampling

GREEDY = Sampling(temperature=0.0, max_new_tokens=served.TOKENS)
DRAWN = Sampling(n=3, temperature=0.7, max_new_tokens=served.TOKENS)
OPTIONS = {"max_model_len": 512, "kv_cache_mb": 64, "tensor_parallel": 2, "probe_every": 1}
SPLITS: Mapping[str, tuple[list[int], list[int]]] = {  # prompts of either process
    "uneven": ([0, 1, 2, 3], [4, 5]),
    "another order": ([5], [4, 2, 0, 1, 3]),
    "all on the first": ([0, 1, 2, 3, 4, 5], []),
    "all on the second": ([], [3, 2, 1, 0, 5, 4]),
    "none": ([], []),
}


class Asked:
    """An engine with its prompts, of which this process asks its own."""

    def __init__(self, engine: VllmRollouts, prompts: list[Prompt]) -> None:
        self.engine, self.prompts = engine, prompts

    def __call__(self, split: str, sampling: Sampling) -> dict[str, list[list[Any]]]:
        """Case id -> (token ids, log-probs) of each rollout."""
        own = SPLITS[split][dist.get_rank()]
        seeds = [served.SEEDS[place] for place in own]
        out = self.engine.generate([self.prompts[place] for place in own], sampling, seeds)
        return {
            self.prompts[place].case_id: [told(one) for one in group] for place, group in zip(own, out, strict=True)
        }


def told(rollout: Rollout) -> list[Any]:
    return [list(rollout.token_ids), list(rollout.log_probs)]


def refused(work: Callable[[], object]) -> str:
    """What it is refused with."""
    try:
        work()
    except UserError as error:
        return str(error)
    return ""


def exact(loaded: Loaded, ask: Asked) -> dict[str, Any]:
    """Against transformers and the trainer."""
    policy, own = ask.engine.policy, [ask.prompts[place] for place in SPLITS["uneven"][dist.get_rank()]]
    greedy, drawn = (ask("uneven", sampling) for sampling in (GREEDY, DRAWN))
    furthest = 0.0
    for made, temperature in ((greedy, 1.0), (drawn, 0.7)):
        out = [[Rollout(p.case_id, 0, tuple(ids), "", tuple(values)) for ids, values in made[p.case_id]] for p in own]
        furthest = max(furthest, served.furthest(policy, own, out, temperature))
    expected = {prompt.case_id: list(served.transformers_greedy(loaded, prompt)) for prompt in own}
    return {"greedy": greedy, "drawn": drawn, "transformers": expected, "furthest": furthest}


def die(*arguments: Any) -> Any:
    time.sleep(3)  # the other process waits within vLLM by now
    raise RuntimeError("out of luck")


def main(backbone: str, tied: str, folder: str) -> None:
    dist.init_process_group("gloo")
    rank, out = dist.get_rank(), dict[str, Any]()
    odd = tiny.load()
    odd.policy.model.config.text_config.num_attention_heads = 3
    out["three heads"] = refused(lambda: VllmRollouts(tensor_parallel=2).start(served.handle(odd)))
    out["three a team"] = refused(lambda: VllmRollouts(tensor_parallel=3).start(served.handle(odd)))

    loaded = served.load(backbone, tied == "tied")
    engine = VllmRollouts(**OPTIONS)
    engine.start(served.handle(loaded))
    ask = Asked(engine, served.prompts(loaded))
    out["before"] = exact(loaded, ask)
    out["splits"] = {split: ask(split, DRAWN) for split in SPLITS}

    assert engine.engine is not None and engine.team is not None
    generate, seen = engine.engine.generate, list[Any]()
    engine.engine.generate = lambda *given: seen.extend(generate(*given)) or seen
    ask("uneven", DRAWN)
    engine.engine.generate = generate
    out["of all"] = [[list(child.token_ids), log_probs(child)] for one in seen for child in one.outputs]

    served.train(loaded, engine.policy, ask.prompts, 5)
    engine.sync(engine.policy.weights())
    out["after"] = exact(loaded, ask)

    long = Sampling(max_new_tokens=480)
    out["too long"] = refused(lambda: ask("uneven", long))
    out["and then"] = ask("uneven", GREEDY) == out["after"]["greedy"]
    other = SimpleNamespace(outputs=[SimpleNamespace(token_ids=[1, 2, rank])])
    out["unlike"] = refused(lambda: engine.team.check_same([other]))

    if rank == 1:
        engine.engine.generate = die
    out["dead"] = refused(lambda: ask("uneven", GREEDY))
    Path(folder, f"{rank}.json").write_text(json.dumps(out))
    dist.barrier()


if __name__ == "__main__":
    main(*sys.argv[1:])
