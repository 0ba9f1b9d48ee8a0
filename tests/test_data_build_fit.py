"""`data build`, `data check`, then `fit`, as commands: ten published layouts, one recipe, the smallest policy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from published_layouts import MAKERS
from test_data_build_mimic_iv import stays
from tiny_run import command, evaluations, metrics, place, read

pytest.importorskip("nibabel")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("tiny")]
LAYOUTS = MAKERS | {"mimic_iv_los": stays}
NAMES = ("ptb_xl", "vindr_cxr", "cmmd", "ham10000", "aptos_2019", "bcss", "busi", "covid_us", "kits23", "mimic_iv_los")


def test_what_is_built_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sources = tmp_path / "sources"
    train, valid = [], []
    for name in NAMES:
        (sources / name).mkdir(parents=True)
        LAYOUTS[name](sources / name)
        out = tmp_path / "built" / name
        words = ["valid=0.3", "test=0", "--json"]
        assert command("data", "build", name, sources / name, out, *words) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["rows"]["train"] and told["folder"] == str(out)
        files = [out / f"{split}.jsonl" for split in ("train", "valid") if told["rows"][split]]
        others = [word for file in files[1:] for word in ("--split", file)]
        assert command("data", "check", files[0], *others, "--root", sources / name, "--decode", "--workers", "1") == 0
        capsys.readouterr()
        for split, nodes in (("train", train), ("valid", valid)):
            if told["rows"][split]:
                nodes.append({"name": "jsonl", "path": str(out / f"{split}.jsonl"), "prefix": name})
    data = {"root": str(sources), "frames": 2, "min_pixels": 784, "max_pixels": 3136, "train": train, "valid": valid}
    stages = [
        {"name": "sft", "objective": {"name": "sft"}, "optimizer": {"lr": 2.0e-3}, "steps": 6},
        {"name": "rl", "objective": {"name": "policy_gradient"}, "advantage": {"name": "drpo"}, "steps": 1},
    ]
    stages[1]["optimizer"] = {"lr": 1.0e-3}
    here = place(tmp_path, data=data, stages=stages, traces="ids")
    assert command("fit", here.recipe) == 0
    losses = [row["loss"] for row in metrics(here.run) if "lr" in row][:6]
    assert losses[-1] < losses[0]
    asked = {row["domain"] for path in (here.run / "traces").iterdir() for row in read(path)}
    assert asked == {
        "chest_xray", "ct", "dermoscopy", "ecg", "fundus", "mammography", "mimic_iv", "pathology", "ultrasound"
    }  # fmt: skip
    assert not (here.run / "skipped.jsonl").exists()
    assert evaluations(here.run)[-1]["cases"] == sum(len(read(Path(node["path"]))) for node in valid)
