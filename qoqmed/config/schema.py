"""A recipe as frozen dataclasses: the whole list of keys, their defaults and their bounds.

`field(metadata=...)` holds what the checker enforces: `low`/`high` (inclusive), `above` (exclusive low), `choices`.
A `Node` is a plugin by name with flat keyword arguments; its group is in the metadata of the field that holds it.
"""

# ruff: noqa: RUF009  (`option` is dataclasses.field with rules)
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TRAINABLE = ("encoders", "projectors", "language_model", "vision")  # parts of the policy; `encoders.ecg` is one encoder


def option(default: Any, **rules: Any) -> Any:
    """A field with a default and the checker's rules."""
    if isinstance(default, (dict, list)):
        return field(default_factory=lambda: type(default)(default), metadata=rules)
    return field(default=default, metadata=rules)


@dataclass(frozen=True)
class Node:
    """`{name: drpo, max_clusters: 3}`: a plugin and its constructor's arguments. `where`: its YAML path."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    where: str = ""


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters beside the linear layers of `parts`, whose own weights stay frozen."""

    rank: int = option(16, low=1)
    alpha: float = option(32.0, above=0.0)  # an adapter's output is scaled by alpha / rank
    parts: tuple[str, ...] = ("language_model",)
    targets: tuple[str, ...] = ()  # last names of layers, such as q_proj; empty: every linear layer


@dataclass(frozen=True)
class ModelConfig:
    """Either `path` (a local folder of a transformers checkpoint) or `name` (`tiny`, built from the recipe's seed)."""

    path: str | None = None
    name: str | None = option(None, choices=("tiny",))
    backbone: str | None = option(None, group="backbones")  # null: the one whose model_type the checkpoint has
    dtype: str = option("float32", choices=("float32", "bfloat16", "float16"))
    attention: str = option("auto", choices=("auto", "sdpa", "eager"))  # auto: the backbone's choice
    lora: LoraConfig | None = None
    gradient_checkpointing: bool = False
    options: Mapping[str, Any] = option({})  # sizes of `tiny`: hidden, layers, vision_hidden, vision_layers, vocabulary


@dataclass(frozen=True)
class DataConfig:
    root: str = "."
    train: tuple[Node, ...] = option((), group="datasets")
    valid: tuple[Node, ...] = option((), group="datasets")
    test: tuple[Node, ...] = option((), group="datasets")
    modalities: str | tuple[str, ...] = "all"
    frames: int = option(4, low=1)
    max_pixels: int = option(524_288, low=784)
    min_pixels: int = option(65_536, low=784)
    on_error: str = option("stop", choices=("stop", "skip"))
    workers: int = option(0, low=0)  # threads
    cache_mb: int = option(256, low=0)


@dataclass(frozen=True)
class RewardConfig:
    """One entry of `rewards`: its key is the plugin's name unless `name` says another.

    domains: the weight in a domain where that is another; 0: it is not asked there. share: rewards with the same one
    share one weight: each one's is divided by how many of them apply. workers: processes that score one response at a
    time; 0: this one, all at once. timeout_s: of one response, for which a process is needed.
    """

    name: str
    weight: float = option(1.0, low=0.0)
    domains: Mapping[str, float] = option({})
    share: str | None = None
    workers: int = option(0, low=0)
    timeout_s: float | None = option(None, above=0.0)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    where: str = ""

    @property
    def node(self) -> Node:
        return Node(self.name, self.arguments, self.where)


@dataclass(frozen=True)
class RolloutConfig:
    """The engine and how it samples. `prompts`: cases per step over all ranks. Other keys go to the engine."""

    name: str = option("torch", group="rollouts")
    n: int = option(8, low=1)
    temperature: float = option(1.0, low=0.0)
    top_p: float = option(1.0, above=0.0, high=1.0)
    top_k: int = option(0, low=0)
    max_new_tokens: int = option(1024, low=1)
    max_logp_difference: float = option(0.1, above=0.0)  # nats, mean over tokens; more of it is told
    prompts: int = option(32, low=1)
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def node(self) -> Node:
        return Node(self.name, self.arguments, "rollout")


