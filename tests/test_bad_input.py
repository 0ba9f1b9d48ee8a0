"""Wrong input on the command line: one message that says what, where and how to mend it, exit code 2, nothing lost."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_run import RECIPE, Place, command, place, read, same, weights

from qoqmed.errors import MediaError, Problem

pytestmark = pytest.mark.usefixtures("tiny")

SFT, RL = RECIPE["stages"]
SPACE = ["normal", "glaucoma"]
LEADS = ["I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6"]


@pytest.fixture
def here(tmp_path: Path) -> Place:
    return place(tmp_path)


def row(number: int, **changes: Any) -> dict[str, Any]:
    media = [{"modality": "image", "path": f"{number}.png"}]
    labels = [SPACE[number % 2]]
    return {"id": f"eye-{number}", "domain": "fundus", "media": media, "labels": labels, "label_space": SPACE} | changes


def with_rows(folder: Path, rows: list[dict[str, Any]], **changes: Any) -> Place:
    """A recipe whose data are these rows, with a picture for each; one step of all of them, then one of RL."""
    for number, _ in enumerate(rows):
        noise = np.random.default_rng(number).integers(0, 256, (56, 56, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
    write(folder, rows)
    source = {"name": "jsonl", "path": "rows.jsonl"}
    data = RECIPE["data"] | {"root": str(folder), "train": [source], "valid": []}
    stages = [SFT | {"steps": 1, "epochs": 1}, RL | {"steps": 1, "epochs": 1}]
    return place(folder, **{"data": data, "stages": stages} | changes)


def write(folder: Path, rows: list[dict[str, Any]]) -> None:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def refused(here: Place, *words: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The message. A refused start leaves no run behind."""
    assert command("fit", here.recipe, *words) == 2
    told = capsys.readouterr()
    assert told.err.startswith(("error: ", "2 errors:", "3 errors:")) and "Traceback" not in told.err
    runs = here.folder / "runs"
    assert not runs.exists() or not any(runs.iterdir())
    return told.err


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("rolout.n=2", ["rolout (override rolout.n=2): unknown key", "did you mean 'rollout'"]),
        ("rollout.max_new_token=3", ["rollout.max_new_token (override", "unknown argument", "'max_new_tokens'"]),
        ("trainer.devises=1", ["trainer.devises", "unknown key", "did you mean 'devices'"]),
        ("rollout.n=two", ["rollout.n (override rollout.n=two)", "'two'", "a whole number"]),
        ("stages.1.advantage.name=drop", ["stages.1.advantage.name", "no such plugin", "drpo, gae, grpo", "'drpo'"]),
        ("stages.1.objective.clip_lo=0.1", ["stages.1.objective.clip_lo", "did you mean 'clip_low'"]),
        ("rewards.vowles.weight=1", ["rewards.vowles", "no such plugin", "accuracy", "did you mean 'vowels'"]),
        ("stages.7.steps=3", ["stages.7"]),
        ("rollout.n", ["rollout.n", "key=value"]),
    ],
)
def test_mistakes_in_the_recipe(here: Place, capsys: pytest.CaptureFixture[str], word: str, parts: list[str]) -> None:
    told = refused(here, word, capsys=capsys)
    assert [part for part in parts if part not in told] == [], told


