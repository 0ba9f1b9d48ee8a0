from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import qoqmed
from qoqmed import cli
from qoqmed.doctor import Finding
from qoqmed.errors import DataError, Problem

RECIPE = """
name: small
model: {name: tiny}
data: {train: [{name: synthetic, size: 8}]}
stages: [{name: only, objective: sft, optimizer: {lr: 1e-3}}]
"""
METRICS = {
    "overall": {"n": 3, "f1": 0.51234, "accuracy": float("nan")},
    "domains": {"ecg": {"n": 3, "f1": 0.5, "accuracy": 1.0}, "ct": {"n": 5, "f1": 0.25}},
    "datasets": {"ecg/a": {"n": 1, "f1": 0.0}, "ecg/b": {"n": 2, "f1": 1.0}, "ct/a": {"n": 4}, "ct/b": {"n": 1}},
}
ADVANTAGES = {
    "advantages": [0.5, -0.5],
    "domains": {
        "ecg": {
            "n": 1,
            "mean_reward": 0.5,
            "temperature": 0.25,
            "clusters": [
                {"n": 1, "mean_reward": 0.5, "temperature": 0.125, "questions": ["q"], "scale": 32.0, "share": 1.0}
            ],
            "share": 1.0,
            "hit_cap": False,
            "removed": None,
        }
    },
    "kl": {"threshold": None, "removed": None},
    "questions": {
        "q": {
            "domain": "ecg",
            "cluster": 0,
            "mean_reward": 0.5,
            "scale": 32.0,
            "relative_scale": 1.0,
            "share": 1.0,
        }
    },
    "warnings": [],
}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE)
    return path


class Calls:
    """Stands in for a module of floor 4: records the calls and gives or raises what it was told to."""

    def __init__(self, result: Any) -> None:
        self.result, self.seen = result, []

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.seen.append((arguments, options))
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result


def stand_in(monkeypatch: pytest.MonkeyPatch, module: str, name: str, result: Any = None) -> Calls:
    calls = Calls(result)
    monkeypatch.setitem(sys.modules, f"qoqmed.{module}", SimpleNamespace(**{name: calls}))  # type: ignore[arg-type]
    return calls


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main([str(word) for word in words])
    return int(stop.value.code or 0)


def test_fit_passes_everything_on(monkeypatch: pytest.MonkeyPatch, recipe: Path) -> None:
    calls = stand_in(monkeypatch, "fit", "fit")
    words = ["seed=-1", "--dry-run", "rollout.n=2", "--resume", "auto", "--stage", "only", "--from", "runs/x"]
    assert run("fit", recipe, *words) == 0
    (arguments, options) = calls.seen[0]
    assert arguments == (recipe,)
    assert options == {
        "overrides": ["seed=-1", "rollout.n=2"],
        "resume": "auto",
        "dry_run": True,
        "stage": "only",
        "from_run": "runs/x",
        "launch": True,
    }


def test_an_interrupted_fit_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, recipe: Path, capsys: Any) -> None:
    stand_in(monkeypatch, "fit", "fit", KeyboardInterrupt("saved; resume with --resume runs/x"))
    assert run("fit", recipe) == 130
    assert "saved; resume with --resume runs/x" in capsys.readouterr().err


def test_a_users_error_is_one_message_and_exit_2(monkeypatch: pytest.MonkeyPatch, recipe: Path, capsys: Any) -> None:
    stand_in(monkeypatch, "fit", "fit", DataError(Problem("the image is corrupt [x]", "case_7", got="a.png")))
    assert run("fit", recipe) == 2
    text = capsys.readouterr().err
    assert text == "error: case_7: the image is corrupt [x]\n    got:      a.png\n"


@pytest.mark.parametrize("place", [0, 1, 2])
def test_debug_shows_the_traceback_wherever_it_stands(
    monkeypatch: pytest.MonkeyPatch, recipe: Path, capsys: Any, place: int
) -> None:
    stand_in(monkeypatch, "fit", "fit", DataError(Problem("corrupt")))
    words = ["fit", str(recipe)]
    words.insert(place, "--debug")
    assert run(*words) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_failure_of_the_work_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, recipe: Path) -> None:
    stand_in(monkeypatch, "fit", "fit", RuntimeError("out of memory"))
    with pytest.raises(RuntimeError, match="out of memory"):  # Python prints it and exits with 1
        cli.main(["fit", str(recipe)])


def test_several_problems_are_counted(recipe: Path, capsys: Any) -> None:
    assert run("recipe", "check", recipe, "sed=1", "rollout.n=0") == 2
    text = capsys.readouterr().err
    assert text.startswith("2 errors:\n")
    assert "sed (override sed=1): unknown key" in text and "rollout.n (override rollout.n=0): out of range" in text


