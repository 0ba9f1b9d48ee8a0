"""Evaluation of a run, a recipe and a checkpoint folder; the exchange formats of `docs`, read and written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_run import OPTIONS, RECIPE, Place, command, evaluations, place

import qoqmed
from qoqmed.errors import DataError, MediaError, PluginError, UserError
from qoqmed.evaluate import evaluate
from qoqmed.fit import fit
from qoqmed.offline import metrics

pytestmark = pytest.mark.usefixtures("tiny")

PREDICTIONS = [
    {"id": "a", "domain": "ecg", "dataset": "x", "label_space": ["p", "q"], "target": ["p"], "prediction": ["p"]},
    {"id": "b", "domain": "ecg", "dataset": "x", "label_space": ["p", "q"], "target": ["q"], "prediction": []},
    {"id": "c", "domain": "ct", "dataset": "y", "label_space": ["r"], "target": ["r"], "prediction": ["r", "zebra"]},
]
FIGURES = {"accuracy", "f1", "precision", "recall", "sensitivity", "specificity"}
REWARDS = [
    {"question": question, "domain": domain, "reward": reward, "kl": kl}
    for question, domain, reward, kl in [
        ("q1", "ecg", 1.0, 0.1),
        ("q1", "ecg", 0.0, 0.2),
        ("q2", "ct", 0.5, 0.0),
        ("q2", "ct", 0.25, 0.3),
    ]
]
THOUGHT = "<think>x</think>\n```json\n"
RESPONSES: list[dict[str, Any]] = [
    {
        "id": "boxed",
        "response": THOUGHT + '[{"bbox_2d": [10, 10, 30, 50], "label": "mass"}]\n```\n\\boxed{mass}',
        "target": ["mass"],
        "label_space": ["mass", "normal"],
        "boxes": [[10, 10, 30, 50]],
        "width": 100,
        "height": 80,
    },
    {
        "id": "masked",
        "response": THOUGHT + '[{"bbox_2d": [0, 0, 50, 80], "label": "mass"}]\n```\n\\boxed{normal}',
        "target": ["mass"],
        "label_space": ["mass", "normal"],
        "mask": "mask.png",
        "width": 100,
        "height": 80,
    },
    {"id": "plain", "response": "", "target": ["normal"], "label_space": ["mass", "normal"], "width": 8, "height": 8},
]


def lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def done(tiny: None, tmp_path_factory: pytest.TempPathFactory) -> Place:
    here = place(tmp_path_factory.mktemp("done"), stages=[RECIPE["stages"][0]])
    fit(here.recipe)
    return here


def test_a_run_and_its_recipe_give_what_the_loop_gave(done: Place, tmp_path: Path) -> None:
    start, end = evaluations(done.run)
    assert evaluate(done.recipe) == start["greedy"]
    assert evaluate(done.run, predictions=tmp_path / "p.jsonl") == end["greedy"]
    assert (tmp_path / "p.jsonl").read_text() == (done.run / "predictions-valid.jsonl").read_text()
    assert start["greedy"]["overall"]["rewards/vowels"] != end["greedy"]["overall"]["rewards/vowels"]
    offline = metrics(tmp_path / "p.jsonl")
    assert offline["overall"].items() <= end["greedy"]["overall"].items()
    assert offline["datasets"] == end["greedy"]["datasets"]


def test_the_test_split_goes_first_and_another_can_be_asked_for(done: Place) -> None:
    other = "data.test=[{name: synthetic, size: 1, seed: 5, domains: [ct]}]"
    assert list(evaluate(done.run, [other])["domains"]) == ["ct"]
    assert list(evaluate(done.run, [other], split="valid")["domains"]) == ["ecg", "fundus"]
    with pytest.raises(UserError, match=r"no split 'test'(.|\n)*valid(.|\n)*data.test"):
        evaluate(done.run, split="test")


def test_sampled_results_where_greedy_ones_are_not_wanted(done: Place) -> None:
    sampled = evaluate(done.run, ["evaluation.greedy=false", "evaluation.sampled=true", "evaluation.limit=2"])
    assert sampled["overall"]["support"] == 2


def test_eval_on_the_command_line(done: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("eval", done.run, "evaluation.limit=2", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["overall"]["support"] == 2 and told.keys() == {"overall", "domains", "datasets"}


def test_a_transformers_folder(done: Place, tmp_path: Path) -> None:
    """The same weights as the recipe's untrained policy, saved the way transformers saves a checkpoint."""
    from tiny_policy import plain_model

    from qoqmed.policy import tiny
    from qoqmed.policy.qwen2_5_vl import ClinicalQwen2_5_VL

    size = tiny.TinySize(**OPTIONS)
    folder = tmp_path / "model"
    tokenizer = tiny.tokenizer([], size)
    tokenizer.save_pretrained(folder)
    plain_model(tiny.model(ClinicalQwen2_5_VL, tokenizer, size, RECIPE["seed"])).save_pretrained(folder)
    tiny.image_processor().save_pretrained(folder)
    words = [f"seed={RECIPE['seed']}", "encoders.ecg.name=ecg_conv", "rollout.max_new_tokens=8", "evaluation.batch=4"]
    keys = [f"data.{key}={json.dumps(value)}" for key, value in RECIPE["data"].items() if key != "train"]
    rewards = f"rewards={json.dumps(RECIPE['rewards'])}"
    assert evaluate(folder, [*words, *keys, rewards]) == evaluate(done.recipe)


