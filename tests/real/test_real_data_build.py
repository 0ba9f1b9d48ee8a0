"""Shipped specs on real files, laid out as their data sets were published; the manifest's labels are the oracle."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from published_layouts import rows_table
from tiny_run import command, place

from qoqmed.datasets.jsonl import JsonLines
from qoqmed.media import ecg, frames, masks
from qoqmed.preparing.build import build

pytestmark = pytest.mark.real
WORDS = {  # in the manifest's names of SNOMED codes -> our label
    "bundle branch block": "Conduction Delay (CD)",
    "1st degree av block": "Conduction Delay (CD)",
    "ventricular hypertrophy": "Hypertrophy (HYP)",
    "atrial enlargement": "Hypertrophy (HYP)",
    "myocardial infarction": "Myocardial Infarction (MI)",
    "atrial fibrillation": "Atrial Fibrillation/Atrial Flutter (A. Fib/Aflutter)",
    "t wave": "Sinus Tachycardia/Bradycardia/Conduction (STTC)",
    "s t changes": "Sinus Tachycardia/Bradycardia/Conduction (STTC)",
    "premature": "Other",
    "sinus bradycardia": "Other",
}
FOUND = {"georgia": {"leakage": 1}}  # the signals of E07509 and E07510 are the same, and the draw parts them
DX = {"melanocytic nevus": "nv", "melanoma": "mel", "basal cell carcinoma": "bcc", "dermatofibroma": "df"}
DX |= {"benign keratosis-like lesion": "bkl", "vascular lesion": "vasc"}
DX["actinic keratosis / intraepithelial carcinoma"] = "akiec"


def manifest(root, *datasets):
    rows = [json.loads(line) for line in (root / "manifest.jsonl").read_text().splitlines()]
    return [row for row in rows if row["dataset"] in datasets]


def copied(root, name, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(root / name, target)


def ham10000(root, folder):
    table = []
    for row in manifest(root, "ham10000"):
        image = row["isic_id"]
        copied(root, row["files"]["image"], folder / f"HAM10000_images_part_1/{image}.jpg")
        copied(root, row["mask"], folder / f"HAM10000_segmentations_lesion_tschandl/{image}_segmentation.png")
        table.append({"lesion_id": row["patient"], "image_id": image, "dx": DX[row["label"][0]]})
    rows_table(folder / "HAM10000_metadata.csv", table)


def busi(root, folder):
    for row in manifest(root, "busi"):
        kind, _, name = row["source_path"].removeprefix("data/").split("/")
        copied(root, row["files"]["image"], folder / kind / name)
        copied(root, row["mask"], folder / kind / name.replace(".png", "_mask.png"))


def lc25000(root, folder):
    for row in manifest(root, "lc25000"):
        copied(root, row["files"]["image"], folder / row["source_path"])


def covid_19(root, folder):
    table = []
    for row in manifest(root, "covid_chestxray"):
        name = Path(row["source_path"]).name
        copied(root, row["files"]["image"], folder / "images" / name)
        about = {"finding": "/".join(["Pneumonia", *row["label"]]), "view": row["view"], "modality": "X-ray"}
        if row["label"] == ["No Finding"]:
            about["finding"] = "No Finding"
        table.append({"patientid": row["patient"], **about, "folder": "images", "filename": name})
    rows_table(folder / "metadata.csv", table)


def covid_blues(root, folder):
    tests = {}
    for row in manifest(root, "covid_blues"):
        copied(root, row["files"]["video"], folder / row["source_path"])
        tests[row["patient"].removeprefix("covidblues-")] = row["covid_pcr"]
    rows_table(
        folder / "clinical_variables.csv", [{"patient_id": key, "cov_test": value} for key, value in tests.items()]
    )


LAYOUTS = {maker.__name__: maker for maker in (ham10000, busi, lc25000, covid_19, covid_blues)}


def cases_of(built):
    for split, count in built.rows.items():
        if count:
            rows = JsonLines(str((built.folder / f"{split}.jsonl").resolve()), root=str(built.source))
            yield from (rows[place] for place in range(len(rows)))


@pytest.mark.parametrize("name", LAYOUTS)
def test_pictures_and_masks_of_a_published_layout(name, real_root, tmp_path):
    LAYOUTS[name](real_root, tmp_path / "source")
    built = build(name, tmp_path / "source", tmp_path / "out")
    cases = list(cases_of(built))
    given = len(manifest(real_root, "covid_chestxray" if name == "covid_19" else name))
    assert len(cases) + sum(built.left_out.values()) == given and cases
    assert name == "covid_19" or not built.left_out
    for case in cases:
        shown, *_ = frames.load(case.media[0], tmp_path / "source", 4)
        if case.target.mask is not None:
            inside = masks.load(case.target.mask, tmp_path / "source", case.media[0])
            assert inside.shape == shown.shape[:2]
            assert inside.any() != (case.target.labels == ("Normal",))


def test_labels_of_ham10000_and_busi_are_the_manifests(real_root, tmp_path):
    for name in ("ham10000", "busi"):
        LAYOUTS[name](real_root, tmp_path / name)
    ham = {case.id: case for case in cases_of(build("ham10000", tmp_path / "ham10000", tmp_path / "a"))}
    nevi = {row["isic_id"] for row in manifest(real_root, "ham10000") if row["label"] == ["melanocytic nevus"]}
    assert {key.removeprefix("ham10000-") for key, case in ham.items() if case.target.labels == ("Nevus (NV)",)} == nevi
    breasts = [case.target.labels[0].lower() for case in cases_of(build("busi", tmp_path / "busi", tmp_path / "b"))]
    assert sorted(breasts) == sorted(row["label"][0] for row in manifest(real_root, "busi"))


@pytest.mark.parametrize(("name", "count"), [("georgia", 18), ("chapman", 17), ("cpsc", 10)])
def test_headers_with_snomed_codes(name, count, real_root, tmp_path):
    built = build(name, real_root / "ecg", tmp_path / "out")
    named = {
        row["files"]["ecg"].removeprefix("ecg/"): row["label"] for row in manifest(real_root, "cinc2020", "cinc2021")
    }
    cases = list(cases_of(built))
    assert len(cases) == count and not built.left_out
    for case in cases:
        path = case.media[0].path
        expected = {label for word, label in WORDS.items() if any(word in text for text in named[path])}
        assert expected <= set(case.target.labels), path
        assert ("Normal" in case.target.labels) <= (case.target.labels == ("Normal",))
        assert ecg.load(real_root / "ecg" / path).shape == (12, 2500)


@pytest.mark.slow
@pytest.mark.usefixtures("tiny")
def test_what_is_built_of_real_files_trains(real_root, tmp_path, capsys):
    nodes = []
    for name in LAYOUTS:
        LAYOUTS[name](real_root, tmp_path / "sources" / name)
    shutil.copytree(real_root / "ecg", tmp_path / "sources/georgia")
    for name in (*LAYOUTS, "georgia"):
        source, built = tmp_path / "sources" / name, tmp_path / "built" / name
        assert command("data", "build", name, source, built) == 0
        others = [word for path in (built / "valid.jsonl", built / "test.jsonl") for word in ("--split", path)]
        words = [built / "train.jsonl", *others, "--root", source, "--decode", "--workers", "1", "--json"]
        capsys.readouterr()
        code, report = command("data", "check", *words), json.loads(capsys.readouterr().out)
        assert report["errors"] == FOUND.get(name, {}) and code == (2 if report["errors"] else 0)
        nodes.append({"name": "jsonl", "path": str(tmp_path / f"built/{name}/train.jsonl"), "prefix": name})
    data = {"root": str(tmp_path / "sources"), "min_pixels": 784, "max_pixels": 3136, "train": nodes}
    stage = {"name": "sft", "objective": {"name": "sft"}, "optimizer": {"lr": 2.0e-3}, "steps": 5}
    here = place(tmp_path, data=data | {"valid": nodes[:1]}, stages=[stage])
    assert command("fit", here.recipe, "evaluation.limit=4", "rollout.prompts=8") == 0
    assert not (here.run / "skipped.jsonl").exists()
