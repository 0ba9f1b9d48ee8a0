"""From a recipe to its parts: each made from the registry, the policy with exactly what the parts need."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from qoqmed import config, registry
from qoqmed.actor import Actor
from qoqmed.boxes import AbsoluteFrame
from qoqmed.config.schema import Node, Recipe, RewardConfig, StageConfig, StageData
from qoqmed.contracts import Advantage, Dataset, Objective, Reward, Task
from qoqmed.datasets.phantoms import SIDE_PX
from qoqmed.datasets.sampler import Sampler
from qoqmed.datasets.synthetic import SHARES, Synthetic
from qoqmed.errors import Problem, RecipeError, UserError
from qoqmed.geometry import fit
from qoqmed.media.cache import MediaCache
from qoqmed.module import ClinicalPolicyModule
from qoqmed.parallel import FSDP2Strategy, count_devices, make_fabric
from qoqmed.policy import lora, stored
from qoqmed.policy.handle import LivePolicy
from qoqmed.policy.loading import Loaded, load_path, load_tiny
from qoqmed.policy.prompting import Prompter
from qoqmed.rewards.pool import Pooled
from qoqmed.rewards.routing import Routing
from qoqmed.run import restore_policy
from qoqmed.types import Needs, Sampling

if TYPE_CHECKING:
    from lightning.fabric import Fabric


@dataclass(frozen=True)
class Stage:
    """A stage's own parts."""

    config: StageConfig
    objective: Objective
    advantage: Advantage | None
    datasets: tuple[Dataset, ...]
    sampler: Sampler
    prompts: int  # cases per step, over all ranks
    steps: int

    @property
    def needs(self) -> Needs:
        return self.objective.needs | (self.advantage.needs if self.advantage else Needs())

    @property
    def cut_short(self) -> bool:
        """Whether the data sets' own epochs end before the stage's."""
        last, bound = math.ceil(self.config.epochs) - 1, self.config.steps
        return self.sampler.over(last) and (bound is None or bound > self.steps)


@dataclass(frozen=True)
class Source:
    """A data set in a mixture (see `Sampler`)."""

    dataset: Dataset
    weight: float
    cap: int | None
    epochs: float | None


@dataclass(frozen=True)
class Parts:
    """Everything a run is made of."""

    recipe: Recipe
    fabric: Fabric
    module: ClinicalPolicyModule
    loaded: Loaded
    actor: Actor
    stages: tuple[Stage, ...]
    splits: Mapping[str, tuple[Dataset, ...]]

    @property
    def sampling(self) -> Sampling:
        rollout = self.recipe.rollout
        return Sampling(rollout.n, rollout.temperature, rollout.top_p, rollout.top_k, rollout.max_new_tokens)


def build(recipe: Recipe) -> Parts:
    """Make every part. Raises UserError for what only shows when parts are made (bad data rows, unfit checkpoints)."""
    if recipe.trainer.threads:
        torch.set_num_threads(recipe.trainer.threads)
    trainer = recipe.trainer
    devices = count_devices(trainer.devices, trainer.accelerator)
    fabric = make_fabric(trainer.accelerator, devices, trainer.num_nodes, trainer.strategy, trainer.precision)
    fabric.launch()
    stages = tuple(_stage(recipe, index) for index in range(len(recipe.stages)))
    actor, loaded = build_actor(recipe)
    if any(stage.needs.values for stage in stages):
        loaded.policy.add_value_head()
    module = ClinicalPolicyModule(loaded.policy)
    sharded = isinstance(fabric.strategy, FSDP2Strategy)
    loaded.policy.autocast = trainer.precision == "bf16" and not sharded  # FSDP2 has its own mixed precision
    if sharded and not module.adapted and any(stage.needs.reference for stage in stages):
        module.freeze_reference()  # before sharding; else it is made by the stage that needs it
    fabric.setup_module(module)
    module.train()
    return Parts(
        recipe,
        fabric,
        module,
        loaded,
        actor,
        stages,
        splits(recipe),
    )


