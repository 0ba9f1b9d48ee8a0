"""Whole runs on rows of questions and conversations, on imported masks, and by MedMO's recipe: the smallest policy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from tiny_run import OPTIONS, command, evaluations, metrics, place, read

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("tiny")]
MEDMO = Path(__file__).parent.parent / "recipes" / "medmo.yaml"
STAGES = [
    {"name": "sft", "objective": {"name": "sft"}, "optimizer": {"lr": 2.0e-3}, "epochs": 2, "steps": 2},
    {
        "name": "rl",
        "objective": {"name": "policy_gradient"},
        "advantage": {"name": "grpo"},
        "optimizer": {"lr": 1.0e-3},
        "epochs": 2,
        "steps": 2,
    },
]
COLOURS = ("red", "green", "blue", "white")


def picture(folder: Path, number: int) -> str:
    Image.new("RGB", (56, 56), (60 * number, 60, 30)).save(folder / f"{number}.png")
    return f"{number}.png"


def write(folder: Path, name: str, rows: list[dict[str, Any]]) -> str:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def ran(folder: Path, node: dict[str, Any], rewards: dict[str, Any], best: str) -> Path:
    """The run's folder. The rows and the rewards are checked first."""
    bounds = {"min_pixels": 784, "max_pixels": 3136}
    data = {"root": str(folder), **bounds, "train": [node], "valid": [node]}
    evaluation = {"batch": 4, "best": best}
    here = place(folder, data=data, rewards=rewards, stages=STAGES, traces="text", evaluation=evaluation)
    words = [f"format={node.get('format', 'rows')}"]
    words += [f"defaults.{key}={value}" for key, value in node.get("defaults", {}).items()]
    assert command("data", "check", folder / node["path"], *words) == 0
    assert command("reward", "check", here.recipe, "--cases", 2, "--threshold", 0.95) == 0
    assert command("fit", here.recipe) == 0
    return here.run


def test_vqa_rows_train(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"image": picture(tmp_path, n), "question": "Which colour?", "answer": COLOURS[n], "domain": "ct"}
        for n in range(4)
    ]
    rows += [row | {"options": {"A": "yes", "B": "no"}, "answer": "B", "question": "Is it red?"} for row in rows[:2]]
    rows[3]["answer"] = 4  # how many
    node = {"name": "jsonl", "path": write(tmp_path, "rows.jsonl", rows), "format": "vqa"}
    rewards = {"exact_match": {"weight": 1.0}, "format": {"weight": 0.5}}
    run = ran(tmp_path, node, rewards, "overall/rewards/exact_match")
    lines = [line for path in sorted((run / "traces").iterdir()) for line in read(path)]
    gold = [line for line in lines if line["stage"] == "sft"]
    assert gold and all(line["response"].endswith("}") and "\\boxed{" in line["response"] for line in gold)
    sampled = [line for line in lines if line["stage"] == "rl"]
    assert {line["statuses"]["exact_match"] for line in sampled} == {"ok"}
    assert {line["statuses"]["format"] for line in sampled} == {"not_applicable"}
    last = evaluations(run)[-1]
    assert last["cases"] == 6 and last["greedy"]["overall"]["support"] == 2  # the closed questions have labels
    assert "rewards/exact_match" in last["greedy"]["overall"]


def test_conversations_train(tmp_path: Path) -> None:
    turns = [("What does it show?", "A nevus with regular edges."), ("And here?", "Nothing of note.")]
    rows = [
        {
            "conversations": [{"from": "human", "value": f"<image>\n{asked}"}, {"from": "gpt", "value": said}],
            "image": picture(tmp_path, n),
        }
        for n, (asked, said) in enumerate(turns * 2)
    ]
    node = {"name": "jsonl", "path": write(tmp_path, "rows.jsonl", rows), "format": "conversations"}
    assert command("data", "check", tmp_path / "rows.jsonl", "format=conversations") == 2  # no domain
    node |= {"defaults": {"domain": "dermoscopy"}}
    run = ran(tmp_path, node, {"rouge": {"weight": 1.0}}, "overall/rewards/rouge")
    rows_of_rl = [row for row in metrics(run) if "rewards/rouge/mean" in row]
    assert len(rows_of_rl) == 2 and all(0 <= row["rewards/rouge/mean"] <= 1 for row in rows_of_rl)
    last = evaluations(run)[-1]
    assert last["cases"] == 4 and "rewards/rouge" in last["greedy"]["overall"]


def test_a_run_on_imported_masks_says_so(tmp_path: Path) -> None:
    inside = np.zeros((56, 56), np.uint8)
    inside[:28, :28] = 255
    Image.fromarray(inside).save(tmp_path / "mask.png")
    base = {"domain": "ct", "question": "?", "labels": ["x"], "label_space": ["x", "y"], "mask": "mask.png"}
    rows = [base | {"id": f"{n}", "media": {"image": picture(tmp_path, n)}} for n in range(4)]
    rows = [row | {"mask_source": "BiomedParse"} if n % 2 else row for n, row in enumerate(rows)]
    node = {"name": "jsonl", "path": write(tmp_path, "rows.jsonl", rows)}
    rewards = {"accuracy": {"weight": 0.6}, "iou": {"weight": 0.2}, "hungarian_boxes": {"weight": 0.2}}
    run = ran(tmp_path, node, rewards, "overall/f1")
    steps = [row for row in metrics(run) if "rewards/iou/mean" in row]
    assert len(steps) == 2
    for name in ("iou", "hungarian_boxes"):
        assert all(row[f"rewards/{name}/pseudo_masks_share"] == 0.5 for row in steps)
    last = evaluations(run)[-1]["greedy"]["overall"]
    assert last["pseudo_masks"] == 2 and last["support"] == 4 and "rewards/iou/pseudo_masks" in last
    sources = [row.get("mask_source") for row in read(run / "predictions-valid.jsonl")]
    assert sorted(sources, key=str) == ["BiomedParse", "BiomedParse", None, None]


def test_medmos_recipe_takes_two_steps(tmp_path: Path) -> None:
    recipe = yaml.safe_load(MEDMO.read_text(encoding="utf-8"))
    cases = {"name": "synthetic", "size": 12, "seed": 1, "domains": ["fundus"], "task": "tagged"}
    regions = cases | {"seed": 3, "task": "tagged"}
    recipe["model"] = {"name": "tiny", "options": OPTIONS}
    recipe["data"] = {"min_pixels": 784, "max_pixels": 7056, "train": [cases, regions], "valid": [cases | {"size": 2}]}
    recipe["rollout"] |= {"n": 2, "max_new_tokens": 12, "prompts": 8}
    recipe["trainer"] = {"accelerator": "cpu", "devices": 1, "threads": 1, "out": f"{tmp_path}/runs/{{name}}"}
    recipe["loggers"] = [{"name": "jsonl"}]
    recipe["evaluation"] = {"best": "overall/reward"}
    recipe["stages"][0] |= {"steps": 2, "equal_groups": "keep"}
    recipe["stages"].insert(0, {"name": "sft", "objective": {"name": "sft"}, "steps": 2})
    path = tmp_path / "medmo.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    assert command("recipe", "check", path, "--deep") == 0
    assert command("fit", path) == 0
    steps = [row for row in metrics(tmp_path / "runs" / "qoqmed-medmo") if "reward" in row]
    assert len(steps) == 2
    for name in ("label_accuracy", "hungarian_boxes", "tag_count", "soft_overlong"):
        assert all(f"rewards/{name}/mean" in row for row in steps)
    assert all(-1 <= row["rewards/soft_overlong/mean"] <= 0 for row in steps)
