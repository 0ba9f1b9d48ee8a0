"""Every shipped spec on a miniature of its data set's published layout; expected labels are written by hand there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from published_layouts import MAKERS, table, volume
from test_domains import TABLE_5
from tiny_media import write_video

from qoqmed.datasets.jsonl import JsonLines
from qoqmed.errors import DataError
from qoqmed.media import ecg, frames
from qoqmed.preparing.build import build
from qoqmed.preparing.spec import SHIPPED, load, shipped
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


def test_every_data_set_of_table_5_has_a_spec():
    printed = [line.split(" | ")[0] for line in TABLE_5.strip().splitlines()]
    named = [load(name).data_set for name in shipped()]
    assert len(printed) == 30 and sorted(named) == sorted([*printed, "MIMIC-IV LOS", "MIMIC-IV 48-IHM"])


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


def test_an_older_release_of_inspect_has_no_patients_and_no_splits(tmp_path: Path):
    rows = ["impression_id,impressions,pe_positive,pe_acute,pe_subsegmentalonly", '1,"no, really",0,0,0', "2,x,1,1,0"]
    table(tmp_path / "Final_Impressions_labels.csv", "\n".join(rows))
    for key in (1, 2):
        volume(tmp_path / f"CTPA/{key}.nii.gz")
    built = build("inspect", tmp_path, tmp_path / "out")
    found = {case.id: case.target.labels for case, _ in cases_of(built)}
    assert found == {"inspect-1": ("No PE",), "inspect-2": ("Acute PE",)}
    told = "; ".join(built.notes)
    for part in ("no patients are known", "the publisher's splits are not there", "study_mapping_20250611.tsv is not"):
        assert part in told


def test_jichi_by_the_photographs_of_an_eye_together(tmp_path: Path):
    MAKERS["jichi"](tmp_path)
    built = build("jichi", tmp_path, tmp_path / "out", {"grading": "concatenated_figures"})
    found = {case.id.removeprefix("jichi-"): case.target.labels[0][:4] for case, _ in cases_of(built)}
    assert found == {"1_1_R.jpg": "SDR ", "1_2_L.jpg": "PPDR", "2_1_R.jpg": "PPDR", "3_1_R.jpg": "PDR "}


def test_covid_us_as_it_was_downloaded(tmp_path: Path):
    (tmp_path / "data/video/original").mkdir(parents=True)
    write_video(tmp_path / "data/video/original/6_butterfly_covid.mp4", count=6)
    built = build("covid_us", tmp_path, tmp_path / "out", {"videos": "original"})
    assert [case.target.labels for case, _ in cases_of(built)] == [("Covid",)]


def test_the_side_of_a_mammogram_comes_from_its_header_and_nothing_else_does(tmp_path: Path):
    MAKERS["cmmd"](tmp_path)
    built = build("cmmd", tmp_path, tmp_path / "out")
    views = {case.id.removeprefix("cmmd-")[:7] + case.id[-1]: case.media[0].view for case, _ in cases_of(built)}
    assert views == {"D1-00011": "R", "D1-00012": "R", "D1-00021": "L", "D1-00022": "R", "D2-00011": "L"}
    assert "NOBODY" not in "".join(path.read_text() for path in built.folder.iterdir())


def test_a_build_reads_listed_fields_of_headers_alone(tmp_path: Path):
    text = SHIPPED.joinpath("cmmd.yaml").read_text(encoding="utf-8").replace("ImageLaterality,", "PatientName,")
    (tmp_path / "cmmd.yaml").write_text(text)
    MAKERS["cmmd"](tmp_path / "source")
    with pytest.raises(DataError, match="does not read the DICOM field 'PatientName'"):
        build(str(tmp_path / "cmmd.yaml"), tmp_path / "source", tmp_path / "out")