def test_recipe_check_and_show(recipe: Path, capsys: Any, tmp_path: Path) -> None:
    assert run("recipe", "check", recipe) == 0
    assert "no problem in small with 1 stages" in capsys.readouterr().out
    assert run("recipe", "show", recipe, "seed=3") == 0
    shown = tmp_path / "shown.yaml"
    shown.write_text(capsys.readouterr().out)
    assert run("recipe", "show", shown) == 0
    assert capsys.readouterr().out == shown.read_text()
    assert "seed: 3\n" in shown.read_text() and "lr: 0.001" in shown.read_text()


def test_an_unknown_option_is_an_error_of_input(recipe: Path, capsys: Any) -> None:
    assert run("fit", recipe, "--resum", "auto") == 2
    assert "--resume" in capsys.readouterr().err


def test_metrics_as_table_and_as_json(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    calls = stand_in(monkeypatch, "offline", "metrics", METRICS)
    assert run("metrics", "p.jsonl") == 0
    rows = [line.strip("│ ").replace("│", " ").split() for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert rows == [
        ["overall", "-", "0.5123"],
        ["ecg", "1", "0.5"],
        ["a", "-", "0"],
        ["b", "-", "1"],
        ["ct", "-", "0.25"],
        ["a", "-", "-"],
        ["b", "-", "-"],
    ]
    assert run("metrics", "p.jsonl", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["overall"] == {"n": 3, "f1": 0.51234, "accuracy": None}
    assert printed["domains"] == METRICS["domains"]
    assert calls.seen[0] == ((Path("p.jsonl"),), {"metric": "clinical"})


def test_eval(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    calls = stand_in(monkeypatch, "evaluate", "evaluate", METRICS)
    assert run("eval", "runs/x", "evaluation.limit=3", "--split", "valid", "--json") == 0
    given = {"overrides": ["evaluation.limit=3"], "split": "valid", "predictions": None}
    assert calls.seen == [(("runs/x",), given)]
    assert json.loads(capsys.readouterr().out)["datasets"] == METRICS["datasets"]


def test_advantage_reads_arguments_as_yaml(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    calls = stand_in(monkeypatch, "offline", "estimate", ADVANTAGES)
    words = ["r.jsonl", "--estimator", "drpo", "cluster=false", "max_clusters=3"]
    assert run("advantage", *words, "--json") == 0
    given = (Path("r.jsonl"), "drpo", {"cluster": False, "max_clusters": 3})
    assert calls.seen == [(given, {"plot": None})]
    assert json.loads(capsys.readouterr().out) == ADVANTAGES
    assert run("advantage", *words, "--plot", "p.png") == 0
    assert calls.seen[1] == (given, {"plot": Path("p.png")})
    table = capsys.readouterr().out
    assert "ecg" in table and "cluster 1" in table and "0.125" in table and "no KL damping" in table


def test_advantage_needs_an_estimator(capsys: Any) -> None:
    assert run("advantage", "r.jsonl") == 2
    assert "--estimator" in capsys.readouterr().err


@pytest.mark.parametrize(("broken", "code"), [(True, 1), (False, 0)])
def test_doctor_exits_with_1_when_a_needed_part_is_broken(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, broken: bool, code: int
) -> None:
    findings = [
        Finding("extra video", "missing", "av missing", "pip install 'qoqmed[video]'"),
        Finding("torch", "missing" if broken else "ok", "2.13.0", needed=True),
    ]
    monkeypatch.setattr("qoqmed.doctor.examine", lambda: findings)
    assert run("doctor") == code
    assert "pip install 'qoqmed[video]'" in capsys.readouterr().out
    assert run("doctor", "--json") == code
    assert json.loads(capsys.readouterr().out)[0]["mend"] == "pip install 'qoqmed[video]'"


def test_version_and_bare_call(capsys: Any) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"qoqmed {qoqmed.__version__}\n"
    assert run("plugins", "reward") == 2
    assert "did you mean 'rewards'" in capsys.readouterr().err


def test_plugins_of_one_group_and_one_plugin(capsys: Any) -> None:
    assert run("plugins", "advantages", "--json") == 0
    assert {"drpo", "grpo"} <= {one["name"] for one in json.loads(capsys.readouterr().out)}
    assert run("plugins", "objectives", "sft", "--json") == 0
    described = json.loads(capsys.readouterr().out)
    assert described["distribution"] == "qoqmed"
    assert {"name": "epochs", "type": "a whole number", "required": False, "default": "1"} in described["arguments"]


@pytest.mark.parametrize(
    "words", [["--help"], ["fit", "--help"], ["--version"], ["plugins"], ["recipe", "check"], ["recipe", "show"]]
)
def test_these_commands_load_no_torch(words: list[str], recipe: Path) -> None:
    words = [*words, str(recipe)] if words[0] == "recipe" else words
    code = (
        "import sys\nfrom qoqmed.cli import main\n"
        f"try:\n    main({words!r})\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "heavy = {'torch', 'transformers', 'lightning', 'torchmetrics', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout
