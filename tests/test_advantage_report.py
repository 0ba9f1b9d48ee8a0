"""What `qoqmed advantage` tells: its numbers, by hand; its table; its picture; the rows of estimators of tokens."""

from __future__ import annotations

import json
import re
import sys
from math import sqrt
from pathlib import Path
from statistics import stdev
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import qoqmed
from qoqmed import cli
from qoqmed.advantages.exchange import from_rows, require
from qoqmed.advantages.table import Advantages, Diagnostics, DomainStats
from qoqmed.errors import DataError, UserError
from qoqmed.report.advantage_explained import explain
from qoqmed.report.advantage_picture import draw
from qoqmed.types import Needs

H = 0.5 / (sqrt(0.5) + 1e-6)  # a reward of 1 beside one of 0, standardised
TWO_DOMAINS = [  # question, domain, rewards, KL of each response
    ("hard", "ecg", (1.0, 0.0), (0.5, 1.0)),
    ("a", "ct", (1.0, 0.0), (0.5, 0.5)),
    ("b", "ct", (0.0, 1.0), (0.75, 0.25)),
    ("c", "ct", (1.0, 0.0), (1.0, 0.0)),
    ("same", "ct", (0.5, 0.5), (0.0, 0.0)),
    ("lone", "mri", (1.0, None), (0.1, 0.1)),
]
ROWS = [
    {"question": question, "domain": domain, "reward": reward, "kl": kl}
    for question, domain, rewards, kls in TWO_DOMAINS
    for reward, kl in zip(rewards, kls, strict=True)
]


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def command(*words: object) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(["advantage", *(str(word) for word in words)])
    return int(stop.value.code or 0)


def near(values: Any) -> Any:
    return pytest.approx(values, abs=1e-9)


@pytest.fixture
def rewards(tmp_path: Path) -> Path:
    return written(tmp_path / "rewards.jsonl", ROWS)


# ---- numbers


