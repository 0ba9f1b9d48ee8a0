"""`qoqmed reward check`: what is paid for responses that answer nothing, and rewards that break on them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from fake_distribution import install
from PIL import Image
from tiny_run import command

from qoqmed.adversaries import adversaries, grid
from qoqmed.errors import UserError
from qoqmed.reward_checking import FLOOD, GOLD, GUESS, check_rewards
from qoqmed.reward_trial import frame_of
from qoqmed.tasks.diagnosis import Diagnosis
from qoqmed.types import Case, Medium, Target

CODE = '''
import os
import time

from qoqmed.types import Verdict


class Long:
    """A reward that anyone would hack: longer is better."""

    low, high = 0.0, 1.0

    def score(self, cases, rollouts, readings):
        return [Verdict(min(len(rollout.text) / 1_000, 1.0), reason="long") for rollout in rollouts]


class Fragile(Long):
    """Careful with answers, not with anything else."""

    def score(self, cases, rollouts, readings):
        text = rollouts[0].text
        if text.count("{") > 5_000:
            time.sleep(100)
        if "```" in text and "NaN" in text:
            raise ValueError("no numbers")
        if "refuse" in text or "cannot" in text:
            return [Verdict(2.0)]
        if not text:
            os.abort()
        return [Verdict(0.0)]
'''
RECIPE: dict[str, Any] = {
    "name": "checked",
    "model": {"path": "is/not/there"},
    "encoders": {"ecg": {"name": "ecg_conv"}},
    "data": {"train": [{"name": "synthetic", "size": 40, "seed": 3, "domains": ["ct", "ecg"], "weight": 2.0}]},
    "rewards": {"accuracy": 0.6, "iou": 0.2, "format": {"weight": 0.2, "domains": {"ecg": 0.0}}},
    "stages": [{"name": "s", "objective": "sft"}],
}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    install(tmp_path, "bad-rewards", {"rewards": {"long": "bad_rewards:Long", "fragile": "bad_rewards:Fragile"}}, CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path


def recipe(folder: Path, **changes: Any) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, **changes}))
    return path


def test_the_papers_rewards_withstand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Values by hand: right form 0.2; in the ECG no box and no format, so nothing; the label list's set F1 for k."""
    assert command("reward", "check", recipe(tmp_path), "--cases", 2, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    found = {one["name"]: one for one in told["responses"]}
    references = {one["name"]: one for one in told["references"]}
    assert (told["passed"], told["synthetic"], told["high"], told["broken"]) == (True, False, [], [])
    assert len(told["cases"]) == 2 and len(found) >= 28
    assert references[GOLD]["score"] > 0.95 and 0.2 < references[GUESS]["score"] < 0.6
    wrong = found["wrong answer in the right form"]
    assert (
        wrong["rewards"] == {"accuracy": 0, "iou": pytest.approx(0, abs=0.01), "format": 1} and wrong["responses"] == 2
    )
    assert wrong["score"] == pytest.approx(0.1, abs=0.01)
    assert found["empty"]["score"] == found["huge"]["score"] == found["other languages"]["score"] == 0
    scores = [one["score"] for one in told["responses"]]
    assert scores == sorted(scores, reverse=True)
    assert told["best"]["accuracy"]["name"].startswith("label")


def test_what_pays_for_form_alone_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("reward", "check", recipe(tmp_path, rewards={"format": 1.0}), "--cases", "1") == 1
    told = capsys.readouterr().out
    assert "scores high: 'wrong answer in the right form', 1 (format: a box for every predicted label)" in told
    assert command("reward", "check", recipe(tmp_path), "--cases", "1", "--threshold", "0.1") == 1
    assert "label list copied" in capsys.readouterr().out


def test_a_reward_that_anyone_would_hack(site: Path) -> None:
    made = check_rewards(recipe(site, rewards={"long": 1.0}), count=1)
    assert "huge" in [one.name for one in made.high] and not made.broken and not made.passed
    assert made.best["long"].rewards["long"] == 1.0


def test_a_reward_that_breaks(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every way to break costs one kind of response, not the check."""
    path = recipe(site, rewards={"fragile": {"weight": 1.0, "timeout_s": 1.0}})
    assert command("reward", "check", path, "--cases", "1", "--json") == 1
    told = json.loads(capsys.readouterr().out)
    found = {one["name"]: " ".join(one["broken"]) for one in told["responses"]}
    assert "no verdict within 1 s" in found["braces"]
    assert "ValueError: no numbers" in found["numbers that are none"]
    assert "left its range" in found["refusal"]
    assert "SIGABRT" in found["empty"]
    assert found["other languages"] == "" and told["high"] == []
    assert told["responses"][-1]["score"] is None  # nothing could be scored


def test_cases_of_every_domain_with_their_masks(tmp_path: Path) -> None:
    inside = np.zeros((40, 50), np.uint8)
    inside[10:20, 10:30] = 255
    Image.fromarray(inside).save(tmp_path / "mask.png")
    rows = [
        {"id": f"{domain}{place}", "domain": domain, "labels": ["x"], "label_space": ["x", "y", "z"]}
        | {"media": {"image": "not_read.png"}, "mask": "mask.png"}
        for domain in ("ct", "mri")
        for place in range(3)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"root": str(tmp_path), "train": [{"name": "jsonl", "path": "rows.jsonl"}]}
    made = check_rewards(recipe(tmp_path, data=data), count=3)
    assert made.cases == ("ct0", "mri0", "ct1") and not made.synthetic
    gold = made.references[0]
    assert gold.rewards == {"accuracy": 1.0, "iou": pytest.approx(1.0), "format": 1.0}
    alone = recipe(tmp_path, data=data, rewards={"accuracy": 1.0})
    assert check_rewards(alone, count=1, synthetic=True).synthetic
    (tmp_path / "rows.jsonl").unlink()
    assert check_rewards(alone, count=1).synthetic


def test_recipes_that_cannot_be_checked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the recipe has no rewards"):
        check_rewards(recipe(tmp_path, rewards={}))
    with pytest.raises(UserError, match="no such plugin"):
        check_rewards(recipe(tmp_path, rewards={"acuracy": 1.0}))


def case(space: tuple[str, ...], labels: tuple[str, ...], modality: str = "image") -> Case:
    return Case("c", "ct", "d", "diagnosis", "Which?", (Medium(modality),), space, Target(labels=labels))


def test_adversaries_claim_nothing_right() -> None:
    """But for those that claim everything: no other reads as the true label, whatever the label space."""
    claims = {"label list copied", "label list copied, in the right form", "labels with or"}
    for space, right in [
        (("a", "b", "c"), ("a",)),
        (("no finding", "edema"), ("edema",)),
        (("a", "b", "c"), ("a", "c")),
    ]:
        one = case(space, right)
        made = adversaries(one, Diagnosis(), frame_of(one))
        for name, text in made.items():
            read = Diagnosis().read(text, one, frame_of(one)).answer.labels or ()
            assert name in claims or not set(read) & set(right), name
        assert made["10,000 boxes"].count("bbox_2d") == 10_000
    assert set(Diagnosis().read(made["label list copied"], one, frame_of(one)).answer.labels or ()) == set(space)


def test_adversaries_fit_the_case() -> None:
    series = adversaries(one := case(("a", "b"), ("a",), "ecg"), Diagnosis(), frame_of(one))
    assert not any("bbox_2d" in text for name, text in series.items() if name not in ("the form shown back", *FIXED))
    all_right = adversaries(one := case(("a",), ("a",)), Diagnosis(), frame_of(one))
    assert not any("label" in name for name in all_right)
    assert [next(boxes) for boxes in [grid()] for _ in range(3)][1:] == [(0, 0, 0.5, 0.5), (0.5, 0, 1, 0.5)]


FIXED = ("numbers that are none",)


def test_a_flood_of_boxes_pays_by_the_papers_letter_and_not_in_our_recipes(tmp_path: Path) -> None:
    """The right label with a hundred boxes: format 1 and accuracy 1, so 0.8; what is over that is the flood's."""
    quickstart = Path(__file__).parent.parent / "recipes" / "quickstart.yaml"
    paid = {}
    for limit in ("null", "3"):
        made = check_rewards(quickstart, [f"rewards.iou.boxes_per_label={limit}"], count=2)
        paid[limit] = next(one.score or 0.0 for one in made.references if one.name == FLOOD)
    assert paid["null"] > 0.95 and paid["3"] == pytest.approx(0.8)
    assert "boxes_per_label: 3" in quickstart.read_text()
