from __future__ import annotations

import os
from copy import deepcopy
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
from fake_distribution import install

from qoqmed import config
from qoqmed.config.schema import Node, Recipe
from qoqmed.errors import RecipeError

SFT = {"name": "sft"}
RL = {"name": "policy_gradient", "clip_low": 0.1, "minibatch": 4}
RECIPE: dict[str, Any] = {
    "name": "small",
    "model": {"name": "tiny"},
    "encoders": {"ecg": "ecg_conv"},
    "data": {"train": [{"name": "synthetic", "size": 10, "weight": 2.0}]},
    "rewards": {"accuracy": {"weight": 0.5}, "short": {"name": "format"}},
    "rollout": {"name": "torch", "n": 4, "prompts": 8, "batch": 16},
    "stages": [
        {"name": "first", "objective": RL, "advantage": "drpo", "optimizer": {"lr": 1e-3}, "train": ["encoders.ecg"]},
        {"name": "second", "extends": "first", "data": {"domains": ["ecg"]}},
    ],
}


def changed(**parts: Any) -> dict[str, Any]:
    return {**deepcopy(RECIPE), **parts}


def problems(recipe: dict[str, Any], *overrides: str, **options: Any) -> dict[str, str]:
    """where -> the whole text of the problem."""
    with pytest.raises(RecipeError) as error:
        config.load(recipe, overrides, **options)
    return {problem.where: str(problem) for problem in error.value.problems}


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def test_a_recipe_becomes_frozen_dataclasses() -> None:
    recipe = config.load(RECIPE)
    first = recipe.stages[0]
    assert first.objective == Node("policy_gradient", {"clip_low": 0.1, "minibatch": 4}, "stages.0.objective")
    assert first.advantage == Node("drpo", {}, "stages.0.advantage")
    assert recipe.encoders == {"ecg": Node("ecg_conv", {}, "encoders.ecg")}
    assert (recipe.rewards["short"].name, recipe.rewards["short"].weight) == ("format", 1.0)
    assert recipe.rollout.arguments == {"batch": 16}
    assert first.train == ("encoders.ecg",)
    with pytest.raises(FrozenInstanceError):
        recipe.name = "other"  # type: ignore[misc]


def test_shorthands() -> None:
    recipe = config.load(
        changed(rewards={"accuracy": 0.5, "iou": None}, rollout="torch", data={"train": ["synthetic"]})
    )
    assert {key: (reward.name, reward.weight) for key, reward in recipe.rewards.items()} == {
        "accuracy": ("accuracy", 0.5),
        "iou": ("iou", 1.0),
    }
    assert recipe.rollout.name == "torch"
    assert recipe.data.train == (Node("synthetic", {}, "data.train.0"),)
    assert config.load(RECIPE, ["stages.0.data.domains=ecg"]).stages[0].data.domains == ("ecg",)


def test_extends_merges_deeply_and_a_plugin_of_another_name_starts_afresh() -> None:
    second = {"name": "second", "extends": "first", "objective": {"name": "policy_gradient", "clip_high": 0.3}}
    third = {"name": "third", "extends": "second", "objective": SFT, "optimizer": {"eps": 1e-6}, "advantage": None}
    recipe = config.load(changed(stages=[RECIPE["stages"][0], second, third]))
    assert recipe.stages[1].objective.arguments == {"clip_low": 0.1, "minibatch": 4, "clip_high": 0.3}
    assert recipe.stages[2].objective.arguments == {}
    assert recipe.stages[2].advantage is None
    assert (recipe.stages[2].optimizer.lr, recipe.stages[2].optimizer.eps) == (1e-3, 1e-6)
    assert recipe.stages[2].train == ("encoders.ecg",)


