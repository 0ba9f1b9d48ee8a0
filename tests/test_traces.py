"""Traces: every rollout a row, with no more content than the level allows, and none twice after a resumption."""

import hashlib
import json
from types import SimpleNamespace

import pytest
import torch

from qoqmed.callbacks.traces import Traces
from qoqmed.packing import Prompt
from qoqmed.report.traces import read_traces, trace_rows
from qoqmed.types import Answer, Box, Case, Flaw, Group, Medium, Reading, Rollout, StepReport, Target, Verdict

CASE = Case(
    "case-1",
    "ct",
    "abdomen",
    "diagnosis",
    "What is seen?",
    (Medium("image", "scans/1.png", view="axial"),),
    ("cyst", "none"),
    Target(labels=("cyst",)),
    patient="Jane Doe",
)
PROMPT = Prompt(
    "case-1",
    token_ids=torch.tensor([1, 9, 9, 9, 2, 2]),
    positions=torch.zeros(3, 6, dtype=torch.long),
    start=6,
    image_slots=torch.tensor([1, 2, 3]),
)
READING = Reading("dark", (Box(0.1, 0.2, 0.3, 0.4, "cyst"),), Answer(labels=("cyst",)), (Flaw("box", "five numbers"),))
GROUP = Group(
    CASE,
    PROMPT,
    (Rollout("case-1", 0, (4, 5, 6), "a cyst é", seed=11), Rollout("case-1", 1, (7,), "??", finish_reason="length")),
    (READING, Reading()),
    (
        {"accuracy": Verdict(1.0, reason="1 right"), "iou": Verdict.not_applicable("no mask")},
        {"accuracy": Verdict(0.0)},
    ),
    (1.0, None),
    (True, False),
)
SECRETS = ("a cyst", "dark", "What is seen", "scans/1.png", "Jane Doe", "five numbers")


def decode(ids):
    return " ".join(str(i) for i in ids)


def test_ids_has_hashes_and_numbers_only():
    first, second = trace_rows(GROUP, 3, "rl", "ids", (0.5, 0.0), decode)
    text = json.dumps([first, second])
    assert not any(secret in text for secret in SECRETS)
    assert first["sha256"] == hashlib.sha256("a cyst é".encode()).hexdigest()
    assert {key: first[key] for key in ("step", "stage", "case", "domain", "dataset", "rollout", "seed", "length")} == {
        "step": 3,
        "stage": "rl",
        "case": "case-1",
        "domain": "ct",
        "dataset": "abdomen",
        "rollout": 0,
        "seed": 11,
        "length": 3,
    }
    assert first["rewards"] == {"accuracy": 1.0, "iou": None} and first["reward"] == 1.0
    assert first["statuses"]["iou"] == "not_applicable" and first["reasons"]["iou"] == "no mask"
    assert first["advantage"] == 0.5 and first["trainable"] is True
    assert second["reward"] is None and second["trainable"] is False and second["finish_reason"] == "length"


def test_text_adds_the_response_and_its_reading():
    first, _ = trace_rows(GROUP, 3, "rl", "text", (0.5, 0.0), decode)
    assert first["response"] == "a cyst é" and first["reading"]["reasoning"] == "dark"
    assert first["reading"]["boxes"][0]["label"] == "cyst" and first["reading"]["answer"]["labels"] == ("cyst",)
    assert first["reading"]["flaws"] == ({"kind": "box", "detail": "five numbers"},)
    assert "What is seen" not in json.dumps(first) and "scans/1.png" not in json.dumps(first)


def test_full_adds_the_prompt_and_the_media():
    first, _ = trace_rows(GROUP, 3, "rl", "full", (0.5, 0.0), decode)
    assert first["prompt"] == "1 9 2 2" and first["question"] == "What is seen?"  # placeholders once
    assert first["media"] == [{"modality": "image", "path": "scans/1.png", "view": "axial"}]
    assert "Jane Doe" not in json.dumps(first)


def test_supervised_groups_have_neither_rewards_nor_advantages():
    gold = Group(CASE, PROMPT, (Rollout("case-1", 0, (4,), "a cyst", finish_reason="gold"),), trainable=(True,))
    (row,) = trace_rows(gold, 1, "sft", "text")
    assert row["reward"] is None and row["rewards"] == {} and row["advantage"] is None and row["reading"] is None


@pytest.fixture
def trainer(tmp_path):
    return SimpleNamespace(
        run=SimpleNamespace(traces=tmp_path / "traces"),
        fabric=SimpleNamespace(global_rank=0),
        is_global_zero=True,
        global_step=0,
        advantages=((0.5, -0.5),),
    )


def step(traces, trainer, number):
    report = StepReport("rl", number, 9, number, {}, {})
    traces.on_train_batch_end(trainer=trainer, pl_module=None, outputs=report, batch=(GROUP,), batch_idx=number - 1)


def test_a_file_per_step_and_rank_and_none_twice_after_a_resumption(trainer):
    traces = Traces("text", decode)
    traces.on_fit_start(trainer=trainer, pl_module=None)
    for number in (1, 2, 3):
        step(traces, trainer, number)
    trainer.fabric.global_rank = 1
    step(traces, trainer, 3)
    rows = list(read_traces(trainer.run.traces))
    assert [row["step"] for row in rows] == [1, 1, 2, 2, 3, 3, 3, 3] and rows[1]["advantage"] == -0.5
    assert rows[0]["response"] == "a cyst é"
    trainer.global_step = 2
    Traces("text").on_fit_start(trainer=trainer, pl_module=None)
    assert [row["step"] for row in read_traces(trainer.run.traces)] == [1, 1, 2, 2]


def test_stages_without_advantages(trainer):
    trainer.advantages = ()
    step(Traces(), trainer, 1)
    assert [row["advantage"] for row in read_traces(trainer.run.traces)] == [None, None]
