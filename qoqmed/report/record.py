"""What is known of an exported model, gathered from its run: the content of `qoqmed.json`, which the card is made of.

Nothing here is estimated. What the run does not know is None, or left out. Names of this machine stay out of it.
"""

from __future__ import annotations

import inspect
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from qoqmed import checkpoint, provenance, registry
from qoqmed.build import routing
from qoqmed.config.deep import BESIDE
from qoqmed.config.schema import Node, Recipe
from qoqmed.errors import UserError
from qoqmed.rewards.routing import Routing
from qoqmed.run import RunFolder
from qoqmed.types import Evaluation


@dataclass(frozen=True)
class Origin:
    """Cases of one split, domain and data set. licences: licence -> cases that state it; "" stands for none stated."""

    split: str
    domain: str
    dataset: str
    cases: int
    licences: Mapping[str, int]
    synthetic: bool


@dataclass(frozen=True)
class StageRecord:
    """steps: those behind the exported weights; None where the run does not tell."""

    name: str
    objective: str
    advantage: str | None
    train: tuple[str, ...]
    domains: str | tuple[str, ...]
    lr: float
    steps: int | None


@dataclass(frozen=True)
class Model:
    """base: name of the folder that the weights started from; None: from random ones. box_frame: what a box's numbers
    mean. dtype: of the saved weights."""

    base: str | None
    model_type: str
    parameters: int
    dtype: str
    lora: Mapping[str, Any] | None
    box_frame: str
    encoders: Mapping[str, Mapping[str, Any]]
    encoder_parameters: Mapping[str, int]


@dataclass(frozen=True)
class Record:
    """best: the metric that chose the checkpoint; None for a run's last weights. unread: data that could not be read.

    data: frames, pixel bounds, modalities. sampling: of training. rewards: their weights; routing: other ones
    in single domains, and which rewards share one. environment: of the run; `exported`: of the export. evaluations: the
    newest of each split, of these weights where there is one.
    """

    run: str
    checkpoint: str
    step: int
    best: str | None
    seed: int
    model: Model
    data: Mapping[str, Any]
    sampling: Mapping[str, Any]
    rewards: Mapping[str, float]
    routing: Routing
    stages: tuple[StageRecord, ...]
    origins: tuple[Origin, ...]
    unread: tuple[str, ...]
    evaluations: tuple[Evaluation, ...]
    domains: tuple[str, ...]  # that qoqmed knows
    environment: Mapping[str, Any]
    exported: Mapping[str, Any]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"


def gather(run: RunFolder, recipe: Recipe, model: Model, chosen: Path) -> Record:
    """chosen: the checkpoint that the model's weights are of."""
    origins, unread = _origins(recipe)
    step = checkpoint.step_of(chosen)
    evaluations = tuple(run.evaluations())
    best = recipe.evaluation.best if chosen == checkpoint.best(run.checkpoints) else None
    environment = json.loads(run.environment_file.read_text(encoding="utf-8")) if run.environment_file.is_file() else {}
    data, rollout = recipe.data, recipe.rollout
    return Record(
        run=run.path.resolve().name,
        checkpoint=chosen.name,
        step=step,
        best=best,
        seed=recipe.seed,
        model=model,
        data={key: getattr(data, key) for key in ("frames", "min_pixels", "max_pixels", "modalities")},
        sampling={key: getattr(rollout, key) for key in ("temperature", "top_p", "top_k", "max_new_tokens", "n")},
        rewards={key: reward.weight for key, reward in recipe.rewards.items()},
        routing=routing(recipe.rewards),
        stages=tuple(_stages(recipe, evaluations, chosen)),
        origins=origins,
        unread=unread,
        evaluations=_shown(evaluations, step),
        domains=tuple(info.name for info in registry.available("domains")),
        environment=_public(environment),
        exported=_public(provenance.environment([])),
    )


def describe(model: Any, recipe: Recipe) -> Model:
    """The model as it is saved: adapters merged, in its last dtype."""
    frame = model.frame([])
    words = (inspect.getdoc(type(frame)) or "").partition(". ")[0].rstrip(".")
    path = recipe.model.path
    lora = getattr(recipe.model, "lora", None)
    return Model(
        base=None if path is None else Path(path).name,
        model_type=model.config.model_type,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        dtype=str(model.dtype).removeprefix("torch."),
        lora=None if lora is None else dict(lora) if isinstance(lora, Mapping) else asdict(lora),
        box_frame=f"{words}, as {getattr(frame, 'order', 'xyxy')}",
        encoders={modality: dict(spec) for modality, spec in (model.config.encoders or {}).items()},
        encoder_parameters={m: sum(p.numel() for p in encoder.parameters()) for m, encoder in model.encoders.items()},
    )


def _origins(recipe: Recipe) -> tuple[tuple[Origin, ...], tuple[str, ...]]:
    """Where the cases come from, as far as the data are still there."""
    own = [node for stage in recipe.stages for node in stage.data.train or ()]
    inherited = recipe.data.train if any(stage.data.train is None for stage in recipe.stages) else ()
    nodes = {"train": [*inherited, *own], "valid": recipe.data.valid, "test": recipe.data.test}
    found, unread = list[Origin](), list[str]()
    for split, chosen in nodes.items():
        for node in dict.fromkeys(_key(one) for one in chosen):
            plain = Node(node[0], json.loads(node[1]))
            try:  # the data may be elsewhere by now: the card then says so
                found += _of(split, plain, recipe.data.root)
            except UserError as error:
                unread.append(f"{split}, {plain.name}: {error.problems[0].what}")
    return tuple(found), tuple(unread)


def _key(node: Node) -> tuple[str, str]:
    """Two stages may name one data set."""
    own = {key: value for key, value in node.arguments.items() if key not in BESIDE["datasets"]}
    return node.name, json.dumps(own, default=list)


def _of(split: str, node: Node, root: str) -> list[Origin]:
    dataset = registry.make("datasets", replace(node, where=f"data.{split}"), root=root)
    synthetic = bool(getattr(dataset, "synthetic", False))
    counted = getattr(dataset, "origins", None)
    if counted is None:
        counted = Counter((domain, node.name, "") for domain in dataset.domains)
    grouped: dict[tuple[str, str], dict[str, int]] = {}
    for (domain, name, licence), cases in counted.items():
        grouped.setdefault((domain, name), {})[licence] = cases
    return [Origin(split, *key, sum(of.values()), of, synthetic) for key, of in sorted(grouped.items())]


def _stages(recipe: Recipe, evaluations: tuple[Evaluation, ...], chosen: Path) -> list[StageRecord]:
    """Of the stages up to the one whose step made the weights. A stage's own evaluation tells where it ended."""
    training = checkpoint.load(chosen).state.get("training", {})
    reached, steps = int(training.get("stage", 0)), training.get("step")
    ends = {evaluation.when: evaluation.global_step for evaluation in evaluations}
    out, before = list[StageRecord](), 0 if recipe.stages else None
    for index, stage in enumerate(recipe.stages[: reached + 1]):
        end = ends.get(stage.name)
        done = steps if index == reached else None if end is None or before is None else end - before
        before = end
        if index and done == 0:  # saved at the end of the stage before
            continue
        advantage = stage.advantage.name if stage.advantage else None
        lr, train, domains = stage.optimizer.lr, stage.train, stage.data.domains
        out.append(StageRecord(stage.name, stage.objective.name, advantage, train, domains, lr, done))
    return out


def _shown(evaluations: tuple[Evaluation, ...], step: int) -> tuple[Evaluation, ...]:
    """The newest evaluation of each split: of these weights where there is one, else of any."""
    newest = {one.split: one for one in evaluations}
    return tuple((newest | {one.split: one for one in evaluations if one.global_step == step}).values())


def _public(environment: Mapping[str, Any]) -> dict[str, Any]:
    """Without host, folders and command lines."""
    return {key: environment[key] for key in ("time", "python", "packages", "plugins", "code") if key in environment}
