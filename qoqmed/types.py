"""The nouns of qoqmed, one frozen dataclass each (no torch here: tensors live in `packing` and above).

Axes: P prompts, G rollouts per prompt, R = P*G rollouts, T tokens, D hidden, V vocabulary, L leads.
Boxes are normalised xyxy in [0, 1] of the medium that they lie on: backbones' own frames end at `qoqmed.boxes`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from qoqmed.packing import Prompt

SPATIAL = frozenset({"image", "volume", "video"})  # the media that a backbone's vision tower reads
MASK_SOURCE = "mask/source"  # attribute of a case: who drew its mask, where no person did
BOX_SOURCE = "boxes/source"  # the same of its boxes; boxes taken from such a mask get it


@dataclass(frozen=True)
class Medium:
    """One image, volume, video or time series of a case: a path under the data root, or an array already in memory.

    array: image [H, W, 3] uint8; volume or video [N, H, W, 3] uint8; ecg [L, T] float32 millivolts.
    options: how the file is to be read, by its row (axis, window, rate_hz, ..); they go before the recipe's.
    """

    modality: str
    path: str | None = None
    array: np.ndarray | None = None
    view: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Box:
    """A rectangle on one medium: x1 < x2, y1 < y2, normalised to [0, 1]; `medium` counts the case's media from 0."""

    x1: float
    y1: float
    x2: float
    y2: float
    label: str = ""
    medium: int = 0


@dataclass(frozen=True)
class Mask:
    """A segmentation of one medium: a path (PNG or NIfTI; nonzero is inside), or a bool array [H, W]."""

    path: str | None = None
    array: np.ndarray | None = None
    medium: int = 0


@dataclass(frozen=True)
class Target:
    """What is right for a case. None: not known (an empty tuple of labels would say "none applies").

    text: reference reasoning or report. value: a number in the task's unit. time_days, event: survival targets.
    """

    labels: tuple[str, ...] | None = None
    text: str | None = None
    boxes: tuple[Box, ...] | None = None
    mask: Mask | None = None
    value: float | None = None
    time_days: float | None = None
    event: bool | None = None


@dataclass(frozen=True)
class Case:
    """One clinical question. `attributes` are plugins' own, namespaced by the plugin ("synthetic/look")."""

    id: str
    domain: str
    dataset: str
    task: str
    text: str
    media: tuple[Medium, ...]
    label_space: tuple[str, ...]
    target: Target
    patient: str | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def mask_source(self) -> str:
        """Who drew the mask, as the name of a model; "" where a person did, or there is none."""
        return str(self.attributes.get(MASK_SOURCE, ""))

    @property
    def box_source(self) -> str:
        """The same of the boxes; those that are still to be taken from the mask are the mask's."""
        return self.mask_source if self.target.boxes is None else str(self.attributes.get(BOX_SOURCE, ""))


@dataclass(frozen=True)
class Rollout:
    """One response to a case. `token_ids` end with the stop token when finish_reason is "stop".

    log_probs: of the distribution that sampled each token (temperature, top-p, top-k, banned tokens), in nats;
    empty for a gold answer, whose finish_reason is "gold". seed: of its own random stream.
    """

    case_id: str
    index: int
    token_ids: tuple[int, ...]
    text: str
    log_probs: tuple[float, ...] = ()
    finish_reason: str = "stop"
    seed: int = 0


@dataclass(frozen=True)
class Flaw:
    """One problem met while a response was read: `kind` is a short fixed word, `detail` what was seen."""

    kind: str
    detail: str = ""


@dataclass(frozen=True)
class Answer:
    """The final answer of a response; None: the response gives none of that kind."""

    labels: tuple[str, ...] | None = None
    text: str | None = None
    value: float | None = None


@dataclass(frozen=True)
class Reading:
    """What was parsed from one response."""

    reasoning: str = ""
    boxes: tuple[Box, ...] = ()
    answer: Answer = Answer()
    flaws: tuple[Flaw, ...] = ()


class Status(Enum):
    """ok: `value` counts. not_applicable: left out of the weighted mean. invalid: the rollout is excluded."""

    OK = "ok"
    NOT_APPLICABLE = "not_applicable"
    INVALID = "invalid"


