"""A plugin package as a third party writes it, installed from its folder: found, used, blamed for its own mistakes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_distribution import install

from qoqmed import __version__, cli, registry
from qoqmed.config import load
from qoqmed.types import Rollout

PACKAGE = Path(__file__).parent / "plugins" / "qoqmed_tiny_reward"
RECIPE = """
name: third
model: {name: tiny}
data: {train: [{name: synthetic, size: 8}]}
rewards: {accuracy: 0.5, brief: {weight: 0.5, limit: 100}}
rollout: {name: torch, n: 2, prompts: 4}
stages: [{name: only, objective: policy_gradient, advantage: grpo}]
loggers: []
evaluation: {metrics: []}
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that pip installed the package into."""
    folder = tmp_path_factory.mktemp("site")
    options = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--no-compile", "--target", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(PACKAGE)], check=True, capture_output=True)
    return folder


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "third.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def installed(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(site)
    for name in [name for name in sys.modules if name.startswith("qoqmed_tiny_reward")]:
        monkeypatch.delitem(sys.modules, name)


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main([str(word) for word in words])
    return int(stop.value.code or 0)


def test_a_new_process_finds_it(site: Path) -> None:
    command = [sys.executable, "-m", "qoqmed", "plugins", "rewards", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert {(one["name"], one["distribution"], one["version"]) for one in json.loads(done.stdout)} >= {
        ("brief", "qoqmed-tiny-reward", "0.3.0"),
        ("accuracy", "qoqmed", __version__),
    }


def test_it_is_listed_and_described(installed: None, capsys: Any) -> None:
    assert run("plugins") == 0
    assert "qoqmed-tiny-reward 0.3.0" in capsys.readouterr().out
    assert run("plugins", "rewards", "brief") == 0
    shown = capsys.readouterr().out
    assert "1 for a response of at most `limit` characters" in shown
    assert "limit" in shown and "a whole number" in shown and "200" in shown


def test_a_recipe_uses_it(installed: None, recipe: Path) -> None:
    assert run("recipe", "check", recipe, "--deep") == 0
    reward = registry.make("rewards", load(recipe).rewards["brief"].node)
    rollouts = [Rollout("case", index, (), "x" * length) for index, length in enumerate((100, 101))]
    assert [verdict.value for verdict in reward.score([], rollouts, [])] == [1.0, 0.0]


def test_without_it_the_recipe_says_what_is_installed(recipe: Path, capsys: Any) -> None:
    assert run("recipe", "check", recipe) == 2
    text = capsys.readouterr().err
    assert "rewards.brief: no such plugin in qoqmed.rewards" in text
    assert "installed: accuracy, exact_match, format, " in text


BLAMED = "of qoqmed-tiny-reward 0.3.0 (qoqmed."


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("rewards.brief.limt=5", ["rewards.brief.limt (override rewards.brief.limt=5)", "did you mean 'limit'?"]),
        ("rewards.brief.limit=many", ["rewards.brief.limit", "a whole number"]),
        ("rewards.fails_at_import=1", ["No module named 'a_package_that_nobody_has'", "unfinished.py:3", BLAMED]),
        ("rewards.is_not_there=1", ["AttributeError", "NoSuchReward", "cannot be imported", BLAMED]),
        ("stages.0.advantage=raises", ["ZeroDivisionError: no luck today", "__init__.py:", "constructed", BLAMED]),
        ("stages.0.advantage=careless", ["'careless' does not keep its contract", "no `needs`"]),
    ],
)
def test_its_mistakes_are_reported_with_its_name(
    installed: None, recipe: Path, capsys: Any, override: str, expected: list[str]
) -> None:
    assert run("recipe", "check", recipe, override, "--deep") == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ") and "Traceback" not in text
    assert all(part in text for part in expected), text


def test_a_broken_plugin_takes_nothing_else_down(installed: None, capsys: Any) -> None:
    assert run("plugins") == 0
    assert run("plugins", "rewards", "fails_at_import") == 2
    assert BLAMED in capsys.readouterr().err


def test_the_same_name_from_a_second_distribution_is_refused(
    installed: None, recipe: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "rival-reward", {"rewards": {"brief": "rival_reward:Brief"}}, version="7.0")
    monkeypatch.syspath_prepend(tmp_path)
    assert run("recipe", "check", recipe) == 2
    text = capsys.readouterr().err
    assert "qoqmed-tiny-reward 0.3.0" in text and "rival-reward 7.0" in text
    assert run("plugins", "rewards") == 0
    assert capsys.readouterr().out.count("offered twice") == 2