def test_domains_alone_by_hand(rewards: Path, capsys: Any) -> None:
    """T of ecg is sqrt(1) 0.5, that of ct sqrt(4) 0.5; s'' is s' 1.2 / (1.2 + z / H), where z is 3 H and H."""
    assert command(rewards, "--estimator", "drpo", "cluster=false", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    ecg, ct, undamped = 4 / 7, 6 / 11, (2.0, -2.0, 1.0, -1.0, -1.0, 1.0, 1.0, -1.0, 0.0, 0.0)
    damped = (ecg, -2.0, ct, -1.0, -1.0, ct, ct, -1.0, 0.0, 0.0)
    spread = stdev(damped)
    assert result["advantages"] == near([value / spread for value in damped] + [0, 0])
    assert result["undamped"] == near([value / spread for value in undamped] + [0, 0])
    assert result["kl"] == {"threshold": near(1.2 * H), "removed": near(1 - (ecg + 3 * ct) / 5)}
    total = sum(map(abs, damped))
    figures = ("n", "mean_reward", "temperature", "share", "removed")
    found = {name: [domain[key] for key in figures] for name, domain in result["domains"].items()}
    assert found == {
        "ecg": near([1, 0.5, 0.5, (2 + ecg) / total, 1 - ecg / 2]),
        "ct": near([4, 0.5, 1.0, (3 + 3 * ct) / total, 1 - ct]),
    }
    assert [cluster["temperature"] for cluster in result["domains"]["ct"]["clusters"]] == [1.0]
    keys = ("domain", "cluster", "mean_reward", "scale", "relative_scale")
    questions = {name: tuple(question[key] for key in keys) for name, question in result["questions"].items()}
    assert questions == {
        "hard": ("ecg", 0, 0.5, 2.0, 2.0),
        **dict.fromkeys("abc", ("ct", 0, 0.5, 1.0, 1.0)),
        "same": ("ct", 0, 0.5, 1.0, None),  # its scale multiplies nothing
        "lone": ("mri", None, 1.0, None, None),
    }
    assert [question["share"] for question in result["questions"].values()] == near(
        [(2 + ecg) / total, *[(1 + ct) / total] * 3, 0, 0]
    )
    assert result["tokens"] is result["returns"] is None and result["warnings"] == []


def test_clusters_are_told_with_their_scales(tmp_path: Path) -> None:
    """Reward vectors of two kinds, far apart: (1, 0) of mean 0.5 and (0.25, 0) of mean 0.125, two questions each."""
    kinds = {"easy": (1.0, 0.0), "hard": (0.25, 0.0)}
    rows = [
        {"question": f"{kind}{i}", "domain": "ct", "reward": reward}
        for kind, pair in kinds.items()
        for i in range(2)
        for reward in pair
    ]
    result = qoqmed.estimate(written(tmp_path / "r.jsonl", rows), "drpo", {"kl_damping": False})
    domain = result["domains"]["ct"]
    of_domain = sqrt(4) * 0.3125
    hard, easy = domain["clusters"]
    assert hard["questions"] == ["hard0", "hard1"] and easy["questions"] == ["easy0", "easy1"]
    assert hard["scale"] == pytest.approx(1 / (of_domain * sqrt(2) * 0.125))
    assert easy["scale"] == pytest.approx(1 / (of_domain * sqrt(2) * 0.5))
    assert [result["questions"][q]["relative_scale"] for q in ("easy0", "hard0")] == pytest.approx([1, 4])
    assert [result["questions"][q]["cluster"] for q in ("easy0", "hard0")] == [1, 0]
    assert [hard["share"], easy["share"]] == pytest.approx([0.8, 0.2], rel=1e-5)  # eps does not cancel
    assert domain["removed"] is None and result["kl"] == {"threshold": None, "removed": None}
    assert domain["hit_cap"] is False and len(domain["inertias"]) == 2


def test_an_estimator_without_temperatures_scales_by_one(rewards: Path) -> None:
    result = qoqmed.estimate(rewards, "grpo")
    assert {question["scale"] for question in result["questions"].values()} == {1.0}
    assert [domain["share"] for domain in result["domains"].values()] == pytest.approx([0.25, 0.75])
    assert result["undamped"] is None and result["scalars"]["dropped_groups"] == 1


def test_advantages_of_tokens_are_split_by_rollout_and_warnings_are_told() -> None:
    rows = [{"question": "q", "domain": "ct", "reward": r, "tokens": n} for r, n in ((1.0, 2), (0.0, 1))]
    tokens, returns = (torch.tensor(v, dtype=torch.float64) for v in ((1.0, 3.0, -1.0), (0.5, 0.25, 0.0)))
    found = Advantages(
        torch.tensor([2.0, -1.0]).double(),
        Diagnostics({"ct": DomainStats(1, 0.5, 1.0)}),
        ("mind this",),
        tokens,
        returns,
    )
    result = explain(from_rows(rows), found)
    assert result["tokens"] == [[1.0, 3.0], [-1.0]] and result["returns"] == [[0.5, 0.25], [0.0]]
    assert result["warnings"] == ["mind this"]


def test_estimators_of_tokens_and_of_a_greedy_baseline(tmp_path: Path, capsys: Any) -> None:
    """GAE without whitening, by hand: with lam 1 the return, which is the reward, less each token's value."""
    rows = [
        {"question": "q", "domain": "ct", "reward": 1.0, "values": [0.5, 1.5], "baseline": 0.25},
        {"question": "q", "domain": "ct", "reward": 0.0, "values": [0.25], "baseline": 0.25},
    ]
    path = written(tmp_path / "r.jsonl", rows)
    assert command(path, "--estimator", "gae", "whiten=false", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["tokens"] == [[0.5, -0.5], [-0.25]] and result["returns"] == [[1.0, 1.0], [0.0]]
    assert result["advantages"] == [0.0, -0.25] and result["domains"]["ct"]["share"] == 1.0
    assert qoqmed.estimate(path, "remax")["advantages"] == [0.75, -0.25]
    assert command(written(path, ROWS), "--estimator", "gae") == 2
    told = capsys.readouterr().err
    assert "the estimator needs 'tokens'" in told and "the estimator needs 'values'" in told and str(path) in told


def test_questions_share_what_their_tokens_have() -> None:
    """Advantages 1 and -1 of two tokens are 0 in the mean, and not nothing."""
    rows = [{"question": q, "domain": "ct", "reward": 1.0, "tokens": 2} for q in "ab"]
    values, tokens = torch.tensor([0.0, 3.0]).double(), torch.tensor([1.0, -1.0, 3.0, 3.0]).double()
    result = explain(from_rows(rows), Advantages(values, Diagnostics({}), tokens=tokens))
    assert [question["share"] for question in result["questions"].values()] == [0.25, 0.75]


def test_all_rewards_equal(tmp_path: Path) -> None:
    rows = [{"question": "q", "domain": "ct", "reward": 1.0, "kl": 0.1}] * 2
    result = qoqmed.estimate(written(tmp_path / "r.jsonl", rows), "drpo", plot=tmp_path / "p.png")
    assert result["questions"]["q"]["relative_scale"] is None and result["questions"]["q"]["share"] == 0.0
    assert result["domains"]["ct"]["removed"] == 0.0


# ---- rows


def test_rows_of_tokens_and_baselines() -> None:
    rows = [
        {"question": "x", "domain": "d", "reward": 1, "tokens": 2, "penalty": [0.1, 0], "values": [1, 2.5]},
        {"question": "y", "domain": "d", "reward": 0, "tokens": 1, "penalty": [-0.2], "values": [3], "baseline": 0.5},
        {"question": "x", "domain": "d", "reward": 0, "tokens": 1, "penalty": [0.3], "values": [4], "baseline": None},
    ]
    table = from_rows(rows)
    assert table.lengths is not None and table.lengths.tolist() == [2, 1, 1]
    assert table.penalty is not None and table.penalty.tolist() == [0.1, 0.0, -0.2, 0.3]
    assert table.values is not None and table.values.tolist() == [1.0, 2.5, 3.0, 4.0]
    assert table.values.dtype == table.penalty.dtype == torch.float64
    assert table.baseline is not None and str(table.baseline.tolist()) == "[nan, 0.5]"
    lists_alone = from_rows([{**row, "tokens": None} for row in rows])
    assert lists_alone.lengths is not None and lists_alone.lengths.tolist() == [2, 1, 1]
    plain = from_rows([{"question": "x", "domain": "d", "reward": 1.0}])
    assert plain.lengths is plain.penalty is plain.values is plain.baseline is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": 0}, "row 2: tokens is no number of tokens(.|\n)*a whole number from 1"),
        ({"tokens": True}, "row 2: tokens is no number of tokens"),
        ({"tokens": 2.0}, "row 2: tokens is no number of tokens"),
        ({"tokens": None, "penalty": None, "values": None}, "row 2: tokens is missing(.|\n)*row 2: penalty is missing"),
        ({"values": [0.0]}, "row 2: values is of another length(.|\n)*1 numbers(.|\n)*2"),
        ({"values": None}, "row 2: values is missing(.|\n)*values in every row or in none"),
        ({"penalty": [0.0, float("nan")]}, "row 2: penalty is not a list of finite numbers"),
        ({"penalty": [0.0, "1"]}, "row 2: penalty is not a list of finite numbers"),
        ({"penalty": 0.5}, "row 2: penalty is not a list of finite numbers(.|\n)*one a token"),
        ({"penalty": []}, "row 2: penalty is not a list of finite numbers"),
        ({"baseline": 0.5}, "row 2: question 'x' has two baselines(.|\n)*0.5, and 1.0 before"),
        ({"baseline": "1"}, "row 2: baseline is not a finite number"),
        ({"reward": 10**400}, "row 2: reward is not a finite number"),
    ],
)
def test_wrong_rows_of_tokens_are_named(change: dict[str, Any], message: str) -> None:
    row = {"question": "x", "domain": "d", "reward": 1.0, "tokens": 2, "penalty": [0, 1], "values": [0, 1]}
    row |= {"baseline": 1.0}
    with pytest.raises(DataError, match=message):
        from_rows([row, row | change])


