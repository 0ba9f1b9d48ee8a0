"""What a run must not go on with, or not in silence.

Invalid rewards, cut-off responses, gradients that are not finite, an engine whose log-probs are not the trainer's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from qoqmed.config.schema import RolloutConfig
from qoqmed.errors import PluginError, Problem, UserError
from qoqmed.parallel import gather
from qoqmed.tally import DIFFERENCE
from qoqmed.types import Group, Status

WINDOW = 10  # steps over which invalid rollouts are counted
FIRST, CUT = 3, 0.9  # in a stage's first steps, a larger share of cut-off responses is told


@dataclass(frozen=True)
class Invalid:
    """Of all ranks in one step. reasons: each once. rollouts: those whose reward an invalid verdict took.

    scored: those with a reward. total: all.
    """

    reasons: tuple[str, ...]
    rollouts: int
    scored: int
    total: int

    @property
    def warnings(self) -> list[str]:
        return [f"invalid rollouts: {reason}" for reason in self.reasons]


def lost(group: Group) -> list[int]:
    """Rollouts whose reward an invalid verdict took."""
    judged = enumerate(zip(group.verdicts, group.rewards, strict=True))
    return [
        index
        for index, (verdicts, reward) in judged
        if reward is None and any(verdict.status is Status.INVALID for verdict in verdicts.values())
    ]


def count_invalid(groups: Sequence[Group]) -> Invalid:
    """A collective. A rollout without a reward because none applies to its case is not invalid."""
    verdicts = [verdict for group in groups for row in group.verdicts for verdict in row.values()]
    reasons = tuple(verdict.reason for verdict in verdicts if verdict.status is Status.INVALID)
    rewards = [reward for group in groups for reward in group.rewards]
    scored = sum(reward is not None for reward in rewards)
    everyone = gather(Invalid(reasons, sum(len(lost(group)) for group in groups), scored, len(rewards)))
    told = sorted({reason for part in everyone for reason in part.reasons})
    numbers = zip(*((part.rollouts, part.scored, part.total) for part in everyone), strict=True)
    return Invalid(tuple(told), *(sum(column) for column in numbers))


def invalid_share(window: Sequence[tuple[int, int]]) -> float:
    """(invalid, all) of the last steps -> invalid ones as a share of the rollouts of `WINDOW` such steps.

    So one bad step of a young run does not stop it, and a reward that has broken down is told before `WINDOW` steps.
    """
    total = sum(count for _, count in window)
    return sum(lost for lost, _ in window) * len(window) / (total * WINDOW) if total else 0.0


def refuse_invalid(found: Invalid, window: Sequence[tuple[int, int]], limit: float) -> list[UserError]:
    """What ends the run: a step without one rollout to learn from, or too many invalid ones over the last steps."""
    mend = "mend the rewards, then go on with --resume"
    if found.rollouts and not found.scored:
        what = "no rollout of this step could be scored"
        return [PluginError([Problem(what, got=reason, mend=mend) for reason in found.reasons])]
    share = invalid_share(window)
    if share <= limit:
        return []
    what = f"too many rollouts could not be scored: {share:.1%} of {WINDOW} steps' rollouts, in {len(window)} steps"
    told, expected = "; ".join(found.reasons), f"at most {limit:.1%} (trainer.max_invalid)"
    return [PluginError(Problem(what, "rewards", told, expected, f"{mend}; or raise trainer.max_invalid"))]


def alarms(
    step: int,
    metrics: Mapping[str, float],
    rollout: RolloutConfig,
    drifting: bool = False,
    dtype: torch.dtype = torch.float32,
) -> list[str]:
    """What the user should see at once of a step. step: from 1 in its stage. drifting: `drifts` of the step before.

    dtype: of the weights that train.
    """
    out, skipped, longest = list[str](), metrics["updates_skipped"], rollout.max_new_tokens
    share = metrics.get("completions/clipped_ratio", 0.0)
    if skipped:
        out.append(f"{skipped:.0f} of the step's updates left out: the gradient was not finite")
    if not skipped and metrics.get("updates") == 0:
        what = "nothing was learned in this step: no response was left to train on"
        causes = "rows that were skipped, invalid rewards, equal_groups, mask_truncated, the margin of pairs"
        out.append(f"{what} ({causes})")
    if step <= FIRST and share > CUT:
        mend = "raise rollout.max_new_tokens, or let an earlier stage teach the policy to end its answers"
        out.append(f"{share:.0%} of the responses were cut off at {longest} tokens, before their answer: {mend}")
    if metrics.get("grad_norm") == 0 and "reward" not in metrics:
        what = "no case of this step reaches a part that trains"
        out.append(f"the gradient is 0: {what} (data.modalities, stages.N.train)")
    if step == 1 and dtype != torch.float32:
        mend = "model.dtype=float32 with trainer.precision=bf16 keeps them whole and computes in bfloat16"
        held = str(dtype).removeprefix("torch.")
        out.append(f"the weights that train are held in {held}: updates below 1/256 of a weight are lost. {mend}")
    if drifts(metrics, rollout) and not drifting:
        out.append(_drift(metrics, rollout))
    return out


def drifts(metrics: Mapping[str, float], rollout: RolloutConfig) -> bool:
    """Whether engine and trainer are further apart than the recipe allows; a difference that is no number is."""
    return not metrics.get(f"{DIFFERENCE}/mean", 0.0) <= rollout.max_logp_difference


def _drift(metrics: Mapping[str, float], rollout: RolloutConfig) -> str:
    cut = rollout.top_p < 1.0 or rollout.top_k > 0
    causes = (
        *(["the engine's distribution is cut (rollout.top_p, rollout.top_k)"] if cut else []),
        "the engine has stale weights",
        "its temperature or banned tokens are not the trainer's",
        "it computes in a lower precision (model.dtype, trainer.precision, the engine's own)",
    )
    return (
        f"the log-probs of the engine {rollout.name!r} and of the trainer differ by "
        f"{metrics[f'{DIFFERENCE}/mean']:.3g} on average, at most {metrics[f'{DIFFERENCE}/max']:.3g}; more than "
        f"{rollout.max_logp_difference:g} (rollout.max_logp_difference) is not told again until it has been less. "
        f"Likely causes: {'; '.join(causes)}"
    )


def refuse_not_finite(steps: int, limit: int, stage: str) -> list[UserError]:
    """What ends the run: `limit` steps in a row in which an update was left out."""
    if steps < limit:
        return []
    what = f"the loss or its gradient was not finite in {steps} steps in a row"
    mend = (
        f"see loss, kl and grad_norm in metrics.csv; start again with a lower optimizer.lr, a tighter "
        f"trainer.max_grad_norm, or trainer.precision=fp32 (fit --stage {stage} --from RUN keeps what was learned)"
    )
    expected = f"fewer than {limit} (trainer.max_skipped); the weights are those of before"
    return [UserError(Problem(what, f"stage {stage}", expected=expected, mend=mend))]