@pytest.mark.parametrize("base", ["secnd", "second", "third"])
def test_extends_takes_earlier_stages_only(base: str) -> None:
    stages = [*RECIPE["stages"], {"name": "third", "objective": SFT}]
    found = problems(changed(stages=[stages[0], {**stages[1], "extends": base}, stages[2]]))
    assert "an earlier stage: first" in found["stages.1.extends"]


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("stages.0.optimizer.lr=1e-5", lambda r: r.stages[0].optimizer.lr == 1e-5),
        ("stages.0.optimizer.lr=1e-5", lambda r: r.stages[1].optimizer.lr == 1e-5),  # as if the file said so: extends
        ("stages[1].optimizer.lr=2E-5", lambda r: (r.stages[0].optimizer.lr, r.stages[1].optimizer.lr) == (1e-3, 2e-5)),
        ("stages.second.steps=7", lambda r: (r.stages[0].steps, r.stages[1].steps) == (None, 7)),
        ("stages.0.advantage.max_clusters=3", lambda r: r.stages[0].advantage.arguments == {"max_clusters": 3}),
        ("data.train.synthetic.size=99", lambda r: r.data.train[0].arguments["size"] == 99),
        ("trainer.devices=2", lambda r: r.trainer.devices == 2),
        ("trainer.out=runs/{name}", lambda r: r.trainer.out == "runs/{name}"),
        ("rewards.iou={weight: 0.25}", lambda r: r.rewards["iou"].weight == 0.25),
        ("stages.0.train=[encoders, vision]", lambda r: r.stages[0].train == ("encoders", "vision")),
        ("stages.1.steps=null", lambda r: r.stages[1].steps is None),
        ("loggers.csv.flush=-1", lambda r: r.loggers[0].arguments == {"flush": -1}),
        ("name='5'", lambda r: r.name == "5"),
    ],
)
def test_overrides(override: str, read: Any) -> None:
    assert read(config.load(changed(loggers=["csv"]), [override]))


@pytest.mark.parametrize(
    ("override", "where", "text"),
    [
        ("seed", "", "key=value"),
        ("=3", "", "'=3'"),
        ("rollot.n=3", "rollot (override rollot.n=3)", "did you mean 'rollout'?"),
        ("trainer.kep=3", "trainer.kep (override trainer.kep=3)", "did you mean 'keep'?"),
        ("stages.0.lr=3", "stages.0.lr (override stages.0.lr=3)", "did you mean optimizer.lr?"),
        ("stages.9.steps=1", "stages.9 (override stages.9.steps=1)", "a number from 0 to 1"),
        ("stages.secnd.steps=1", "stages.secnd (override stages.secnd.steps=1)", "did you mean 'second'?"),
        ("trainer.devices=[1", "trainer.devices (override trainer.devices=[1)", "not YAML"),
        ("rollout.name=trch", "rollout.name (override rollout.name=trch)", "did you mean 'torch'?"),
        ("stages.0.optimizer=5", "stages.0.optimizer (override stages.0.optimizer=5)", "wrong type"),
    ],
)
def test_a_wrong_override_is_named_as_written(override: str, where: str, text: str) -> None:
    assert text in problems(RECIPE, override)[where]


@pytest.mark.parametrize(
    ("override", "where", "text"),
    [
        ("rollout.n=0", "rollout.n", "at least 1"),
        ("rollout.n=4.5", "rollout.n", "a whole number"),
        ("rollout.n=true", "rollout.n", "a whole number"),
        ("rollout.top_p=0", "rollout.top_p", "above 0 and at most 1"),
        ("stages.0.optimizer.lr=.nan", "stages.0.optimizer.lr", "above 0"),
        ("model.dtype=fp32", "model.dtype", "one of float32, bfloat16, float16"),
        ("model.path=/nowhere", "model", "exactly one"),
        ("model.name=null", "model", "neither"),
        ("data.modalities=[image, sound]", "data.modalities", "image"),
        ("data.min_pixels=900000", "data.min_pixels", "at most 524288"),
        ("data.train=[]", "stages.0.data.train", "no training data"),
        ("data.train.0.weight=0", "data.train.0.weight", "above 0"),
        ("evaluation.every=5", "data.valid", "nothing to evaluate"),
        ("rewards={accuracy: {weight: 0}}", "rewards", "weight 0"),
        ("rewards.acuracy=1", "rewards.acuracy", "did you mean 'accuracy' or 'label_accuracy'?"),
        ("stages.0.objective.name=sftt", "stages.0.objective.name", "did you mean 'sft'?"),
        ("stages.1.name=first", "stages.0.name, stages.1.name", "2 stages have the same name"),
        ("stages.0.data.domains=[xray]", "stages.0.data.domains", "chest_xray"),
        ("stages.0.train=[encoders.eeg]", "stages.0.train", "did you mean 'encoders.ecg'"),
        ("stages.0.train=[]", "stages.0.train", "nothing is trained"),
        ("stages.0.objective.minibatch=3", "stages.0.objective.minibatch", "1, 2, 4, 8 would do"),
        ("trainer.devices=3", "rollout.prompts", "a multiple of 3"),
        ("trainer.devices=8", "stages.0.objective.minibatch", "a multiple of the 8 processes"),
        ("trainer.devices=many", "trainer.devices", "auto"),
        ("data.root=/nowhere", "data.root", "no such folder"),
        ("name=a/b", "name", "becomes a folder"),
        ("stages=[]", "stages", "at least one stage"),
    ],
)
def test_values_and_cross_checks(override: str, where: str, text: str) -> None:
    key = override.partition("=")[0]
    found = problems(RECIPE, override)
    assert text in found.get(where, found.get(f"{where} (override {override})", f"{key}: only {found}"))


