"""Every shipped spec on a miniature of its data set's published layout; expected labels are written by hand there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from published_layouts import MAKERS

from qoqmed.datasets.jsonl import JsonLines
from qoqmed.media import ecg, frames
from qoqmed.preparing.build import build
from qoqmed.preparing.spec import load, shipped
from qoqmed.reading import clashes
from qoqmed.tasks.diagnosis import Diagnosis

pytest.importorskip("nibabel")


def cases_of(built):
    """Case -> its split, read as training would read them."""
    found = []
    for split, count in built.rows.items():
        if count:
            rows = JsonLines(str((built.folder / f"{split}.jsonl").resolve()), root=str(built.source))
            found += [(rows[place], split) for place in range(len(rows))]
    return found


def test_every_shipped_spec_has_a_layout():
    assert set(shipped()) == set(MAKERS) | {"mimic_iv_los", "mimic_iv_mortality"}


@pytest.mark.parametrize("name", MAKERS)
def test_a_spec_reads_its_layout(name, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    expected = MAKERS[name](source)
    built = build(name, source, tmp_path / "out")
    cases = cases_of(built)
    assert {case.id.removeprefix(f"{name}-"): list(case.target.labels) for case, _ in cases} == expected.labels
    assert built.left_out == expected.left_out
    where = {case.id.removeprefix(f"{name}-"): split for case, split in cases}
    assert {key: where[key] for key in expected.splits} == expected.splits
    owners = {}
    for case, split in cases:
        assert owners.setdefault(case.patient or case.id, split) == split
        Diagnosis().check(case)
        for medium in case.media:
            if medium.modality == "ecg":
                assert ecg.load(source / medium.path).shape == (12, 2500)
            else:
                assert frames.load(medium, source, 4)
    if expected.patients is not None:
        assert len(owners) == expected.patients
    lines = [json.loads(line) for line in (built.folder / "left_out.jsonl").read_text().splitlines()]
    assert len(lines) == sum(expected.left_out.values())


@pytest.mark.parametrize("name", shipped())
def test_the_labels_of_a_spec_can_be_answered(name):
    spec = load(name)
    assert clashes(tuple(spec.label_space)) == ()
    assert spec.layout and spec.about and spec.licence


def test_uncertain_labels_by_each_policy(tmp_path: Path):
    MAKERS["chexpert"](tmp_path)
    second = "chexpert-train/patient00002/study1/view1_frontal.jpg"

    def labels(policy):
        built = build("chexpert", tmp_path, tmp_path / policy, {"uncertain": policy})
        return {case.id: case for case, _ in cases_of(built)}.get(second), built

    hidden, _ = labels("hide")
    assert set(hidden.target.labels) == {"Fracture", "Lung Opacity"}
    unsure = {"Cardiomegaly", "Edema", "Consolidation", "Atelectasis", "Pleural Effusion"}
    assert len(hidden.label_space) == 9 and not unsure & set(hidden.label_space)
    assert set(labels("positive")[0].target.labels) == unsure | {"Fracture", "Lung Opacity"}
    negative, _ = labels("negative")
    assert set(negative.target.labels) == {"Fracture", "Lung Opacity"} and len(negative.label_space) == 14
    dropped, built = labels("drop")
    assert dropped is None and built.left_out["a label is uncertain"] == 2


def test_ptb_xl_at_100_hz_with_the_options_of_its_labels(tmp_path: Path):
    MAKERS["ptb_xl"](tmp_path)
    own = {"rate": "lr", "least": 50, "sinus_rate": "Normal", "st_t_forms": "Other"}
    cases = {case.id: case for case, _ in cases_of(build("ptb_xl", tmp_path, tmp_path / "out", own))}
    assert cases["ptb_xl-1"].media[0].path == "records100/00000/00001_lr"
    assert cases["ptb_xl-2"].target.labels == ("Conduction Delay (CD)",)  # the infarction has 35 percent
    assert "Other" in cases["ptb_xl-3"].target.labels
    assert cases["ptb_xl-4"].target.labels == ("Normal",)


def test_masks_of_busi_are_paths_and_several_become_boxes(tmp_path: Path):
    MAKERS["busi"](tmp_path)
    built = build("busi", tmp_path, tmp_path / "out")
    cases = {case.id: case for case, _ in cases_of(built)}
    assert cases["busi-benign (1)"].target.mask.path == "Dataset_BUSI_with_GT/benign/benign (1)_mask.png"
    boxes = cases["busi-benign (2)"].target.boxes
    assert [(box.x1, box.y1, box.x2, box.y2, box.label) for box in boxes] == [
        (0, 0, 0.25, 0.25, "Benign"),
        (0.5, 0.5, 1, 1, "Benign"),
    ]
    assert "cases with several masks: a box around each stands for them" in built.notes