def test_what_cannot_be_evaluated(tmp_path: Path, done: Place) -> None:
    with pytest.raises(UserError, match=r"nothing here can be loaded(.|\n)*recipe.yaml(.|\n)*config.json"):
        evaluate(tmp_path)
    with pytest.raises(UserError, match="no such recipe file"):
        evaluate(tmp_path / "nowhere.yaml")
    with pytest.raises(UserError, match="did you mean 'evaluation'"):
        evaluate(done.run, ["evaluaton.limit=3"])


def test_a_bad_row_stops_or_is_left_out(tmp_path: Path, done: Place) -> None:
    Image.fromarray(np.full((56, 56, 3), 90, np.uint8)).save(tmp_path / "a.png")
    rows = [
        {"id": name, "domain": "fundus", "media": {"image": f"{name}.png"}, "labels": ["x"], "label_space": ["x", "y"]}
        for name in ("a", "b")
    ]
    lines(tmp_path / "rows.jsonl", rows)
    words = [f"data.root={tmp_path}", "data.test=[{name: jsonl, path: rows.jsonl}]"]
    with pytest.raises(MediaError, match=r"b: (.|\n)*b.png"):
        evaluate(done.run, words)
    with pytest.warns(UserWarning, match=r"1 cases were left out(.|\n)*b: (.|\n)*b.png"):
        assert evaluate(done.run, [*words, "data.on_error=skip"])["overall"]["support"] == 1


def test_metrics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = lines(tmp_path / "p.jsonl", PREDICTIONS)
    result = metrics(path)
    assert result.keys() == {"overall", "domains", "datasets"}
    assert result["domains"].keys() == {"ecg", "ct"} and result["datasets"].keys() == {"ecg/x", "ct/y"}
    for figures in (result["overall"], *result["domains"].values(), *result["datasets"].values()):
        assert figures.keys() >= FIGURES and all(isinstance(value, float) for value in figures.values())
    assert result["domains"]["ecg"]["f1"] == 0.5 and result["domains"]["ct"]["f1"] == 1  # p: 1, q: 0; r: 1
    assert result["overall"]["f1"] == 0.75
    assert command("metrics", path, "--json") == 0
    assert json.loads(capsys.readouterr().out) == result


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("{", r"p.jsonl:4: no JSON"),
        ("[1]", r"p.jsonl:4: not an object"),
        ({**PREDICTIONS[0], "id": "z", "target": "p"}, r"p.jsonl:4 target: wrong type(.|\n)*a list of texts"),
        ({**PREDICTIONS[0], "id": "z", "target": ["o"]}, r"p.jsonl:4 target: label outside its space(.|\n)*'o'"),
        ({**PREDICTIONS[0], "id": "z", "label_space": []}, r"p.jsonl:4 label_space: no labels"),
        (PREDICTIONS[0], r"p.jsonl:4 id: id given twice(.|\n)*line 1"),
        ({"id": "z", "domains": "ecg"}, r"p.jsonl:4 domain: key missing(.|\n)*did you mean 'domains'"),
    ],
)
def test_wrong_predictions(tmp_path: Path, line: Any, match: str) -> None:
    with pytest.raises(DataError, match=match):
        metrics(lines(tmp_path / "p.jsonl", [*PREDICTIONS, line]))