def build_actor(recipe: Recipe) -> tuple[Actor, Loaded]:
    """The policy with its prompts, engine, tasks and rewards: what training, evaluation and prediction share."""
    root = Path(recipe.data.root)
    questions = OnDemand("domains", _question)
    tasks: Mapping[str, Task] = OnDemand("tasks", lambda name: registry.make("tasks", Node(name), questions=questions))
    data = recipe.data
    loaded = _load(recipe, tasks)
    loaded.policy.attention = recipe.model.attention
    if recipe.model.lora is not None:
        lora.add(loaded.policy, recipe.model.lora, recipe.seed + 3)
    loaded.processor.media = media = MediaCache(data.cache_mb * 2**20)
    loaded.processor.frames = data.frames
    loaded.processor.resize_between(data.min_pixels, data.max_pixels)
    prompter = Prompter(loaded.policy.model, loaded.processor, tasks, root=root)
    handle = LivePolicy(loaded.policy, loaded.tokenizer, loaded.processor)
    chosen = Node(recipe.rollout.name, recipe.rollout.arguments, "rollout")
    engine = registry.make("rollouts", chosen, precision=recipe.trainer.precision)
    engine.start(handle)
    scoring = recipe.rewards
    rewards = {key: make_reward(key, reward) for key, reward in scoring.items()}
    weights = {key: reward.weight for key, reward in scoring.items()}
    kept = None if data.modalities == "all" else data.modalities
    actor = Actor(handle, prompter, engine, rewards, weights, root, data.on_error, data.workers, media, kept)
    return replace(actor, routing=routing(scoring)), loaded


def make_reward(key: str, config: RewardConfig) -> Reward:
    """In processes of its own where the recipe says so."""
    node = Node(config.name, config.arguments, config.where or f"rewards.{key}")
    reward: Reward = registry.make("rewards", node)
    if config.workers == 0 and config.timeout_s is None:
        return reward
    return Pooled(key, reward, node, config.workers, config.timeout_s)


def routing(rewards: Mapping[str, RewardConfig]) -> Routing:
    domains = {key: reward.domains for key, reward in rewards.items() if reward.domains}
    return Routing(domains, {key: reward.share for key, reward in rewards.items() if reward.share is not None})


class OnDemand(Mapping[str, Any]):
    """The plugins of a group by name, each made when it is first asked for: only what the data names is imported."""

    def __init__(self, group: str, make: Callable[[str], Any]) -> None:
        self._names = [info.name for info in registry.available(group)]
        self._make, self._made = make, dict[str, Any]()

    def __getitem__(self, name: str) -> Any:
        if name not in self._names:
            raise KeyError(name)
        if name not in self._made:
            self._made[name] = self._make(name)
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _question(domain: str) -> str:
    """The domain's first phrasing, for cases that bring no question."""
    plugin = registry.load("domains", domain)
    return str((plugin() if callable(plugin) else plugin).phrasings[0])


def _load(recipe: Recipe, tasks: Mapping[str, Task]) -> Loaded:
    model = recipe.model
    if model.path is None:
        return load_tiny(
            tiny_texts(tasks),
            recipe.encoders,
            seed=recipe.seed,
            options=model.options,
            backbone=model.backbone,
            logprob_chunk=recipe.trainer.logprob_chunk,
        )
    return load_path(
        Path(model.path),
        recipe.encoders,
        seed=recipe.seed,
        dtype=model.dtype,
        backbone=model.backbone,
        gradient_checkpointing=model.gradient_checkpointing,
        logprob_chunk=recipe.trainer.logprob_chunk,
    )


def tiny_texts(tasks: Mapping[str, Task], cases: int = 450) -> Iterator[str]:
    """What the tiny tokenizer is trained on: questions and gold answers of the synthetic data, always the same ones."""
    frame = AbsoluteFrame([fit(SIDE_PX, SIDE_PX, patch=14, merge=2, min_pixels=784, max_pixels=SIDE_PX**2)])
    for task in ("diagnosis", "grounding"):
        domains = [name for name in SHARES if task == "diagnosis" or name != "ecg"]
        dataset = Synthetic(size=cases, seed=0, task=task, balanced=True, domains=domains)
        for index in range(len(dataset)):
            case = dataset[index]
            yield tasks[task].prompt(case)
            yield tasks[task].target(case, frame)


def _stage(recipe: Recipe, index: int) -> Stage:
    stage = recipe.stages[index]
    objective: Objective = registry.make("objectives", stage.objective)
    advantage: Advantage | None = registry.make("advantages", stage.advantage) if stage.advantage else None
    sources = list(_sources(recipe, recipe.data.train if stage.data.train is None else stage.data.train))
    if not sources:
        where = f"stages.{index}.data.train"
        raise RecipeError(Problem("the stage has no training data", where=where, mend="name data sets in data.train"))
    sampler = sampler_of(sources, stage.data, recipe.seed + index)
    datasets, prompts = tuple(source.dataset for source in sources), stage.prompts or recipe.rollout.prompts
    steps = steps_of(sampler, prompts, stage.epochs)
    return Stage(stage, objective, advantage, datasets, sampler, prompts, min(steps, stage.steps or steps))