@dataclass(frozen=True)
class Verdict:
    """One reward's answer for one rollout. `value`: finite, in the reward's range, when status is OK; else None.

    traceback: of a reward that failed or took too long; it may quote the response. source: who drew what the response
    was compared with, where no person did (`Case.mask_source`): metrics count it apart.
    """

    value: float | None
    status: Status = Status.OK
    reason: str = ""
    traceback: str = ""
    source: str = ""

    @classmethod
    def not_applicable(cls, reason: str) -> Verdict:
        return cls(None, Status.NOT_APPLICABLE, reason)

    @classmethod
    def invalid(cls, reason: str, traceback: str = "") -> Verdict:
        return cls(None, Status.INVALID, reason, traceback)


@dataclass(frozen=True)
class Group:
    """A case, its encoded prompt and its rollouts: the unit of training. Per-rollout fields run parallel to `rollouts`.

    verdicts: by reward name. rewards: combined, None where invalid. difficulty: combined without the rewards that may
    be negative; empty where there are none such. trainable: False leaves a rollout out of the loss. baseline: reward of
    the greedy response, where one was asked for and could be scored.
    """

    case: Case
    prompt: Prompt
    rollouts: tuple[Rollout, ...]
    readings: tuple[Reading, ...] = ()
    verdicts: tuple[Mapping[str, Verdict], ...] = ()
    rewards: tuple[float | None, ...] = ()
    trainable: tuple[bool, ...] = ()
    difficulty: tuple[float | None, ...] = ()
    baseline: float | None = None

    @property
    def trained(self) -> tuple[bool, ...]:
        """`trainable`, where an objective left it empty: all."""
        return self.trainable or (True,) * len(self.rollouts)


@dataclass(frozen=True)
class Sampling:
    """How responses are drawn. temperature 0 is greedy; top_p 1 and top_k 0 leave the distribution whole."""

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 1024
    seed: int = 0


@dataclass(frozen=True)
class Prediction:
    """A line of the predictions format: what a model answered to a labelled case. mask_source: as of the case."""

    id: str
    domain: str
    dataset: str
    label_space: tuple[str, ...]
    target: tuple[str, ...]
    prediction: tuple[str, ...]
    mask_source: str = ""


@dataclass(frozen=True)
class Needs:
    """What a part needs of the system; the build adds them up and the module holds exactly that."""

    reference: bool = False  # log-probs of the frozen start policy
    kl: bool = False  # sequence KL of behaviour against reference, which `reference` asks for
    tokens: bool = False  # lengths and the KL of every token: advantages differ within a response
    values: bool = False  # a value head; it comes with `tokens`
    greedy: bool = False  # a greedy rollout per prompt, not trained on
    rollouts: bool = False  # an engine that samples
    group: int = 1  # rollouts per prompt, at least
    gold: bool = False  # gold answers: a case that has none is a bad row
    pair: bool = False  # two responses of the row's own, the better one first: as with gold

    def __or__(self, other: Needs) -> Needs:
        return Needs(
            self.reference or other.reference,
            self.kl or other.kl,
            self.tokens or other.tokens,
            self.values or other.values,
            self.greedy or other.greedy,
            self.rollouts or other.rollouts,
            max(self.group, other.group),
            self.gold or other.gold,
            self.pair or other.pair,
        )


@dataclass(frozen=True)
class DomainStep:
    """One domain in one step: questions, mean reward, temperature T_g, clusters k, share of |advantage|."""

    n: int
    mean_reward: float
    temperature: float | None = None
    clusters: int | None = None
    share: float | None = None


@dataclass(frozen=True)
class StepReport:
    """What one step of the loop tells loggers and callbacks. `step` counts from 1 within the stage's `steps`."""

    stage: str
    step: int
    steps: int
    global_step: int
    metrics: Mapping[str, float]
    domains: Mapping[str, DomainStep]


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one pass over a split. `when`: "start", "step N", or the stage that has just ended.

    greedy, sampled: the metrics' results, {"overall": .., "domains": .., "datasets": ..}, or None if not asked for.
    """

    split: str
    when: str
    global_step: int
    cases: int
    greedy: Mapping[str, Any] | None
    sampled: Mapping[str, Any] | None
    seconds: float
