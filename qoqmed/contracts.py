"""Every plugin contract on one page. Plugins inherit nothing from qoqmed: they match these Protocols.

A recipe node is `name` plus flat keyword arguments, bound to the constructor's signature before any work starts.
Entry-point groups are the keys of `GROUPS`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from qoqmed.types import Case, Group, Needs, Prediction, Reading, Rollout, Sampling, Verdict

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    import numpy as np
    import torch

    from qoqmed.advantages.table import Advantages, RewardTable
    from qoqmed.geometry import Geometry
    from qoqmed.losses import Loss, TokenTable
    from qoqmed.packing import Prompt
    from qoqmed.policy.attention import Segments
    from qoqmed.policy.pictures import ImageFeatures

GROUPS: Mapping[str, str] = {
    "backbones": "a vision-language model class, its positions, packs, boxes and processor",
    "encoders": "a torch module for one more modality (ECG, ...)",
    "tasks": "prompt template, rendering of the target, reader of a response",
    "domains": "a clinical domain: modalities, data sets with label spaces, phrasings",
    "datasets": "a map-style source of cases",
    "rewards": "scores of responses in a declared range",
    "advantages": "an estimator from rewards to advantages",
    "objectives": "what a stage collects and minimises",
    "rollouts": "an engine that samples responses",
    "metrics": "a torchmetrics metric over predictions",
    "callbacks": "hooks into the loop (lightning Callback)",
    "loggers": "where scalars go (lightning Logger)",
}


class BoxFrame(Protocol):
    """The numbers that a backbone reads and writes for boxes on one case's media (see `qoqmed.boxes`)."""

    def write(self, box: Any) -> list[int]:
        """A normalised `Box` -> four numbers in the backbone's frame."""

    def read(self, numbers: Sequence[float], medium: int = 0) -> tuple[float, float, float, float]:
        """Four numbers of a response -> normalised xyxy clipped to [0, 1]. Raises ValueError where they are no box."""


class Task(Protocol):
    """How a case becomes a question, its target a response, and a response a reading."""

    name: str

    def prompt(self, case: Case) -> str:
        """The text after the media. States the modality, the allowable labels and the form of the answer."""

    def target(self, case: Case, frame: BoxFrame) -> str:
        """The gold response. Raises DataError, naming the row, when the case lacks what the task needs."""

    def read(self, text: str, case: Case, frame: BoxFrame) -> Reading:
        """Never raises on a response: what is wrong with it becomes `Reading.flaws`."""

    def check(self, case: Case) -> None:
        """Raises DataError, naming the row, when the case cannot be trained or scored by this task."""


class Encoder(Protocol):
    """An `nn.Module` for one modality. `num_tokens` placeholders in the prompt receive its projected features."""

    modality: str
    placeholder: str  # "<|ecg_pad|>"
    width: int  # D of the features
    num_tokens: int

    def load(self, path: Path, options: Mapping[str, Any]) -> np.ndarray:
        """File -> array; options: the medium's own. Raises MediaError without `where`: the caller adds the row's id."""

    def prepare(self, array: np.ndarray) -> torch.Tensor:
        """Array as loaded or given in memory -> float32 tensor of a fixed shape."""

    def forward(self, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, ...] prepared -> features [B, N, D] and a bool mask [B, N], True where a feature is real."""


class Domain(Protocol):
    """A clinical domain of the papers, or a user's own.

    It may have: questions(dataset) -> tuple of texts, the phrasings for one data set in place of `phrasings`; sets, by
    data set an object with multi (several labels may hold), as `qoqmed data build` asks for it.
    """

    name: str
    title: str
    modalities: tuple[str, ...]
    datasets: Mapping[str, tuple[str, ...]]  # data set -> label space
    phrasings: tuple[str, ...]


class Dataset(Protocol):
    """Map-style: `dataset[i]` is a Case. `domains[i]` is known without building the case."""

    domains: Sequence[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Case: ...


class Reward(Protocol):
    """Batch-wise and deterministic: one verdict per rollout, in order. Values lie in [low, high]."""

    low: float
    high: float

    def score(
        self, cases: Sequence[Case], rollouts: Sequence[Rollout], readings: Sequence[Reading]
    ) -> Sequence[Verdict]: ...


class Advantage(Protocol):
    """Rewards of one step over all ranks -> advantages. State, if any, is checkpointed."""

    needs: Needs

    def estimate(self, table: RewardTable) -> Advantages: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Actor(Protocol):
    """What an objective may use while it collects: the running policy behind prompts, rollouts, tasks and rewards."""

    def prompts(self, cases: Sequence[Case]) -> list[Prompt]: ...

    def gold(self, case: Case, prompt: Prompt) -> Rollout: ...

    def pair(self, case: Case) -> tuple[Rollout, Rollout]:
        """The row's own two responses, the better one first (`Needs.pair`)."""

    def generate(self, cases: Sequence[Case], prompts: Sequence[Prompt]) -> list[list[Rollout]]: ...

    def judge(self, groups: Sequence[Group]) -> list[Group]: ...