def test_what_an_estimator_needs_is_asked_for_by_name() -> None:
    table = from_rows(ROWS)
    with pytest.raises(DataError) as told:
        require(table, Needs(tokens=True, values=True, greedy=True, kl=True), "r.jsonl")
    assert [problem.where for problem in told.value.problems] == ["r.jsonl"] * 3
    for key in ("tokens", "values", "baseline"):
        assert f"the estimator needs '{key}', which no row has" in str(told.value)
    require(table, Needs(kl=True, group=2))
    whole = [row | {"values": [0.0], "baseline": 1.0} for row in ROWS]
    require(from_rows(whole), Needs(tokens=True, values=True, greedy=True))


# ---- table


def test_the_table_has_the_numbers(rewards: Path, capsys: Any) -> None:
    assert command(rewards, "--estimator", "drpo", "cluster=false") == 0
    lines = [line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines()]
    assert ["ecg", "1", "0.5", "0.5", "2", "2", "35.7%", "71.4%", "-"] in lines
    assert ["ct", "4", "0.5", "1", "1", "1", "64.3%", "45.5%", "-"] in lines
    assert ["hard", "ecg", "0.5", "1", "2", "2", "35.7%"] in lines
    assert ["lone", "mri", "1", "-", "-", "-", "0%"] in lines
    caption = " ".join(word for line in lines for word in line)
    assert "12 rollouts; largest scale over smallest 2; KL damping, threshold 0.8485, took 55.8%" in caption
    assert "no elbow in 0 of 2 domains" in caption


def test_names_are_no_markup_and_warnings_are_shown(tmp_path: Path, capsys: Any) -> None:
    rows = [{"question": "[bold]q", "domain": "[red]$x_1$", "reward": reward} for reward in (0.0, 1.0)]
    path = written(tmp_path / "r.jsonl", rows)
    assert command(path, "--estimator", "drpo", "--plot", tmp_path / "p.png") == 0
    out = capsys.readouterr().out
    assert "[red]$x_1$" in out and "[bold]q" in out
    assert "warning: DRPO damps by KL, but the table has none" in out


# ---- picture