def test_every_problem_is_reported_at_once_and_none_twice() -> None:
    stages = [{"name": "one", "objective": "sftt", "lr": 1}, {"optimizer": {"lr": "fast"}}]
    recipe = changed(stages=stages, model={}, rollout={"n": "4"}, traces="all", extra=1, encoders=5)
    assert set(problems(recipe)) == {
        "stages.0.objective.name",
        "stages.0.lr",
        "stages.1.name",
        "stages.1.objective",
        "stages.1.optimizer.lr",
        "model",
        "rollout.n",
        "traces",
        "extra",
        "encoders",
    }


def test_missing_files(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("")
    (tmp_path / "empty_model").mkdir()
    data = {"root": str(tmp_path), "train": [{"name": "jsonl", "path": "trian.jsonl"}]}
    recipe = changed(data=data, model={"path": "Some/Model"})
    found = problems(recipe)
    assert "did you mean 'train.jsonl'" in found["data.train.0.path"]
    assert "nothing is downloaded" in found["model.path"] and "set model.path" in found["model.path"]
    assert (
        "config.json"
        in problems(recipe, f"model.path={tmp_path}/empty_model")[
            "model.path (override {})".format(f"model.path={tmp_path}/empty_model")
        ]
    )
    assert isinstance(config.load(recipe, files=False), Recipe)


def test_the_data_root_is_relative_to_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "a.jsonl").write_text("")
    monkeypatch.chdir(tmp_path)
    recipe = config.load(changed(data={"root": "here", "train": [{"name": "jsonl", "path": "a.jsonl"}]}))
    assert recipe.data.root == "here"


def test_the_home_folder_is_written_out_once_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("data/a.jsonl", "model/config.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    inside = [{"name": "jsonl", "path": "~/data/a.jsonl"}]
    recipe = config.load(
        changed(
            model={"path": "~/model"},
            encoders={"ecg": {"name": "ecg_conv", "weights": "~/w.safetensors", "width": 8}},
            data={"root": "~/data", "train": [{"name": "jsonl", "path": "a.jsonl"}], "valid": inside},
            stages=[RECIPE["stages"][0] | {"data": {"train": inside}}],
            trainer={"out": "~/runs/{name}"},
        )
    )
    home = str(tmp_path)
    assert (recipe.model.path, recipe.data.root) == (f"{home}/model", f"{home}/data")
    assert recipe.trainer.out == f"{home}/runs/{{name}}" and recipe.data.train[0].arguments == {"path": "a.jsonl"}
    assert recipe.data.valid[0].arguments == {"path": f"{home}/data/a.jsonl"}
    assert recipe.stages[0].data.train is not None
    assert recipe.stages[0].data.train[0].arguments == {"path": f"{home}/data/a.jsonl"}
    assert recipe.encoders["ecg"].arguments == {"weights": f"{home}/w.safetensors", "width": 8}
    found = problems(changed(model={"path": "~/modle"}, data={"root": "~/dat", "train": ["synthetic"]}))
    assert f"looked for {home}/dat" in found["data.root"] and f"looked for {home}/modle" in found["model.path"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nname: b\n", "recipe.yaml:2:1: not readable as YAML: found duplicate key name"),
        ("name: a\nstages:\n  - name: x\n    name: y\n", "duplicate key name"),
        ("name: [a\n", "recipe.yaml:2:1: not readable as YAML"),
        ("- a\n", "a mapping with at least"),
        ("", "stages: this key is missing"),
        ("name: !!python/object:os.system x\n", "not readable as YAML: could not determine a constructor"),
    ],
)
def test_unreadable_yaml_names_line_and_column(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError) as error:
        config.load(write(tmp_path, text))
    assert message in str(error.value)


def test_a_missing_recipe_file_gets_near_matches(tmp_path: Path) -> None:
    write(tmp_path, "")
    with pytest.raises(RecipeError, match=r"did you mean '.*recipe\.yaml'"):
        config.load(tmp_path / "recip.yaml")


def test_numbers_of_yaml_1_1_are_numbers(tmp_path: Path) -> None:
    text = "name: a\nmodel: {name: tiny}\ndata: {train: [synthetic]}\nstages: [{name: s, objective: sft, epochs: 1e-5}]"
    assert config.load(write(tmp_path, text)).stages[0].epochs == 1e-5