class Objective(Protocol):
    """What a stage collects and minimises.

    epochs: passes over a step's groups. minibatch: groups per update over all ranks, 0 for all. It may have:
    entropy_weight, other than 0 where entropies need a gradient; reward_kl_weight, of the KL that the loop takes from
    the rewards of tokens; value_weight, above 0 where it trains values; advantages = False where it samples and needs
    no estimator of them; whole_groups = True where its loss has to see all trained responses of a group at once.
    """

    needs: Needs
    epochs: int
    minibatch: int

    def collect(self, cases: Sequence[Case], actor: Actor) -> list[Group]: ...

    def loss(self, tokens: TokenTable) -> Loss: ...


class PolicyHandle(Protocol):
    """What a rollout engine may see of the policy; the methods from `prefill` on serve the engine `torch`."""

    stop_token_ids: frozenset[int]
    banned_token_ids: frozenset[int]  # never sampled, never in the softmax: media tokens, ids beyond the tokenizer

    def decode_text(self, token_ids: Sequence[int]) -> str:
        """Token ids -> text, without the stop token."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""

    def weights(self) -> Iterable[tuple[str, torch.Tensor]]:
        """(name, whole tensor), one at a time, adapters added; a collective where the policy is sharded."""

    def describe(self, folder: Path) -> None:
        """Write the model without its weights: config.json, tokenizer, processor."""

    def log_probs(self, prompt: Prompt, token_ids: Sequence[int], temperature: float = 1.0) -> torch.Tensor:
        """[T] float32 on the CPU, of these tokens as a response to the prompt."""

    def whole(self) -> AbstractContextManager[None]:
        """Inside, this process holds all weights: what it computes takes no part of other processes."""

    def prefill(self, prompts: Sequence[Prompt]) -> Any:
        """Run the prompts once -> `hidden` [P, D] of their last tokens, `starts` [P] (the next positions), a cache."""

    def decoder(self, prefix: Any, n: int, capacity: int) -> Any:
        """The cache for n responses a prompt of up to `capacity` tokens; `keep(prompts, rows, n)` shrinks it."""

    def decode(self, token_ids: torch.Tensor, positions: torch.Tensor, cache: Any) -> torch.Tensor:
        """One token of each response, [R] and [R] -> hidden [R, D]."""

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[R, D] -> float32 [R, V], banned ids at -inf."""


class Rollouts(Protocol):
    """A sampling engine. `start` receives the policy once; `sync` is called after each update.

    exact_log_probs: whether its log-probs are the trainer's but for rounding, as they are where it samples with the
    trainer's own weights and code. An engine that does not say so has none.
    """

    exact_log_probs: bool

    def start(self, policy: PolicyHandle) -> None: ...

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[int]) -> list[list[Rollout]]:
        """`sampling.n` rollouts for each prompt. seeds: one per prompt; a response does not depend on its batch."""

    def rest(self) -> None:
        """Nothing is sampled before the next `sync` or `generate`: free what an update can use."""

    def sync(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None: ...

    def close(self) -> None: ...


class Backbone(Protocol):
    """A transformers model class with the mixins of `qoqmed.policy` (see `qoqmed.policy.qwen2_5_vl`).

    The plugin's name is `plain_type`, its config's model_type "qoqmed_" and that. Class attributes and methods:
    """

    config_class: Any  # the plain model's config with `encoders`
    plain_type: str  # model_type of plain folders that it reads, too
    plain_class: Any  # transformers' class
    block_names: tuple[str, ...]  # decoder layers, the FSDP groups
    image_tokens: tuple[str, str, str]  # start, placeholder, end
    media_tokens: tuple[str, ...]
    attention: Mapping[str, str]
    language_part: torch.nn.Module
    vision_part: torch.nn.Module
    lm_head: torch.nn.Linear
    encoders: torch.nn.ModuleDict
    projectors: torch.nn.ModuleDict
    patch: int  # side of a vision patch, in pixels
    merge: int  # patches along a side of one vision token

    def add_encoders(self, encoders: Mapping[str, torch.nn.Module], specs: Mapping[str, Mapping[str, Any]]) -> None: ...

    @classmethod
    def tiny_config(cls, size: Any, token_ids: Mapping[str, int], vocabulary: int) -> Any:
        """Of `model: {name: tiny}` with this backbone."""

    def geometry(self, width: int, height: int, min_pixels: int, max_pixels: int) -> Geometry: ...

    def frame(self, geometries: Sequence[Geometry | None]) -> BoxFrame: ...

    def image_features(self, pixel_values: torch.Tensor, grids: torch.Tensor) -> ImageFeatures: ...

    def series_features(self, modality: str, values: torch.Tensor) -> torch.Tensor: ...

    def positions(
        self, token_ids: torch.Tensor, is_image: torch.Tensor, grids: torch.Tensor | None
    ) -> torch.Tensor: ...

    def hidden(
        self,
        embeds: torch.Tensor,
        positions: torch.Tensor,
        segments: Segments,
        images: ImageFeatures | None = None,
        slots: torch.Tensor | None = None,
    ) -> torch.Tensor: ...


class Metric(Protocol):
    """A torchmetrics `Metric`: `compute` gives {"overall": {...}, "domains": {...}, "datasets": {...}} of floats."""

    def update(self, predictions: Sequence[Prediction]) -> None: ...

    def compute(self) -> dict[str, Any]: ...

    def reset(self) -> None: ...
