"""What the user is told once, as a run or a stage begins or ends."""

from __future__ import annotations

from pathlib import Path

from qoqmed.build import Stage
from qoqmed.config.schema import Recipe

KEPT = {
    "text": "every response, what was read in it, and tracebacks that may quote it",
    "full": "every response, what was read in it, its question and prompt, and where its media lie",
}
DUMPED = {"text": "the tokens", "full": "the tokens and media"}


def opening(recipe: Recipe, folder: Path) -> list[str]:
    """Of a run in `folder`: that it will hold more than names, hashes and numbers."""
    if recipe.traces not in KEPT:
        return []
    return [
        f"traces={recipe.traces} writes {KEPT[recipe.traces]} into {folder / 'traces'}, and {DUMPED[recipe.traces]} of "
        "updates that are left out into dumps/ beside it. They may hold what a patient's record says: guard the folder "
        "as the data are guarded, or set traces=ids"
    ]


def beginning(stage: Stage) -> list[str]:
    """Of a stage: that it will have fewer steps than its keys say, or more cases of a data set than its cap."""
    name, asked = stage.config.name, f"{stage.config.epochs:g} epochs"
    more = [
        f"stage {name}: an epoch has {drawn} cases of training data set {place}, whose cap is {cap}: domains' parts "
        "(balanced, temperature, domain_weights) multiply what it brings"
        for place, (drawn, cap) in stage.sampler.beyond_caps.items()
    ]
    if not stage.cut_short:
        return more
    return [
        f"stage {name}: every data set has had its own epochs after {stage.steps} steps, before the stage's {asked}",
        *more,
    ]


def ending(stage: Stage, step: int, stopped: bool) -> list[str]:
    """Of a stage that took `step` steps: why it had no more. stopped: a callback had asked for it."""
    if stopped or step >= stage.steps or not stage.sampler.exhausted:
        return []
    what = f"stage {stage.config.name} ends after {step} of {stage.steps} steps: every data set has had its own epochs"
    return [f"{what}; equal_groups=resample took the cases of later steps"]