@dataclass(frozen=True)
class TrainerConfig:
    devices: int | str = option("auto")
    num_nodes: int = option(1, low=1)
    accelerator: str = option("auto", choices=("auto", "cpu", "cuda"))
    strategy: str = option("auto", choices=("auto", "single", "fsdp2"))
    precision: str = option("fp32", choices=("fp32", "bf16"))
    tokens_per_pack: int = option(16_384, low=1)
    logprob_chunk: int = option(512, low=1)
    max_grad_norm: float = option(1.0, above=0.0)
    max_invalid: float = option(0.1, low=0.0, high=1.0)  # share of the rollouts of ten steps
    max_skipped: int = option(5, low=1)  # steps in a row
    checkpoint_every: int = option(30, low=0)  # steps; 0: only at the end of a stage
    keep: int = option(3, low=1)
    threads: int | None = option(None, low=1)  # CPU threads; null: torch's own
    out: str = "runs/{name}"  # the run folder; {name} is the recipe's name


@dataclass(frozen=True)
class EvaluationConfig:
    """every: steps between passes over `data.valid` (0: at the ends of stages only). best: metric that picks `best`."""

    every: int = option(0, low=0)
    metrics: tuple[Node, ...] = option((Node("clinical", where="evaluation.metrics.0"),), group="metrics")
    best: str = "overall/f1"
    patience: int = option(0, low=0)  # passes without a better `best`; 0: never stop early
    greedy: bool = True
    sampled: bool = False  # also one response at temperature 1
    max_new_tokens: int | None = option(None, low=1)
    batch: int = option(64, low=1)
    limit: int | None = option(None, low=1)  # cases a split, for smoke runs


@dataclass(frozen=True)
class StageData:
    """Which cases come, and how often. Beside a data set's arguments stand its `weight`, `cap` and `epochs`."""

    domains: str | tuple[str, ...] = "all"
    balanced: bool = False  # every domain equally often in an epoch of the same length
    temperature: float = option(1.0, low=0.1)  # domains' parts go as size^(1 / temperature)
    domain_weights: Mapping[str, float] = option({})  # factors of domains' parts
    domain_caps: Mapping[str, int] = option({})  # cases of a domain in an epoch, at most
    train: tuple[Node, ...] | None = option(None, group="datasets")  # null: the recipe's data.train


@dataclass(frozen=True)
class OptimizerConfig:
    name: str = option("adamw", choices=("adamw",))
    lr: float = option(1e-6, above=0.0)
    value_lr: float | None = option(None, above=0.0)  # of the value head; null: lr
    weight_decay: float = option(0.01, low=0.0)
    beta1: float = option(0.9, low=0.0, high=1.0)
    beta2: float = option(0.999, low=0.0, high=1.0)
    eps: float = option(1e-8, above=0.0)
    warmup: float = option(0.0, low=0.0)  # below 1: share of the stage's steps; else steps
    schedule: str = option("constant", choices=("constant", "cosine", "linear"))
    floor: float = option(0.0, low=0.0, high=1.0)  # share of lr that the schedule ends at


@dataclass(frozen=True)
class StageConfig:
    """extends: the earlier stage whose keys this one starts from. steps: an upper bound beside `epochs`.

    equal_groups: groups whose rewards are all equal teach nothing. keep; drop them from the update; or resample: drop
    them and draw further cases, at most `rounds` times the step's prompts, until the step has its prompts (DAPO).
    """

    name: str
    objective: Node = field(metadata={"group": "objectives"})
    data: StageData = option(StageData())
    train: tuple[str, ...] = TRAINABLE
    advantage: Node | None = option(None, group="advantages")
    optimizer: OptimizerConfig = option(OptimizerConfig())
    epochs: float = option(1.0, above=0.0)
    steps: int | None = option(None, low=1)
    prompts: int | None = option(None, low=1)  # null: rollout.prompts
    equal_groups: str = option("keep", choices=("keep", "drop", "resample"))
    rounds: int = option(3, low=1)
    extends: str | None = None


@dataclass(frozen=True)
class Recipe:
    name: str
    stages: tuple[StageConfig, ...]
    seed: int = option(42, low=0)
    model: ModelConfig = option(ModelConfig())
    encoders: Mapping[str, Node] = option({}, group="encoders")
    data: DataConfig = option(DataConfig())
    rewards: Mapping[str, RewardConfig] = option({}, group="rewards")
    rollout: RolloutConfig = option(RolloutConfig())
    trainer: TrainerConfig = option(TrainerConfig())
    evaluation: EvaluationConfig = option(EvaluationConfig())
    loggers: tuple[Node, ...] = option((Node("csv", where="loggers.0"),), group="loggers")
    callbacks: tuple[Node, ...] = option((), group="callbacks")
    traces: str = option("ids", choices=("ids", "text", "full"))
