"""Data sets: rows of files as cases, bad rows told with their place; the drawn default."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qoqmed.datasets import heartbeat, phantoms
from qoqmed.datasets.jsonl import JsonLines
from qoqmed.datasets.synthetic import SHARES, Synthetic
from qoqmed.errors import DataError, UserError
from qoqmed.types import Box, Mask, Medium

ROW = {
    "id": "a",
    "domain": "chest_xray",
    "dataset": "ours",
    "question": "What is shown?",
    "media": [{"modality": "image", "path": "a.png", "view": "PA"}],
    "labels": ["edema"],
    "label_space": ["edema", "nodule"],
}
MANIFEST_ROW = {
    "id": "m1",
    "domain": "ct",
    "dataset": "bhsd",
    "label": ["bleed"],
    "label_space": ["bleed", "none"],
    "files": {"image": "ct/m1.png"},
    "mask": "ct/m1_mask.png",
    "bbox": [[10, 20, 30, 40]],
    "bbox_names": ["left"],
    "width": 100,
    "height": 200,
    "split": "train",
    "view": "axial",
    "patient": "p1",
    "licence": "CC0",
}
MAPPING = {"labels": "label", "media": "files", "boxes_xywh": "bbox", "box_labels": "bbox_names"}


def write(folder, *rows):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return "rows.jsonl"


def cases(folder, *rows, **arguments):
    data = JsonLines(write(folder, *rows), root=str(folder), **arguments)
    return [data[i] for i in range(len(data))]


# ---------------------------------------------------------------- rows
def test_a_canonical_row(tmp_path):
    extra = {"boxes": [[0.1, 0.2, 0.3, 1.005]], "box_labels": ["edema"], "mask": "m.png", "text": "Hazy.", "value": 2}
    (case,) = cases(tmp_path, {**ROW, **extra, "attributes": {"mine/x": 1}}, prefix="set")
    assert case.media == (Medium("image", "set/a.png", view="PA"),) and case.text == "What is shown?"
    assert case.task == "diagnosis" and case.dataset == "ours" and case.attributes == {"mine/x": 1}
    assert case.target.labels == ("edema",) and case.label_space == ("edema", "nodule") and case.target.value == 2
    assert case.target.boxes == (Box(0.1, 0.2, 0.3, 1.0, "edema"),)
    assert case.target.mask == Mask("set/m.png") and case.target.text == "Hazy." and case.target.event is None


def test_a_row_with_a_pair_of_responses(tmp_path):
    pair = {"chosen": "Hazy. \\boxed{edema}", "rejected": "Clear."}
    (case,) = cases(tmp_path, {**ROW, **pair, "attributes": {"mine/x": 1}})
    expected = {"mine/x": 1, "dpo/chosen": pair["chosen"], "dpo/rejected": "Clear."}
    assert case.attributes == expected
    (renamed,) = cases(tmp_path, {**ROW, "won": "a", "lost": "b"}, mapping={"chosen": "won", "rejected": "lost"})
    assert renamed.attributes == {"dpo/chosen": "a", "dpo/rejected": "b"}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"chosen": "a"}, "has 'chosen' alone"),
        ({"rejected": "a"}, "has 'rejected' alone"),
        ({"chosen": "a", "rejected": "a"}, "the same text"),
        ({"chosen": "a", "rejected": " "}, "'rejected' is missing or blank"),
        ({"chosen": ["a"], "rejected": "b"}, "'chosen' is no text"),
    ],
)
def test_half_a_pair_is_refused(tmp_path, fields, said):
    with pytest.raises(DataError, match=said) as error:
        cases(tmp_path, {**ROW, **fields})
    assert ROW["id"] in str(error.value)


def test_another_manifest_through_a_mapping(tmp_path):
    (case,) = cases(tmp_path, MANIFEST_ROW, mapping=MAPPING)
    assert case.media == (Medium("image", "ct/m1.png", view="axial"),) and case.patient == "p1"
    assert case.target.boxes == (Box(0.1, 0.1, 0.4, 0.3, "left"),) and case.target.labels == ("bleed",)
    (case,) = cases(tmp_path, MANIFEST_ROW, mapping={**MAPPING, "mask": None, "boxes_xywh": None})
    assert case.target.mask is None and case.target.boxes is None


def test_boxes_and_mask_lie_on_the_first_picture(tmp_path):
    media = [{"modality": "ecg", "path": "e"}, {"modality": "image", "path": "a.png"}]
    boxes = {"boxes_px": [[0, 0, 5, 10]], "width": 10, "height": 10}
    (case,) = cases(tmp_path, {**ROW, "media": media, "mask": "m.png", **boxes})
    assert case.target.boxes == (Box(0, 0, 0.5, 1, medium=1),) and case.target.mask.medium == 1
    (case,) = cases(tmp_path, {**ROW, "media": {"image": ["a.png", "b.png"], "ecg": "e"}})
    assert [medium.path for medium in case.media] == ["a.png", "b.png", "e"]


def test_a_medium_says_how_it_is_read(tmp_path):
    media = [
        {"modality": "volume", "path": "v.nii", "axis": "coronal", "window": [0, 80], "frames": 8, "view": "cor"},
        {"modality": "video", "path": "v.mp4", "start_s": 1, "stop_s": None},
        {"modality": "image", "path": "a.png"},
        {"modality": "ecg", "path": "e.csv", "rate_hz": 500, "leads": ["I", "II"]},
    ]
    (case,) = cases(tmp_path, {**ROW, "media": media, "mask": "m.nii"})
    assert [dict(medium.options) for medium in case.media] == [
        {"axis": "coronal", "window": [0, 80], "frames": 8}, {"start_s": 1}, {}, {"rate_hz": 500, "leads": ["I", "II"]},
    ]  # fmt: skip
    assert case.media[0].view == "cor" and pickle.loads(pickle.dumps(case)) == case


def test_unknown_and_empty_labels_differ(tmp_path):
    rows = [{**ROW, "id": str(i), "labels": labels} for i, labels in enumerate([None, [], "edema"])]
    rows.append({**ROW, "id": "3", "labels": [], "label_space": []})  # a set for localisation only
    assert [case.target.labels for case in cases(tmp_path, *rows)] == [None, (), ("edema",), None]


def test_a_blank_question_is_phrased_by_the_domain_always_the_same_way(tmp_path):
    from qoqmed.domains.catalogue import chest_xray

    rows = [{**ROW, "id": str(i), "question": " "} for i in range(40)]
    first = [case.text for case in cases(tmp_path, *rows)]
    assert first == [case.text for case in cases(tmp_path, *rows)]
    assert set(first) <= set(chest_xray.phrasings) and len(set(first)) == len(chest_xray.phrasings)


def test_a_missing_label_space_is_that_of_the_domains_data_set(tmp_path):
    from qoqmed.domains.catalogue import chest_xray

    dataset, space = next(iter(chest_xray.datasets.items()))
    row = {**ROW, "dataset": dataset, "label_space": None, "labels": [space[0]]}
    (case,) = cases(tmp_path, row)
    assert case.label_space == space


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"labels": ["edemas"]}, "outside the label space(.|\n)*did you mean 'edema'"),
        ({"labels": ["edema", "edema"]}, "twice"),
        ({"labels": ["edema"], "label_space": None}, "no label space"),
        ({"label_space": ["a", "a"]}, "names a label twice"),
        ({"labels": [3]}, "'labels' is no text"),
        ({"question": 3}, "'question' is no text"),
        ({"question": "", "domain": "chest_xrays"}, "did you mean 'chest_xray'"),
        ({"media": "a.png"}, "neither a list nor an object"),
        ({"media": [{"modality": "image"}]}, "'path' is missing"),
        ({"media": [{"modality": "image", "path": "a", "veiw": "PA"}]}, "has no 'veiw'(.|\n)*did you mean 'view'"),
        ({"media": ["a.png"]}, "malformed"),
        ({"media": [{"modality": "image", "path": "a", "axis": "axial"}]}, "'image' has no 'axis'"),
        ({"media": [{"modality": "volume", "path": "a", "windw": "lung"}]}, "did you mean 'window'"),
        ({"media": [{"modality": "volume", "path": "a", "window": "lungs"}]}, "did you mean 'lung'"),
        ({"media": [{"modality": "volume", "path": "a", "frames": 0}]}, "'frames'(.|\n)*from 1"),
        ({"media": [{"modality": "video", "path": "a", "start_s": 3, "stop_s": 2}]}, "stretch of the video is empty"),
        ({"media": [{"modality": "ecg", "path": "a", "rate_hz": {"value": 500}}]}, "'rate_hz' of a medium"),
        ({"boxes": [[0.5, 0.5, 0.4, 0.6]]}, "empty or leaves"),
        ({"boxes": [[0, 0, 1.2, 1]]}, "empty or leaves"),
        ({"boxes": [[0, 0, 1, None]]}, "not four numbers"),
        ({"boxes": [[0, 0, 1, "1"]]}, "no finite number"),
        ({"boxes": [[0, 0, 1, 1]], "box_labels": ["a", "b"]}, "does not fit"),
        ({"boxes": [[0, 0, 1, 1]], "boxes_px": [[0, 0, 1, 1]]}, "several forms"),
        ({"boxes_px": [[0, 0, 1, 1]]}, "need 'width' and 'height'"),
        ({"boxes": 5}, "'boxes' is no list of boxes"),
        ({"boxes_px": True}, "'boxes_px' is no list of boxes"),
        ({"boxes_xywh": 1e300}, "'boxes_xywh' is no list of boxes"),
        ({"value": 10**400}, "no finite number"),
        ({"event": 1}, "neither true nor false"),
        ({"attributes": []}, "no object"),
        ({"text": "\ud800"}, "half a character"),
    ],
)
def test_a_wrong_row_is_told_with_file_line_and_id(tmp_path, change, said):
    data = JsonLines(write(tmp_path, {**ROW, "id": "first"}, {**ROW, **change}), root=str(tmp_path))
    assert data[0].id == "first"
    with pytest.raises(DataError, match=said) as error:
        data[1]
    assert error.value.problems[0].where == f"a ({tmp_path}/rows.jsonl:2)"


# ---------------------------------------------------------------- the index
def test_the_index_reports_every_bad_line_at_once(tmp_path):
    bad = ['{"id": "x", "domain": "ct", "value": NaN}', "{", "[]", '{"domain": "ct"}', '{"id": "y"}', "[" * 100_000]
    with pytest.raises(DataError) as error:
        cases(tmp_path, ROW, "", *bad, ROW, {**ROW, "id": "z", "lables": []})
    told = [(problem.where.rpartition(":")[2], problem.what) for problem in error.value.problems]
    assert [line for line, _ in told] == ["3", "4", "5", "6", "7", "8", "9", "10"]
    for (_, what), said in zip(
        told,
        ["NaN is not", "not valid JSON", "no JSON object", "'id' is missing", "'domain' is missing", "not valid JSON",
         "used before, in line 1", "unknown field 'lables'"],
        strict=True,
    ):  # fmt: skip
        assert said in what
    assert "did you mean 'labels'" in str(error.value)


def test_filters(tmp_path):
    rows = [{**MANIFEST_ROW, "id": str(i), "split": "train" if i % 2 else "valid", "label": ["bleed"] * (i > 2)}
            for i in range(6)]  # fmt: skip
    for arguments, expected in [
        ({"where": {"split": "train"}}, ["1", "3", "5"]),
        ({"where": {"split": ["train", "valid"], "id": ["0", "1"]}}, ["0", "1"]),
        ({"unless": {"id": "0", "split": "train"}}, ["2", "4"]),
        ({"where": {"label": "bleed"}}, ["3", "4", "5"]),
    ]:
        assert [case.id for case in cases(tmp_path, *rows, mapping=MAPPING, **arguments)] == expected
    with pytest.raises(DataError, match="did you mean 'split'"):
        cases(tmp_path, *rows, mapping=MAPPING, where={"splits": "train"})
    with pytest.raises(DataError, match="no row is left"):
        cases(tmp_path, *rows, mapping=MAPPING, where={"split": "test"})


def test_the_index_reads_rows_anywhere_and_travels(tmp_path):
    rows = [{**ROW, "id": f"é{i}", "domain": "ct" if i % 3 else "mri"} for i in range(20)]
    data = JsonLines(write(tmp_path, "\ufeff" + json.dumps(rows[0]), "", *rows[1:]), root=str(tmp_path))
    copy = pickle.loads(pickle.dumps(data))
    for i in (19, 0, 7, -1):
        assert copy[i] == data[i] and data[i].id == f"é{i % 20}"
    assert data.domains[:4] == ["mri", "ct", "ct", "mri"] and len(list(data)) == 20
    other = JsonLines(write(tmp_path, *rows[::-1]), root=str(tmp_path))
    assert other.fingerprint != data.fingerprint == copy.fingerprint


def test_wrong_arguments(tmp_path):
    with pytest.raises(DataError, match="does not exist(.|\n)*data.root"):
        JsonLines("missing.jsonl", root=str(tmp_path))
    with pytest.raises(DataError, match="did you mean 'labels'"):
        cases(tmp_path, ROW, mapping={"label": "label"})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(["id", "domain", *ROW, "boxes", "boxes_px", "width", "mask"]), json_values))
def test_any_row_is_a_case_or_a_data_error(tmp_path_factory, change):
    folder = tmp_path_factory.mktemp("row")
    try:
        assert cases(folder, {**ROW, **change})
    except DataError as error:
        assert error.problems[0].where.endswith(("rows.jsonl:1", "rows.jsonl:1)"))


# ---------------------------------------------------------------- synthetic
def same(one, other):
    """Whether two cases are equal, arrays included."""
    return pickle.dumps(one) == pickle.dumps(other)


def test_a_case_depends_on_seed_and_index_alone():
    short, long, other = Synthetic(20, seed=5), Synthetic(200, seed=5), Synthetic(20, seed=6)
    assert long.domains[:20] == short.domains
    assert all(same(short[i], long[i]) for i in (19, 3, 0)) and same(short[-1], long[19])
    assert not any(same(short[i], other[i]) for i in range(20))
    assert len({long[i].id for i in range(200)}) == 200
    with pytest.raises(IndexError):
        short[20]


def test_every_domain_is_drawn_and_labelled():
    data = Synthetic(18, balanced=True)
    assert data.domains == list(SHARES) * 2
    for i in range(9):
        case = data[i]
        (medium,) = case.media
        assert case.domain == data.domains[i] and case.target.labels[0] in case.label_space and case.target.text
        if case.domain == "ecg":
            assert medium.array.shape == (len(heartbeat.LEADS), heartbeat.SAMPLES) and case.target.boxes is None
            continue
        assert medium.modality == ("volume" if case.domain in ("ct", "mri") else "image")
        (box,) = case.target.boxes
        inside = case.target.mask.array
        rows, columns = np.nonzero(inside)
        side = phantoms.SIDE_PX
        assert (box.x1 * side, box.x2 * side) == (columns.min(), columns.max() + 1)
        assert (box.y1 * side, box.y2 * side) == (rows.min(), rows.max() + 1)


def test_domain_sizes_are_skewed_and_can_be_chosen():
    assert sum(SHARES.values()) == pytest.approx(1)
    domains = Synthetic(4000, seed=1).domains
    for name, share in SHARES.items():
        assert domains.count(name) / 4000 == pytest.approx(share, abs=0.025)
    few = Synthetic(300, domains=["ecg", "ultrasound"], task="grounding")
    assert set(few.domains) == {"ecg", "ultrasound"} and few.domains.count("ecg") > 150 and few[0].task == "grounding"
    with pytest.raises(UserError, match="did you mean 'ecg'"):
        Synthetic(3, domains=["ekg", "ecgs"])


def test_some_cases_are_faint_and_nothing_else_of_them_changes():
    shares = {"ct": 1.0, "ecg": 1.0, "mri": 0.3}
    plain, faint = Synthetic(900, seed=4, balanced=True), Synthetic(900, seed=4, balanced=True, faint=shares)
    for i in range(18):
        one, other = plain[i], faint[i]
        assert one.target.labels == other.target.labels and one.target.boxes == other.target.boxes
        assert one.target.text == other.target.text and (
            one.domain == "mri" or same(one, other) != (one.domain in shares)
        )
        if one.domain == "ecg":  # from sample to sample, five times the noise
            steps = [np.abs(np.diff(case.media[0].array[0])).mean() for case in (one, other)]
            assert steps[1] > 2 * steps[0]
    scans = [i for i, name in enumerate(plain.domains) if name == "mri"]
    assert 0.15 < sum(not same(plain[i], faint[i]) for i in scans) / len(scans) < 0.45
    assert plain.fingerprint != faint.fingerprint and same(
        faint[3], Synthetic(4, seed=4, balanced=True, faint=shares)[3]
    )
    with pytest.raises(UserError, match="did you mean 'ecg'"):
        Synthetic(3, faint={"ekg": 0.5})
    with pytest.raises(UserError, match="faint.ct is out of range"):
        Synthetic(3, faint={"ct": 2.0})


def test_a_faint_lesion_has_its_part_of_the_contrast():
    none, faint, full = (
        phantoms.draw("mri", np.random.default_rng(5), strength).image.astype(float) for strength in (0.0, 0.35, 1.0)
    )
    assert np.abs(faint - none).mean() / np.abs(full - none).mean() == pytest.approx(0.35, rel=0.02)


def test_without_reports_the_text_is_missing_and_the_rest_is_there():
    told, untold = Synthetic(18, balanced=True), Synthetic(18, balanced=True, reports=False)
    for i in range(18):
        assert untold[i].target.text is None and told[i].target.text
        assert same(untold[i], replace(told[i], target=replace(told[i].target, text=None)))
    assert untold.fingerprint != told.fingerprint


def test_data_sets_load_no_torch():
    code = "import sys, qoqmed.datasets.jsonl, qoqmed.datasets.synthetic, qoqmed.datasets.sampler;"
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_blank_question_is_the_data_sets_own_where_the_domain_knows_it(tmp_path):
    from qoqmed.domains.catalogue import chest_xray

    rows = [{**ROW, "id": str(i), "question": None, "dataset": "CheXpert"} for i in range(40)]
    asked = {case.text for case in cases(tmp_path, *rows)}
    assert asked == set(chest_xray.questions("CheXpert")) and asked.isdisjoint(chest_xray.phrasings)


TURNED = [[0, 1, 0], [1, 0, 0]]


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ({"views/transform": [{"from": "PA", "to": "lateral", "matrix": [[1, 0, 0]]}]}, "views/transform"),
        ({"views/transform": [{"from": "PA", "to": "lateral", "matrix": [[1, 0, 0], [1, 0, 0]]}]}, "no inverse"),
        ({"views/transform": 7}, "views/transform"),
        ({"reading/synonyms": {"edema": "fluid"}}, "reading/synonyms"),
        ({"reading/synonyms": {"stone": ["calculus"]}}, "reading/synonyms"),
        ({"media/sizes_px": [10, 20]}, "media/sizes_px"),
        ({"media/sizes_px": [[10, 0]]}, "media/sizes_px"),
        ({"media/sizes_px": [[10, 20], None]}, "media/sizes_px"),
        ({"mask/source": 5}, "mask/source"),
    ],
)
def test_a_malformed_attribute_of_ours_is_told_with_file_and_line(tmp_path, attributes, said):
    fine = {"views/transform": [{"from": "PA", "to": "lateral", "matrix": TURNED}], "media/sizes_px": [[10, 20]]}
    rows = [{**ROW, "attributes": fine}, {**ROW, "id": "b", "attributes": attributes}]
    data = JsonLines(write(tmp_path, *rows), tmp_path)
    assert data[0].attributes == fine
    with pytest.raises(DataError, match=said) as error:
        data[1]
    assert error.value.problems[0].where == f"b ({tmp_path / 'rows.jsonl'}:2)"