def test_every_mistake_is_told_at_once(here: Place, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["rollout.n=0", "stages.1.advantage.name=drop", "trainer.precision=fp8"]
    told = refused(here, *words, capsys=capsys)
    assert told.startswith("3 errors:") and "got:      'fp8'" in told and "fp32, bf16" in told


def test_sizes_that_do_not_go_together(here: Place, capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(here, "rollout.n=1", capsys=capsys)
    assert (
        "rollout.n" in told and "at least 2 responses a prompt" in told and "compares the responses of a group" in told
    )
    told = refused(here, "stages.1.objective.minibatch=3", capsys=capsys)
    assert "batch sizes do not divide" in told and "a divisor of the 4 prompts" in told and "1, 2, 4 would do" in told
    told = refused(here, "trainer.devices=3", capsys=capsys)
    assert "rollout.prompts" in told and "does not divide among 3 processes" in told and "a multiple of 3" in told


def test_a_recipe_or_data_that_are_not_there(here: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("fit", here.recipe.with_name("tinny.yaml")) == 2
    assert "no such recipe file" in (told := capsys.readouterr().err) and "tiny.yaml" in told
    here = with_rows(here.folder, [row(0)])
    told = refused(here, "data.train.0.path=row.jsonl", capsys=capsys)
    assert "data.train.0.path" in told and "no such file" in told and "did you mean 'rows.jsonl'" in told
    told = refused(here, "data.root=/nowhere", capsys=capsys)
    assert "data.root" in told and "no such folder" in told


def damage(kind: str, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """What to change in row 2, and what the message must say of it."""
    file = folder / "2.png"
    if kind == "missing":
        file.unlink()
        return {}, ["does not exist", str(folder), "2.png", "data.root"]
    if kind == "corrupt":
        file.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50))
        return {}, ["2.png", "cannot", "repair or remove the file"]
    if kind == "truncated":
        file.write_bytes(file.read_bytes()[:2000])
        return {}, ["2.png", "repair or remove the file"]
    if kind == "above the root":
        return {"media": [{"modality": "image", "path": "../2.png"}]}, ["has '..' in it", "../2.png"]
    if kind == "url":
        return {"media": [{"modality": "image", "path": "https://x.org/2.png"}]}, ["a URL is no medium", "download"]
    if kind == "no labels":
        return {"labels": []}, ["labels are empty", "at least one label", "task: grounding"]
    if kind == "labels null":
        return {"labels": None}, ["labels are empty", "at least one label", "task: grounding"]
    if kind == "outside":
        return {"labels": ["glaucom"]}, ["labels outside the label space", "glaucom", "did you mean 'glaucoma'"]
    assert kind == "task"
    return {"task": "diagnose"}, ["unknown task 'diagnose'", "diagnosis"]


KINDS = ["missing", "corrupt", "truncated", "above the root", "url", "no labels", "labels null", "outside", "task"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_row_stops_with_its_id(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    here = with_rows(tmp_path, [row(number) for number in range(4)])
    change, parts = damage(kind, tmp_path)
    write(tmp_path, [row(0), row(1), row(2) | change, row(3)])
    told = refused(here, capsys=capsys)
    assert [part for part in ["eye-2", *parts] if part not in told] == [], told


def electrocardiogram(folder: Path, name: str, leads: list[str], hole: bool = False) -> None:
    import wfdb

    signal = np.random.default_rng(0).normal(0, 0.2, (2500, len(leads)))
    if hole:
        signal[100:110, 1] = np.nan
    many = {"units": "mV", "fmt": "16", "adc_gain": 1000.0, "baseline": 0}
    of_each = {key: [value] * len(leads) for key, value in many.items()}
    wfdb.wrsamp(name, fs=250, sig_name=leads, p_signal=signal, write_dir=str(folder), **of_each)


@pytest.mark.parametrize(
    ("leads", "hole", "parts"),
    [
        (LEADS, True, ["NaN or infinite (II: 10, of 2500)"]),
        ([lead for lead in LEADS if lead != "V2"], False, ["leads are missing: V2", "the record has I, II, III"]),
    ],
)
def test_a_bad_electrocardiogram(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], leads: list[str], hole: bool, parts: list[str]
) -> None:
    electrocardiogram(tmp_path, "bad", leads, hole)
    electrocardiogram(tmp_path, "good", LEADS)
    heart = {"domain": "ecg", "labels": ["sinus"], "label_space": ["sinus", "block"]}
    rows = [
        row(number) | heart | {"id": f"heart-{name}", "media": {"ecg": name}}
        for number, name in enumerate(["good", "bad"])
    ]
    here = with_rows(tmp_path, rows)
    told = refused(here, capsys=capsys)
    assert [part for part in ["heart-bad", str(tmp_path / "bad"), *parts] if part not in told] == [], told
    assert command("fit", here.recipe, "data.on_error=skip") == 0
    assert [line["where"] for line in read(here.run / "skipped.jsonl")] == ["heart-bad"]


def test_skip_counts_and_lists_and_trains_on(tmp_path: Path) -> None:
    here = with_rows(tmp_path, [row(0), row(1, labels=["glaucom"]), row(2), row(3)])
    (tmp_path / "2.png").write_bytes(b"no picture")
    words = ["data.on_error=skip", "data.valid=[{name: jsonl, path: rows.jsonl}]"]
    assert command("fit", here.recipe, *words) == 0
    listed = read(here.run / "skipped.jsonl")
    assert sorted(line["where"].split(" ")[0] for line in listed) == ["eye-1", "eye-2"]
    assert all(line["what"] for line in listed)
    rows = [row for row in read(here.run / "metrics.jsonl") if "lr" in row]
    assert [row["skipped_cases"] for row in rows] == [2, 4]
    assert all(row["updates"] == 1 for row in rows)
    assert [line["cases"] for line in read(here.run / "evaluations.jsonl")] == [2, 2, 2]


def test_a_step_of_bad_rows_alone_is_passed_over(tmp_path: Path) -> None:
    here = with_rows(tmp_path, [row(0), row(1, labels=[]), row(2)])
    words = ["data.on_error=skip", "rollout.prompts=1", "stages.0.steps=3", "stages.1.steps=3"]
    assert command("fit", here.recipe, *words) == 0
    rows = [row for row in read(here.run / "metrics.jsonl") if "lr" in row]
    assert sorted(row["updates"] for row in rows) == [0, 0, 1, 1, 1, 1]


def test_a_bad_row_in_a_later_step_loses_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The run stops after the last good step; with the file mended it ends as if it had never been bad."""
    (tmp_path / "good").mkdir()
    words = ["rollout.prompts=1", "stages.0.steps=4", "stages.1.steps=4"]
    rows = [row(number) for number in range(4)]
    good = with_rows(tmp_path / "good", rows)
    assert command("fit", good.recipe, *words) == 0
    order = [line["case"] for path in sorted((good.run / "traces").iterdir())[:4] for line in read(path)]
    here = with_rows(tmp_path, rows)
    picture = tmp_path / f"{order[2].removeprefix('eye-')}.png"
    mended = picture.read_bytes()
    picture.write_bytes(b"")
    capsys.readouterr()
    assert command("fit", here.recipe, *words) == 2
    assert f"error: {order[2]}: " in capsys.readouterr().err
    assert [path.name for path in sorted((here.run / "checkpoints").glob("step-*"))] == ["step-00000002"]
    assert "stopped: " in (here.run / "log.txt").read_text()
    assert command("fit", here.recipe, *words, "--resume", "auto") == 2  # still bad, and still nothing lost
    picture.write_bytes(mended)
    assert command("fit", here.recipe, *words, "--resume", "auto") == 0
    assert same(weights(here.run), weights(good.run))


def without_gold(folder: Path) -> Place:
    """Four rows: one whose explanation holds a token of the model, one whose mask is empty; sft alone."""
    rows = [row(number) for number in range(4)]
    rows[1]["text"] = "It shows <|image_pad|> there."
    rows[3] = {"id": "eye-3", "domain": "fundus", "media": rows[3]["media"], "task": "grounding", "mask": "mask.png"}
    Image.fromarray(np.zeros((56, 56), np.uint8)).save(folder / "mask.png")
    return with_rows(folder, rows, stages=[SFT | {"steps": 1, "epochs": 1}])


def test_rows_without_a_usable_gold_answer_are_told_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = refused(without_gold(tmp_path), capsys=capsys)
    assert told.startswith("2 errors:")
    assert "eye-1: an answer holds a special token of the model" in told and "<|image_pad|>" in told
    assert "eye-3: a gold response needs boxes" in told


def test_rows_without_a_usable_gold_answer_may_be_left_out(tmp_path: Path) -> None:
    here = without_gold(tmp_path)
    assert command("fit", here.recipe, "data.on_error=skip") == 0
    assert sorted(line["where"] for line in read(here.run / "skipped.jsonl")) == ["eye-1", "eye-3"]
    (line,) = [line for line in read(here.run / "metrics.jsonl") if "lr" in line]
    assert (line["skipped_cases"], line["updates"]) == (2, 1)


def test_an_empty_mask_is_no_bad_row_where_responses_are_sampled(tmp_path: Path) -> None:
    here = without_gold(tmp_path)
    stages = json.dumps([RL | {"steps": 1, "epochs": 1}])
    assert command("fit", here.recipe, f"stages={stages}", "data.on_error=skip") == 0
    assert not (here.run / "skipped.jsonl").exists()


def test_going_on_after_a_bad_row_by_leaving_it_out(tmp_path: Path) -> None:
    here = with_rows(tmp_path, [row(number) for number in range(4)])
    (tmp_path / "3.png").unlink()
    words = ["rollout.prompts=1", "stages.0.steps=4", "stages.1.steps=1"]
    assert command("fit", here.recipe, *words) == 2
    assert command("fit", here.recipe, *words, "data.on_error=skip", "--resume", "auto") == 0
    assert [line["where"].split(" ")[0] for line in read(here.run / "skipped.jsonl")] == ["eye-3"]


def test_a_metric_that_is_not_there_is_told_before_training(here: Place, capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(here, "evaluation.best=overall/f2", capsys=capsys)
    assert "evaluation.best: no metric has this path" in told and "did you mean 'overall/f1'" in told


def test_an_error_travels_between_processes() -> None:
    """Ranks tell each other of it: it must be the same on arrival."""
    error = MediaError([Problem("corrupt", "row-1", "a.png", mend="repair it"), Problem("missing", "row-2")])
    copied = pickle.loads(pickle.dumps(error))
    assert type(copied) is MediaError and copied.problems == error.problems and str(copied) == str(error)
