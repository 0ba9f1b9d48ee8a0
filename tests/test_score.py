"""`qoqmed score`: rewards by name and by recipe, per domain, and one response explained. Values by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_distribution import install
from tiny_run import command

import qoqmed
from qoqmed.errors import UserError
from qoqmed.scoring import named

BOXED = '<think>Dark.</think>\n```json\n[{"bbox_2d": [10, 10, 30, 50], "label": "mass"}]\n```\n\\boxed{mass}'
ROW: dict[str, Any] = {"target": ["mass"], "label_space": ["mass", "normal"], "width": 100, "height": 80}
ROWS = [
    {"id": "seen", "response": BOXED, "boxes": [[10, 10, 30, 30]], "domain": "ct", **ROW},
    {"id": "bare", "response": r"\boxed{mass}", "boxes": [[0, 0, 50, 50]], "domain": "ecg", **ROW},
    {"id": "blind", "response": "I see nothing.", **ROW},
]
RECIPE = {
    "name": "scored",
    "model": {"path": "is/not/there"},
    "data": {"root": "nor/is/this", "train": [{"name": "jsonl", "path": "train.jsonl"}]},
    "rewards": {
        "accuracy": 0.5,
        "where": {"name": "iou", "weight": 0.5, "domains": {"ecg": 0.0, "ct": 1.5}},
        "format": {"weight": 0.0},
    },
    "stages": [{"name": "s", "objective": "sft"}],
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "r.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_line_for_each_response(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("score", file, "--json") == 0
    seen, bare, blind = lines(capsys.readouterr().out)
    assert seen.keys() == {"id", "score", "rewards", "reasons"}
    assert seen["rewards"] == {"accuracy": 1.0, "iou": pytest.approx(0.5), "format": 1.0}
    assert seen["score"] == pytest.approx(0.6 + 0.1 + 0.2)
    assert bare["score"] == pytest.approx(0.6)  # without a box
    assert (blind["id"], blind["score"], blind["rewards"]["iou"]) == ("blind", 0.0, None)
    assert lines(json.dumps(qoqmed.score(file)[0])) == [seen]


def test_rewards_by_name(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("score", file, "--reward", "format", "--reward", "iou=3", "--json") == 0
    seen, *_ = lines(capsys.readouterr().out)
    assert seen["rewards"].keys() == {"format", "iou"} and seen["score"] == pytest.approx((1 + 3 * 0.5) / 4)
    assert named(["a", "b=2", "c=1e-1"]) == {"a": None, "b": 2, "c": 0.1}
    for wrong in ("a=", "a=much", "a=true", "a=-1", "a=.nan"):
        assert command("score", file, "--reward", wrong.replace("a", "iou", 1)) == 2
    assert command("score", file, "--reward", "acuracy") == 2
    assert "did you mean 'accuracy'" in capsys.readouterr().err


def test_the_rewards_of_a_recipe_that_is_elsewhere(
    file: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its data and its model are not needed. iou counts three times as much in ct, and is not asked in ecg."""
    assert command("score", file, recipe, "--json") == 0
    seen, bare, blind = lines(capsys.readouterr().out)
    assert seen["score"] == pytest.approx((0.5 + 1.5 * 0.5) / 2)
    assert bare["rewards"] == {"accuracy": 1.0, "where": None, "format": 0.0} and bare["score"] == 1.0
    assert bare["reasons"]["where"] == "where has the weight 0 in ecg"
    assert blind["score"] == 0.0
    assert command("score", file, recipe, "rewards.where.domains={}", "--json") == 0
    assert lines(capsys.readouterr().out)[1]["score"] == pytest.approx(0.5)  # no box was predicted
    only = qoqmed.score(file, {"where": 2.0, "accuracy": None}, recipe=recipe)
    assert only[2]["rewards"].keys() == {"where", "accuracy"}
    with pytest.raises(UserError, match=r"no reward 'iou'(.|\n)*accuracy, format, where"):
        qoqmed.score(file, {"iou": None}, recipe=recipe)


def test_a_response_explained(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("score", file, "--explain", "seen") == 0
    told = capsys.readouterr().out
    for part in ("Dark.", "100 x 80", "10", "50", "mass", "1 right of 1 predicted", "flaws: none"):
        assert part in told, part
    assert command("score", file, "--explain", "blind") == 0
    told = capsys.readouterr().out
    assert "boxed_missing" in told and "not applicable" in told and "no answer was found" in told
    assert command("score", file, "--explain", "seen", "--json") == 0
    (one,) = lines(capsys.readouterr().out)
    assert one["reading"]["boxes"] == [{"label": "mass", "bbox_2d": [10, 10, 30, 50]}]
    assert one["reading"]["labels"] == ["mass"] and one["reading"]["flaws"] == [] and one["response"] == BOXED
    assert one["statuses"] == {"accuracy": "ok", "iou": "ok", "format": "ok"}
    assert command("score", file, "--explain", "seem") == 2
    assert "did you mean 'seen'" in capsys.readouterr().err


def test_a_table(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("score", file) == 0
    told = capsys.readouterr().out
    assert all(part in told for part in ("mean of 3", "0.9", "not applicable", "no answer was found"))
    file.write_text("\n")
    assert command("score", file) == 2 and "no responses" in capsys.readouterr().err


def test_grounding_and_wrong_rows(tmp_path: Path) -> None:
    row = {**ROWS[0], "label_space": [], "target": [], "task": "grounding"}
    path = tmp_path / "g.jsonl"
    path.write_text(json.dumps(row))
    (one,) = qoqmed.score(path)
    assert one["rewards"] == {"accuracy": None, "iou": pytest.approx(0.5), "format": 1.0}
    for change, match in [
        ({"task": "groundin"}, "did you mean 'grounding'"),
        ({"attributes": []}, "'attributes' is no object"),
        ({"domain": 3}, "'domain' is no text"),
        ({"width": True}, "no number of pixels"),
        ({"label_space": ["mass", "mass"]}, "names a label twice"),
    ]:
        path.write_text(json.dumps({**row, **change}))
        with pytest.raises(UserError, match=match):
            qoqmed.score(path)


def test_every_wrong_line_is_told(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes: list[dict[str, Any]] = [{"width": 0.5}, {}, {"task": "diagnosi"}]
    rows = [{**row, **change} for row, change in zip(ROWS, changes, strict=True)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert command("score", file) == 2
    told = capsys.readouterr().err
    assert "r.jsonl:1: 'width' is no number" in told and "r.jsonl:3 task: no such plugin" in told and ":2" not in told
    assert command("score", file, "--explain", "bare") == 0  # the other lines are not read


def test_what_could_not_be_scored_is_told(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = "class Sour:\n    low, high = 0.0, 1.0\n    def score(self, *args):\n        raise KeyError('lemon')\n"
    (tmp_path / "site").mkdir()
    install(tmp_path / "site", "sour", {"rewards": {"sour": "sour:Sour"}}, code)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert command("score", file, "--reward", "sour", "--reward", "accuracy", "--json") == 0
    told = capsys.readouterr()
    assert [row["score"] for row in lines(told.out)] == [None] * 3
    assert told.err.count("reward sour: KeyError: 'lemon'") == 1
    assert command("score", file, "--reward", "sour", "--explain", "bare") == 0
    assert "Traceback" in capsys.readouterr().out
