"""The deep check: imports the plugins that a recipe names, binds their arguments, asks the stages what they need."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

from qoqmed.config.schema import Node, Recipe, StageConfig
from qoqmed.errors import PluginError, Problem, UserError
from qoqmed.registry import bind, make
from qoqmed.types import Needs

# What the build offers to the constructors of a group, besides the recipe's own arguments.
PROVIDED: Mapping[str, Sequence[str]] = {
    "datasets": ("root",),
    "callbacks": ("monitor", "patience"),
    "loggers": ("root_dir",),
    "backbones": ("config",),
}
# Keys of the recipe that stand beside a plugin's arguments.
BESIDE: Mapping[str, Sequence[str]] = {
    "datasets": ("weight", "cap", "epochs"),
    "rewards": ("weight", "domains", "share", "workers", "timeout_s"),
    "rollouts": ("n", "temperature", "top_p", "top_k", "max_new_tokens", "prompts"),
}


def check_plugins(recipe: Recipe, named: Sequence[tuple[str, Node]]) -> list[Problem]:
    """Problems of the plugins `named` (group and node), then of the stages whose objective and advantage are sound."""
    problems: list[Problem] = []
    sound: set[str] = set()
    for group, node in named:
        found = _bind(group, node)
        problems += found
        sound |= set() if found else {node.where}
    for index, stage in enumerate(recipe.stages):
        if stage.objective.where in sound:
            problems += _stage(recipe, stage, f"stages.{index}", sound)
    return problems


def process_count(recipe: Recipe) -> int:
    """Devices times nodes; 1 where the devices are counted at run time only."""
    devices = recipe.trainer.devices
    return max(devices, 1) * recipe.trainer.num_nodes if isinstance(devices, int) else 1


def prompts_per_step(recipe: Recipe, stage: StageConfig) -> int:
    return recipe.rollout.prompts if stage.prompts is None else stage.prompts


def minibatch(recipe: Recipe, stage: StageConfig, size: object) -> Iterator[Problem]:
    """A minibatch (groups per update over all processes, 0 for all of a step) that does not divide."""
    prompts, ranks = prompts_per_step(recipe, stage), process_count(recipe)
    if not isinstance(size, int) or size <= 0 or (prompts % size == 0 and size % ranks == 0):
        return
    expected = f"a divisor of the {prompts} prompts of a step"
    expected += f" and a multiple of the {ranks} processes" if ranks > 1 else ""
    good = [str(n) for n in range(1, prompts + 1) if prompts % n == 0 and n % ranks == 0]
    mend = f"{', '.join(good[-6:])} would do, or 0 for one update a step" if good else ""
    yield Problem("batch sizes do not divide", f"{stage.objective.where}.minibatch", str(size), expected, mend)


def _bind(group: str, node: Node) -> list[Problem]:
    beside = BESIDE.get(group, ())
    own = {key: value for key, value in node.arguments.items() if key not in beside}
    try:
        return bind(group, node.name, own, PROVIDED.get(group, ()), node.where, beside)
    except PluginError as error:
        return list(error.problems)


def _stage(recipe: Recipe, stage: StageConfig, where: str, sound: set[str]) -> Iterator[Problem]:
    objective = yield from _made("objectives", stage.objective)
    if objective is None:
        return
    if "minibatch" not in stage.objective.arguments:
        yield from minibatch(recipe, stage, getattr(objective, "minibatch", None))
    if stage.advantage is not None and not objective.needs.rollouts:
        what = f"the objective {stage.objective.name!r} samples nothing: there are no advantages to estimate"
        yield Problem(what, f"{where}.advantage", stage.advantage.name, "null")
        return
    estimated = getattr(objective, "advantages", True)
    if stage.advantage is not None and not estimated:
        what = f"the objective {stage.objective.name!r} compares responses itself: nobody asks for advantages"
        yield Problem(what, f"{where}.advantage", stage.advantage.name, "null")
    needs = objective.needs
    if stage.advantage is not None and stage.advantage.where in sound:
        advantage = yield from _made("advantages", stage.advantage)
        needs = needs if advantage is None else needs | advantage.needs
    yield from _values(stage, where, objective, needs)
    if needs.kl and not needs.reference:
        what, expected = "a part needs the KL, and none the reference that it is to", "Needs(kl=True, reference=True)"
        yield Problem(what, f"{where}.advantage", "Needs(kl=True)", expected)
    yield from _equal_groups(recipe, stage, where, needs)
    if not needs.rollouts:
        return
    name = stage.objective.name
    if stage.advantage is None and estimated:
        yield Problem(f"the objective {name!r} needs an estimator of advantages", f"{where}.advantage", "null")
    if not recipe.rewards:
        what = f"the objective {name!r} of {where} samples responses, and no reward judges them"
        yield Problem(what, "rewards", "{}", "one reward at least", "for example rewards: {accuracy: {weight: 1.0}}")
    n, temperature = recipe.rollout.n, recipe.rollout.temperature
    if n < needs.group:
        what = f"{where} compares the responses of a group"
        yield Problem(what, "rollout.n", str(n), f"at least {needs.group} responses a prompt")
    elif temperature == 0:
        what = f"greedy sampling gives one response every time, and {where} learns from how sampled ones differ"
        yield Problem(what, "rollout.temperature", str(temperature), "above 0")


def _values(stage: StageConfig, where: str, objective: Any, needs: Needs) -> Iterator[Problem]:
    if needs.values and stage.advantage is not None and not getattr(objective, "value_weight", 0.0):
        name = stage.objective.name
        what = f"the estimator {stage.advantage.name!r} needs values, and the objective {name!r} trains none"
        mend = "policy_gradient trains them; or an estimator without values, such as rloo"
        yield Problem(what, f"{stage.objective.where}.value_weight", "0 or not there", "above 0", mend)
    if stage.optimizer.value_lr is not None and not needs.values:
        what = "nothing in this stage has values"
        yield Problem(what, f"{where}.optimizer.value_lr", str(stage.optimizer.value_lr), "null, or the advantage gae")


def _equal_groups(recipe: Recipe, stage: StageConfig, where: str, needs: Needs) -> Iterator[Problem]:
    how = stage.equal_groups
    if how == "keep":
        return
    if not needs.rollouts:
        what = f"the objective {stage.objective.name!r} samples no groups"
        yield Problem(what, f"{where}.equal_groups", how, "keep")
    elif needs.greedy or needs.tokens:
        what, name = "learns from groups of equal rewards, too", stage.advantage.name if stage.advantage else ""
        yield Problem(f"the estimator {name!r} {what}", f"{where}.equal_groups", how, "keep")
    elif recipe.rollout.n < 2:
        what = "a single response has no reward to differ from: every group would be left out"
        yield Problem(what, "rollout.n", str(recipe.rollout.n), "at least 2", f"or {where}.equal_groups=keep")


def _made(group: str, node: Node) -> Generator[Problem, None, Any]:
    """The part, constructed, as the generator's value; None after a problem."""
    try:
        part: Any = make(group, node)
    except UserError as error:
        yield from error.problems
        return None
    if not isinstance(getattr(part, "needs", None), Needs):
        yield Problem(f"the plugin {node.name!r} does not keep its contract", node.where, "no `needs`", "a types.Needs")
        return None
    return part