def test_interpolation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QOQMED_SEED", "7")
    recipe = changed(
        seed="${oc.decode:${oc.env:QOQMED_SEED}}", encoders={"ecg": {"name": "ecg_conv", "width": "${seed}"}}
    )
    assert config.load(recipe).encoders["ecg"].arguments == {"width": 7}
    found = problems(changed(seed="${sed}", traces="${x", rollout={"name": "${nores:1}"}))
    assert set(found) == {"seed", "traces", "rollout.name"}
    assert "cannot be parsed" in found["traces"] and "cannot be resolved" in found["seed"]
    assert "cannot be resolved" in problems(changed(data={"a": "${data}"}))["data.a"]
    found = problems(changed(seed="${sed}", rollout={"n": "${a.b}"}), "traces=no")
    assert set(found) == {"seed", "rollout.n", "traces (override traces=no)"}


def test_what_is_shown_loads_back_equal_with_secrets_blotted_out(tmp_path: Path) -> None:
    recipe = config.load(changed(callbacks=[{"name": "progress", "text": "a \\${b}", "number": "1e-5", "flag": "on"}]))
    assert recipe.callbacks[0].arguments == {"text": "a ${b}", "number": "1e-5", "flag": "on"}
    assert config.load(write(tmp_path, config.to_yaml(recipe))) == recipe
    assert config.load(config.to_dict(config.load(RECIPE))) == config.load(RECIPE)
    secret = config.load(RECIPE, ["loggers=[{name: csv, api_key: abc, hub: {token: abc}, max_tokens: many}]"])
    shown = config.to_yaml(secret)
    assert "abc" not in shown and shown.count("<redacted>") == 2 and "max_tokens: many" in shown


def test_the_repositorys_recipes_load() -> None:
    recipes = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))
    assert recipes
    for path in recipes:
        config.load(path, files=False)


FAKES = """
from qoqmed.types import Needs

class Sampler:
    needs = Needs(rollouts=True)
    def __init__(self, minibatch: int = 5, epochs: int = 1): self.minibatch = minibatch

class Copier:
    needs = Needs()
    def __init__(self, minibatch: int = 0): self.minibatch = minibatch

class Comparer:
    needs = Needs(group=3)
"""


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A recipe whose parts are fakes, so that a deep check of it imports nothing heavy."""
    monkeypatch.syspath_prepend(tmp_path)
    objectives = {"sampler": "deep_fakes:Sampler", "copier": "deep_fakes:Copier"}
    others = {"datasets": {"rows": "builtins:dict"}, "rewards": {"any": "builtins:dict"}}
    engine = {"rollouts": {"engine": "deep_fakes:Copier"}, "advantages": {"comparer": "deep_fakes:Comparer"}}
    install(tmp_path, "deep-fakes", {"objectives": objectives, **others, **engine}, FAKES)
    return {
        "name": "fake",
        "model": {"name": "tiny"},
        "data": {"train": [{"name": "rows", "weight": 2}]},
        "rewards": {"any": 1},
        "rollout": {"name": "engine", "n": 4, "prompts": 10},
        "evaluation": {"metrics": []},
        "loggers": [],
        "stages": [{"name": "a", "objective": {"name": "sampler"}, "advantage": "comparer"}],
    }


def test_a_sound_recipe_passes_the_deep_check(fakes: dict[str, Any]) -> None:
    assert config.load(fakes, deep=True).stages[0].name == "a"


@pytest.mark.parametrize(
    ("override", "where", "text"),
    [
        ("rollout.n=2", "rollout.n", "at least 3 responses"),
        ("rollout.temperature=0", "rollout.temperature", "above 0"),
        ("rollout.temprature=0.5", "rollout.temprature", "did you mean 'temperature'?"),
        ("rewards={}", "rewards", "no reward judges them"),
        ("stages.0.advantage=null", "stages.0.advantage", "needs an estimator"),
        ("stages.0.objective.minibath=5", "stages.0.objective.minibath", "did you mean 'minibatch'?"),
        ("stages.0.objective.minibatch=five", "stages.0.objective.minibatch", "a whole number"),
        ("rollout.prompts=8", "stages.0.objective.minibatch", "a divisor of the 8 prompts"),
    ],
)
def test_the_deep_check_asks_the_parts_what_they_need(
    fakes: dict[str, Any], override: str, where: str, text: str
) -> None:
    found = problems(fakes, override, deep=True)
    assert text in found.get(where, found.get(f"{where} (override {override})", f"only {found}"))


def test_a_stage_without_rollouts_needs_no_rewards(fakes: dict[str, Any]) -> None:
    stage = {"name": "a", "objective": {"name": "copier"}}
    assert config.load({**fakes, "rewards": {}, "rollout": {"name": "engine", "n": 1}, "stages": [stage]}, deep=True)


def test_a_shallow_check_imports_no_plugin(fakes: dict[str, Any]) -> None:
    import sys

    sys.modules.pop("deep_fakes", None)
    config.load(fakes)
    assert "deep_fakes" not in sys.modules


def test_loading_leaves_the_content_and_the_environment_alone() -> None:
    before, environment = deepcopy(RECIPE), dict(os.environ)
    config.load(RECIPE, ["stages.0.optimizer.lr=1e-5", "rollout.n=5"])
    assert before == RECIPE and environment == dict(os.environ)


# ---- base


def recipe_files(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


BASE = """
name: base
seed: 7
model: {name: tiny}
data: {train: [{name: synthetic, size: 10}]}
rewards: {accuracy: 1.0, format: 0.5}
stages:
  - name: a
    objective: {name: policy_gradient, kl_weight: 0.5}
    advantage: {name: drpo, max_clusters: 3}
    optimizer: {lr: 0.1}
  - {name: b, extends: a, steps: 4}
