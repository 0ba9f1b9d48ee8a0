"""What `qoqmed fit --dry-run` shows: every part built, the first cases of each stage encoded, nothing trained."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Group as Stack
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from qoqmed.build import Parts, Stage
from qoqmed.errors import DataError

SAMPLE = 8  # cases of each stage that are encoded


@dataclass(frozen=True)
class StagePlan:
    """One stage: parameters that train, cases of an epoch, steps, and of the first cases the prompts' mean length."""

    name: str
    objective: str
    advantage: str
    trained: int
    cases: int
    prompts: int
    steps: int
    prompt_tokens: float


@dataclass(frozen=True)
class Plan:
    """parameters: of the policy. reference: whether a frozen copy is held. example: the first stage's first prompt."""

    parameters: int
    reference: bool
    rollouts: int
    stages: tuple[StagePlan, ...]
    example: str


def plan(parts: Parts) -> Plan:
    """Raises what training would raise for these cases (DataError, MediaError)."""
    example, stages = "", []
    for stage in parts.stages:
        drawn = stage.sampler.draw(min(SAMPLE, stage.prompts))
        chosen = [(stage.datasets[source], index) for source, index in drawn]
        admitted = parts.actor.admit(chosen, stage.needs)
        if admitted.refused and parts.actor.on_error == "stop":
            raise DataError([problem for error in admitted.refused for problem in error.problems])
        lengths = [len(prompt.token_ids) for prompt in admitted.prompts]
        if admitted.prompts and not example:
            example = str(parts.loaded.tokenizer.decode(admitted.prompts[0].token_ids))
        stages.append(_stage(parts, stage, sum(lengths) / max(len(lengths), 1)))
    total = sum(parameter.numel() for parameter in parts.module.policy.parameters())
    reference = any(stage.needs.reference for stage in parts.stages)
    return Plan(total, reference, parts.recipe.rollout.n, tuple(stages), example)


def _stage(parts: Parts, stage: Stage, prompt_tokens: float) -> StagePlan:
    parts.module.choose(stage.config.train)
    trained = sum(parameter.numel() for parameter in parts.module.trained().values())
    advantage = stage.config.advantage.name if stage.config.advantage else "-"
    name, objective = stage.config.name, stage.config.objective.name
    return StagePlan(
        name, objective, advantage, trained, stage.sampler.size(), stage.prompts, stage.steps, prompt_tokens
    )


def plan_table(made: Plan) -> RenderableType:
    """The plan for a terminal."""
    table = Table(title="dry run: nothing was trained or written")
    for name in ("stage", "objective", "advantage", "trained", "cases", "prompts/step", "steps", "prompt tokens"):
        table.add_column(name, justify="left" if name in ("stage", "objective", "advantage") else "right")
    for s in made.stages:
        numbers = (f"{s.trained:,}", f"{s.cases:,}", str(s.prompts), str(s.steps), f"{s.prompt_tokens:.0f}")
        table.add_row(s.name, s.objective, s.advantage, *numbers)
    kept = " and a frozen reference" if made.reference else ""
    head = f"policy of {made.parameters:,} parameters{kept}; {made.rollouts} rollouts a prompt"
    return Stack(table, Text(head), Text("\nthe first prompt:"), Text(made.example, style="dim"))
