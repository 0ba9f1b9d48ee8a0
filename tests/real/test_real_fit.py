"""The recipe for the real clinical data, shortened: every domain through both stages, evaluated, killed and resumed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_run import OPTIONS, evaluations, metrics, read, same, weights

from qoqmed.evaluate import evaluate
from qoqmed.fit import fit

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.usefixtures("tiny")]

RECIPE = Path(__file__).parent.parent.parent / "recipes" / "real_smoke.yaml"
NINE = {"chest_xray", "mammography", "dermoscopy", "fundus", "pathology", "ultrasound", "ct", "mri", "ecg"}
PROMPTS = 36


def short(real_root: Path, out: Path) -> list[str]:
    """Overrides for a small policy that looks at small pictures and says little."""
    sizes = ", ".join(f"{name}: {value}" for name, value in OPTIONS.items())
    evaluation = ["evaluation.limit=36", "trainer.checkpoint_every=2", "trainer.threads=1", "traces=text"]
    rollout = [f"rollout.prompts={PROMPTS}", "rollout.n=2", "rollout.max_new_tokens=16"]
    places = [f"data.root={real_root}", f"trainer.out={out}/real", "data.max_pixels=3136"]
    return [*places, f"model.options={{{sizes}}}", *rollout, *evaluation]


@pytest.fixture(scope="module")
def whole(tiny: None, real_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody stopped."""
    result = fit(RECIPE, short(real_root, tmp_path_factory.mktemp("whole")))
    assert result.finished
    return result.folder


def test_it_trains_on_all_nine_domains(whole: Path, real_root: Path) -> None:
    assert not (whole / "skipped.jsonl").exists()
    rows = [row for path in sorted((whole / "traces").iterdir()) for row in read(path)]
    supervised, reinforced = ([row for row in rows if row["stage"] == name] for name in ("supervised", "reinforced"))
    assert {row["domain"] for row in supervised} == NINE
    train = [row for row in read(real_root / "manifest.jsonl") if row["split"] == "train"]
    assert sorted(row["case"] for row in supervised) == sorted(row["id"] for row in train)  # one epoch: each once
    unlabelled = {row["id"] for row in train if row["dataset"] == "isic2017"}
    answers = [row["response"] for row in supervised if row["case"] in unlabelled]
    assert answers and all("bbox_2d" in text and "boxed" not in text for text in answers)
    assert reinforced and all(row["reward"] is not None for row in reinforced)
    losses = [row["loss"] for row in metrics(whole) if "lr" in row][: len(supervised) // PROMPTS]
    assert losses[-1] < losses[0] - 1


def test_it_evaluates(whole: Path) -> None:
    last = evaluations(whole)[-1]
    assert last["split"] == "valid" and last["cases"] == 36 and set(last["greedy"]["domains"]) == NINE
    assert evaluate(whole) == last["greedy"]


def test_it_resumes_after_a_kill_with_the_same_weights(whole: Path, real_root: Path, tmp_path: Path) -> None:
    words = short(real_root, tmp_path)
    beat = tmp_path / "real" / "heartbeat.json"
    with subprocess.Popen(
        [sys.executable, "-m", "qoqmed", "fit", str(RECIPE), *words],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
    ) as process:
        while not beat.exists() or json.loads(beat.read_text())["step"] < 5:
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
    assert fit(RECIPE, words, resume="auto").finished
    assert same(weights(tmp_path / "real"), weights(whole))
    assert evaluations(tmp_path / "real") == evaluations(whole)
    assert metrics(tmp_path / "real") == metrics(whole)