"""


def test_a_recipe_upon_another(tmp_path: Path) -> None:
    own = "base: base.yaml\nname: own\nrewards: {format: 0.1}\nstages:\n"
    own += "  - {name: a, objective: {kl: k1}, advantage: rloo}\n  - {name: c, objective: sft}\n"
    more = "base: own.yaml\nname: more\nstages: [{name: b, steps: 9}]\n"
    recipe = config.load(recipe_files(tmp_path, base=BASE, own=own, more=more) / "more.yaml", ["seed=8"])
    assert (recipe.name, recipe.seed) == ("more", 8)
    assert {key: reward.weight for key, reward in recipe.rewards.items()} == {"accuracy": 1.0, "format": 0.1}
    assert [(stage.name, stage.steps) for stage in recipe.stages] == [("a", None), ("b", 9), ("c", None)]
    for stage in recipe.stages[:2]:
        assert stage.objective.arguments == {"kl_weight": 0.5, "kl": "k1"} and stage.optimizer.lr == 0.1
        assert stage.advantage is not None and (stage.advantage.name, stage.advantage.arguments) == ("rloo", {})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("base: own.yaml\nname: own\n", "cannot be its own base"),
        ("base: other.yaml\nname: own\n", "no such recipe file"),
        ("base: 3\nname: own\n", "not a recipe to start from"),
        ("base: loop.yaml\nname: own\n", "cannot be its own base"),
    ],
)
def test_a_base_that_cannot_be(text: str, told: str, tmp_path: Path) -> None:
    folder = recipe_files(tmp_path, own=text, loop="base: own.yaml\nname: loop\n")
    with pytest.raises(RecipeError, match=told):
        config.load(folder / "own.yaml")


def test_another_engine_keeps_no_argument_of_the_old_one() -> None:
    rollout = {"name": "vllm", "n": 3, "kv_cache_mb": 64}
    recipe = config.load(changed(rollout=rollout), ["rollout.batch=9", "rollout.name=torch"])
    assert (recipe.rollout.name, recipe.rollout.n, recipe.rollout.arguments) == ("torch", 3, {"batch": 9})
    same = config.load(changed(rollout=rollout), ["rollout.name=vllm"])
    assert same.rollout.arguments == {"kv_cache_mb": 64}


def test_a_base_with_another_engine_keeps_how_it_samples(tmp_path: Path) -> None:
    base = BASE + "rollout: {n: 2, max_new_tokens: 8, batch: 4}\n"  # the engine torch, by default
    own = "base: base.yaml\nname: own\nrollout: {name: vllm, kv_cache_mb: 64}\n"
    recipe = config.load(recipe_files(tmp_path, base=base, own=own) / "own.yaml")
    rollout = recipe.rollout
    assert (rollout.name, rollout.n, rollout.max_new_tokens, rollout.arguments) == ("vllm", 2, 8, {"kv_cache_mb": 64})
    quoted = config.load(tmp_path / "base.yaml", ["rollout.name='torch'"]).rollout
    assert quoted.arguments == {"batch": 4}
    assert config.load(tmp_path / "base.yaml", ["rollout.name=vllm"]).rollout.arguments == {}