def sampler_of(sources: Sequence[Source], data: StageData, seed: int) -> Sampler:
    """The mixture of a stage's data sets."""
    return Sampler(
        [source.dataset for source in sources],
        [source.weight for source in sources],
        seed,
        data.domains,
        data.balanced,
        caps=[source.cap for source in sources],
        epochs=[source.epochs for source in sources],
        temperature=data.temperature,
        domain_weights=data.domain_weights,
        domain_caps=data.domain_caps,
    )


def loggers(recipe: Recipe, folder: Path) -> list[Any]:
    """Where scalars go: the recipe's, writing into the run's folder."""
    return [registry.make("loggers", node, root_dir=str(folder)) for node in recipe.loggers]


def callbacks(recipe: Recipe) -> list[Any]:
    """The recipe's, with progress always and early stopping where there is patience."""
    nodes, config = list(recipe.callbacks), recipe.evaluation
    names = [node.name for node in nodes]
    wanted = {"progress": True, "early_stopping": config.patience > 0}
    nodes += [Node(name) for name, on in wanted.items() if on and name not in names]
    offered = {"monitor": config.best} | ({"patience": config.patience} if config.patience else {})
    return [registry.make("callbacks", node, **offered) for node in nodes]


def steps_of(sampler: Sampler, prompts: int, epochs: float) -> int:
    """Steps of `prompts` cases in so many epochs; the last step of each whole epoch may be short."""
    whole = sum(sampler.steps_per_epoch(prompts, epoch) for epoch in range(int(epochs)))
    rest = (epochs - int(epochs)) * sampler.size(int(epochs))
    return whole + -(-round(rest) // prompts)


def _sources(recipe: Recipe, nodes: Sequence[Node]) -> Iterator[Source]:
    for node in nodes:
        arguments = dict(node.arguments)
        weight, cap, epochs = arguments.pop("weight", 1.0), arguments.pop("cap", None), arguments.pop("epochs", None)
        dataset = registry.make("datasets", replace(node, arguments=arguments), root=recipe.data.root)
        yield Source(dataset, float(weight), cap, epochs)


def _placed(actor: Actor, recipe: Recipe) -> Actor:
    """The actor with its policy on the recipe's device and in its precision, as in training."""
    accelerator, policy = recipe.trainer.accelerator, actor.handle.policy
    policy.to("cuda" if accelerator == "cuda" or (accelerator == "auto" and torch.cuda.is_available()) else "cpu")
    policy.autocast = recipe.trainer.precision == "bf16"
    return actor


def load(target: str | Path, overrides: Sequence[str] = ()) -> tuple[Actor, Recipe]:
    """A policy ready to answer, and the recipe that describes it.

    target: a run folder (its best weights), a folder with a transformers checkpoint (an exported one brings its frames,
    pixel bounds, dtype and length of answers), or a recipe (as it is before training). Raises UserError where it is
    none of them.
    """
    folder = Path(target)
    if (folder / "recipe.yaml").is_file():
        recipe = config.load(folder / "recipe.yaml", overrides, files=False)  # the data may be elsewhere by now
        actor, loaded = build_actor(recipe)
        restore_policy(folder, loaded.policy)
        return _placed(actor, recipe), recipe
    if (folder / "config.json").is_file():
        unused = {"name": "none", "objective": "sft", "data": {"train": [{"name": "synthetic", "size": 1}]}}
        own = stored.settings(folder)
        model = {"path": str(folder), **own.pop("model", {})}
        recipe = config.load({"name": folder.resolve().name, "model": model, "stages": [unused], **own}, overrides)
    elif folder.is_dir():
        expected = "a run folder (recipe.yaml), a transformers checkpoint (config.json) or a recipe file"
        raise UserError(Problem("nothing here can be loaded", where=str(folder), expected=expected))
    else:
        recipe = config.load(folder, overrides)
    return _placed(build_actor(recipe)[0], recipe), recipe


def splits(recipe: Recipe) -> dict[str, tuple[Dataset, ...]]:
    """The data sets of `valid` and `test`, as far as the recipe has them."""
    nodes = {"valid": recipe.data.valid, "test": recipe.data.test}
    return {
        name: tuple(source.dataset for source in _sources(recipe, chosen)) for name, chosen in nodes.items() if chosen
    }