def test_estimate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = lines(tmp_path / "r.jsonl", REWARDS)
    result = qoqmed.estimate(path, "drpo", {"max_clusters": 3})
    assert result.keys() >= {"advantages", "domains", "kl", "questions"} and len(result["advantages"]) == 4
    assert result["advantages"][0] > 0 > result["advantages"][1]
    assert isinstance(result["kl"]["threshold"], float)
    for domain in ("ecg", "ct"):
        stats = result["domains"][domain]
        assert stats.keys() >= {"n", "mean_reward", "temperature", "clusters"} and stats["n"] == 1
        assert stats["clusters"][0].keys() >= {"n", "mean_reward", "temperature", "questions"}
    assert result["domains"]["ct"]["clusters"][0]["questions"] == ["q2"]
    without_kl = [{name: value for name, value in row.items() if name != "kl"} for row in REWARDS]
    unread = qoqmed.estimate(lines(tmp_path / "s.jsonl", without_kl), "drpo")
    assert unread["kl"]["threshold"] is None and "the table has none" in unread["warnings"][0]
    assert command("advantage", path, "--estimator", "drpo", "max_clusters=3", "--json") == 0
    assert json.loads(capsys.readouterr().out) == result


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("nonsense", r"r.jsonl:6: not JSON(.|\n)*nonsense(.|\n)*one JSON object a line"),
        ("3", r"r.jsonl:6: not a JSON object"),
        ({**REWARDS[0], "reward": "1"}, r"r.jsonl:6: reward is not a finite number(.|\n)*'1'"),
        ({**REWARDS[0], "domain": "mri"}, r"r.jsonl:6: question 'q1' is in two domains"),
        ({"question": "q", "domain": "ct", "reward": 1.0}, r"r.jsonl:6: kl is missing"),
        ({"reward": 1.0, "kl": 0.0}, r"r.jsonl:6: question is missing(.|\n)*r.jsonl:6: domain is missing"),
    ],
)
def test_wrong_rewards(tmp_path: Path, line: Any, match: str) -> None:
    """Blank lines count as lines."""
    with pytest.raises(DataError, match=match):
        qoqmed.estimate(lines(tmp_path / "r.jsonl", [*REWARDS, "", line]), "drpo")


def test_a_line_may_hold_any_character_and_a_file_must_be_utf_8(tmp_path: Path) -> None:
    rows = [row | {"question": "q\u2028one"} for row in REWARDS[:2]]
    path = tmp_path / "r.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    assert len(qoqmed.estimate(path, "grpo")["advantages"]) == 2
    path.write_bytes(b'{"question": "\xff"}\n')
    with pytest.raises(DataError, match=r"r.jsonl:1: not JSON(.|\n)*UTF-8"):
        qoqmed.estimate(path, "grpo")
    with pytest.raises(DataError, match="does not exist"):
        qoqmed.estimate(tmp_path / "nowhere.jsonl", "grpo")
    with pytest.raises(PluginError, match="did you mean 'grpo'"):
        qoqmed.estimate(lines(path, REWARDS), "gropo")


def test_score(tmp_path: Path) -> None:
    inside = np.zeros((80, 100), np.uint8)
    inside[:, :25] = 255  # half of the predicted box [0, 0, 50, 80]
    Image.fromarray(inside).save(tmp_path / "mask.png")
    boxed, masked, plain = qoqmed.score(lines(tmp_path / "r.jsonl", RESPONSES))
    assert boxed["id"] == "boxed" and boxed["rewards"] == {"accuracy": 1.0, "iou": pytest.approx(1.0), "format": 1.0}
    assert boxed["score"] == pytest.approx(1.0) and boxed["reasons"].keys() == boxed["rewards"].keys()
    assert masked["rewards"] == {"accuracy": 0.0, "iou": pytest.approx(0.5), "format": 0.0}
    assert masked["score"] == pytest.approx(0.2 * 0.5) and "no box for normal" in masked["reasons"]["format"]
    assert plain["rewards"] == {"accuracy": 0.0, "iou": None, "format": 0.0} and plain["score"] == 0.0
    assert plain["reasons"]["accuracy"] == "no answer was found"
    assert json.loads(json.dumps(boxed)) == boxed
    alone = qoqmed.score(tmp_path / "r.jsonl", {"vowels": 2.0})
    assert [row["rewards"].keys() for row in alone] == [{"vowels"}] * 3


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"width": None}, r"r.jsonl:2: width missing(.|\n)*label_space"),
        ({"width": 0}, r"r.jsonl:2: 'width' is no number of pixels(.|\n)*from 1"),
        ({"height": 1.5}, r"r.jsonl:2: 'height' is no number of pixels"),
        ({"target": ["mas"]}, r"r.jsonl:2: labels outside the label space(.|\n)*did you mean 'mass'"),
        ({"label_space": "mass"}, r"r.jsonl:2: labels outside"),
        ({"target": [3]}, r"r.jsonl:2: 'target' is no text"),
        ({"response": 5}, r"r.jsonl:2: 'response' is no text"),
        ({"boxes": [[1, 2, 3]]}, r"r.jsonl:2: a box is not four numbers"),
        ({"boxes": [[30, 2, 10, 9]]}, r"r.jsonl:2: a box is empty or leaves the picture"),
        ({"mask": "nowhere.png"}, r"r.jsonl:2: the path does not exist(.|\n)*nowhere.png"),
        ({"mask": "../mask.png"}, r"r.jsonl:2: the path has '..' in it"),
    ],
)
def test_wrong_responses(tmp_path: Path, change: dict[str, Any], match: str) -> None:
    rows = [RESPONSES[0], RESPONSES[2] | {"target": ["normal"]} | change]
    with pytest.raises(DataError, match=match):
        qoqmed.score(lines(tmp_path / "r.jsonl", rows))