def pixels(path: Path) -> Any:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def test_the_picture_is_drawn(rewards: Path, tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "out.png"
    file.write_bytes(b"an older one")  # is replaced
    assert command(rewards, "--estimator", "drpo", "--plot", file) == 0
    found = pixels(file)
    assert found.shape[1] == 1560 and 300 < found.shape[0] < 1600
    colours = {tuple(colour) for colour in found.reshape(-1, 3)[::7].tolist()}
    assert {(255, 255, 255), (0, 114, 178), (230, 159, 0)} <= colours  # ground, kept, taken by KL
    assert 0.4 < (found == 255).all(2).mean() < 0.95


def test_the_picture_leaves_out_what_there_is_not(rewards: Path, tmp_path: Path) -> None:
    many = [dict(row, question=f"{row['question']}{i}", domain=f"domain {i}") for i in range(30) for row in ROWS[:2]]
    result = qoqmed.estimate(written(tmp_path / "many.jsonl", many), "grpo")
    figure = draw(result, "grpo")
    assert len(figure.axes) == 2 and "24 of 30 domains" in figure.get_suptitle()
    assert len(draw(qoqmed.estimate(rewards, "drpo"), "").axes) > 3


def test_no_picture_without_domains(tmp_path: Path) -> None:
    rows = [{"question": "q", "domain": "ct", "reward": 1.0}]
    with pytest.raises(UserError, match="nothing to draw(.|\n)*two valid rollouts"):
        qoqmed.estimate(written(tmp_path / "r.jsonl", rows), "grpo", plot=tmp_path / "p.png")
    assert not (tmp_path / "p.png").exists()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("out.pdf", "the picture is a PNG file"),
        ("out", "a name that ends in .png"),
        ("folder.png", "the picture cannot be written there"),
        ("missing/out.png", "make the folder first"),
        ("rewards.png", "the picture would replace the rewards"),
    ],
)
def test_wrong_files_for_the_picture(tmp_path: Path, capsys: Any, name: str, told: str) -> None:
    (tmp_path / "folder.png").mkdir()
    rewards = written(tmp_path / "rewards.png", ROWS)
    assert command(rewards, "--estimator", "grpo", "--plot", tmp_path / name) == 2
    text = capsys.readouterr().err
    assert "--plot" in text and told in text and "got:" in text
    assert rewards.read_text().startswith("{")


def test_without_matplotlib_the_extra_is_named(rewards: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert command(rewards, "--estimator", "grpo", "--plot", tmp_path / "p.png") == 2
    assert "pip install 'qoqmed[plot]'" in capsys.readouterr().err
    assert command(rewards, "--estimator", "grpo") == 0


# ---- documentation


def test_every_key_of_the_answer_is_described(rewards: Path) -> None:
    page = (Path(__file__).parent.parent / "docs" / "explain.md").read_text(encoding="utf-8")
    rows = [line.split("|") for line in page.split("## The answer")[1].splitlines() if line.startswith("| `")]
    told = {name for row in rows for name in re.findall(r"`([^`]+)`", row[1])}
    result = qoqmed.estimate(rewards, "drpo")
    promised = {"n", "mean_reward", "temperature", "clusters", "questions", "threshold"}
    domain = result["domains"]["ct"]
    paths = set(result) - {"advantages", "domains", "kl"}
    paths |= {f"domains.NAME.{key}" for key in domain.keys() - promised}
    paths |= {f"domains.NAME.clusters[].{key}" for key in domain["clusters"][0].keys() - promised}
    paths |= {f"kl.{key}" for key in result["kl"].keys() - promised}
    assert told == paths
    of_question = next(row[2] for row in rows if "`questions`" in row[1])
    assert set(result["questions"]["a"]) == set(re.findall(r"`([a-z_]+)`", of_question)) - {"clusters"}


def test_columns_that_say_nothing_are_left_out(tmp_path: Path, capsys: Any) -> None:
    """An estimator that scales nothing shows no scales; equal rewards are told to teach nothing."""
    rows = [{"question": question, "domain": "ecg", "reward": 0.5} for question in ("a", "a", "b", "b")]
    assert command(written(tmp_path / "r.jsonl", rows), "--estimator", "rloo") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "scale" not in text and "KL" not in text and "cluster" not in text
    assert "nothing to learn" in text


def test_every_line_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    file = tmp_path / "rewards.jsonl"
    file.write_text('nope\n{"question": "q", "domain": "ecg"}\n[1]\n', encoding="utf-8")
    with pytest.raises(DataError) as caught:
        qoqmed.estimate(file, "rloo")
    told = [(problem.where.rpartition(":")[2], problem.what) for problem in caught.value.problems]
    assert [line for line, _ in told] == ["1", "3", "2"] and told[2][1] == "reward is missing"
