"""How much of everything: a form of the suite fits a machine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Form:
    """budget: training samples a method, each a response that was generated (greedy ones too) or a gold one.
    untested: nobody has run it yet."""

    name: str
    budget: int
    overrides: tuple[str, ...] = ()
    untested: bool = False


FORMS = (
    Form("small", 4096),
    Form(
        "full",
        262_144,
        (
            "model.options={hidden: 384, layers: 8, heads: 8, vision_hidden: 192, vision_layers: 4, vocabulary: 768}",
            "trainer.accelerator=cuda",
            "trainer.precision=bf16",
            "trainer.tokens_per_pack=65536",
            "trainer.checkpoint_every=25",
            "data.workers=8",
            "data.train.0.size=100000",
            "data.test.0.size=1800",
            "rollout.prompts=128",
            "evaluation.batch=450",
            "stages.warm_start.data.train.0.size=100000",
            "stages.warm_start.optimizer.lr=1e-3",
            "stages.warm_start.steps=600",
            "stages.training.objective.minibatch=64",
            "stages.training.optimizer.lr=5e-5",
            "stages.training.optimizer.warmup=10",
        ),
        untested=True,
    ),
)


def of_seed(seed: int) -> tuple[str, ...]:
    """The recipe's seed, and data that no other seed of the suite shares."""
    return (
        f"seed={seed}",
        f"data.train.0.seed={41000 + seed}",
        f"data.test.0.seed={42000 + seed}",
        f"stages.warm_start.data.train.0.seed={43000 + seed}",
    )
