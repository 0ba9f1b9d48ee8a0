"""`qoqmed data check`: every kind of mistake is found, told with its row, and nothing is told of a good file."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from tiny_media import write_dicom

from qoqmed import cli
from qoqmed.checking.check import check, nested
from qoqmed.checking.places import Places
from qoqmed.checking.view import report_view
from qoqmed.errors import DataError, Problem, UserError
from qoqmed.media.paths import resolve

SPACE = ["edema", "nodule"]


def picture(path, seed=0, width=20, height=10):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)).save(path)


def row(number, **change):
    own = {"id": f"r{number}", "domain": "chest_xray", "dataset": "ours", "question": "What?",
           "media": [{"modality": "image", "path": f"p/{number}.png"}], "labels": [SPACE[number % 2]],
           "label_space": SPACE, "patient": f"pt{number}"}  # fmt: skip
    return {**own, **change}


@pytest.fixture
def folder(tmp_path):
    for number in range(8):
        picture(tmp_path / f"p/{number}.png", number)
    return tmp_path


def write(folder, *rows, name="train.jsonl"):
    text = "".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in rows)
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def told(report, kind):
    return [one.problem for one in report.findings.kept if one.kind == kind]


def good(folder):
    return (
        write(folder, *(row(i) for i in range(4))),
        [write(folder, *(row(i) for i in range(4, 6)), name="valid.jsonl")],
    )


def test_nothing_is_wrong_with_a_good_file(folder):
    train, valid = good(folder)
    report = check(train, valid, decode=True, workers=1)
    assert report.errors == report.warnings == 0 and report.decoded == 6 and report.fixed is None
    assert report.rows == {"train": 4, "valid": 2}
    assert report.balance["chest_xray/ours"]["edema"] == {"train": 2, "valid": 1}


@pytest.mark.parametrize(
    ("bad", "kind", "said"),
    [
        ('{"id": 3', "json", "not valid JSON"),
        ('{"id": "x", "domain": "ct", "value": NaN}', "json", "NaN is not"),
        (row(9, lables=[]), "schema", "unknown field 'lables'"),
        (row(9, domain=""), "schema", "'domain' is missing"),
        (row(9, media=[{"modality": "image"}]), "schema", "'path' is missing"),
        (row(9, value="1"), "schema", "no finite number"),
        (row(9, event=1), "schema", "neither true nor false"),
        (row(9, chosen="x"), "schema", "alone"),
        (row(9, labels=["edemas"]), "label", "outside the label space"),
        (row(9, labels=["edema", "edema"]), "label", "twice"),
        (row(9, boxes=[[0.5, 0.5, 1.5, 1]]), "box", "leaves the picture"),
        (row(9, boxes_px=[[0, 0, 1, 1]]), "box", "need 'width'"),
        (row(9, boxes=5), "box", "no list of boxes"),
        (row(0, question="Else?"), "id", "used before, in line 1"),
        (row(9), "media", "does not exist"),
        (row(9, media={"image": "../../etc/passwd"}), "media", "'..' in it"),
        (row(9, media={"image": "https://x/y.png"}), "media", "URL"),
        (row(9, media={"image": "p/0.png"}, mask="p/none.png"), "media", "does not exist"),
    ],
)
def test_each_mistake_is_told_with_its_row(folder, bad, kind, said):
    report = check(write(folder, row(0), row(1), "", bad))
    (problem,) = told(report, kind)
    assert said in str(problem) and "train.jsonl:4" in problem.where
    assert report.errors == report.findings.counts["error", kind] == 1


def test_all_that_is_wrong_with_a_row_is_told(folder):
    report = check(write(folder, row(0, labels=["x"], boxes=[[1, 1, 0, 0]], value="1", media=[3])))
    assert {one.kind for one in report.findings.kept} == {"label", "box", "schema"}
    assert all(one.problem.where.startswith("r0 (") for one in report.findings.kept if one.kind != "schema")


# ---------------------------------------------------------------- splits
def leaks(folder, *rows, **more):
    train, _ = good(folder)
    return check(train, [write(folder, *rows, name="valid.jsonl")], **more)


def test_splits_share_nothing(folder):
    report = leaks(folder, row(4), row(0, media={"image": "p/5.png"}, patient="q"))
    assert [problem.what.split(":")[0] for problem in told(report, "leakage")] == ["the id is in another split, too"]
    report = leaks(folder, row(4, patient="pt2"), row(5, patient="pt2", dataset="other"))
    (problem,) = told(report, "leakage")
    assert "patient" in problem.what and problem.got == "ours: pt2" and problem.where.startswith("r4 ")
    report = leaks(folder, row(4, media={"image": "p/1.png"}))
    (problem,) = told(report, "leakage")
    assert "the file is" in problem.what and problem.got == "p/1.png" and report.errors == 1


def test_the_same_content_under_another_name_is_found(folder):
    shutil.copy(folder / "p/2.png", folder / "p/copy.png")
    (problem,) = told(leaks(folder, row(4, media={"image": "p/copy.png"})), "leakage")
    assert "same content" in problem.what and "r2" in problem.what + problem.where
    report = check(write(folder, row(0), row(2), row(9, media={"image": "p/copy.png"})))
    assert not report.errors and "same content" in told(report, "duplicate")[0].what


def test_contents_that_differ_anywhere_are_not_the_same(folder):
    data = bytearray(os.urandom(300_000))
    for number, place in enumerate((0, 100_000, 299_999)):  # what only a whole comparison sees is the second
        data[place] ^= 1
        (folder / f"p/{number}.png").write_bytes(data)
    assert not told(check(write(folder, *(row(i) for i in range(3)))), "duplicate")


def test_a_field_may_say_the_split(folder):
    rows = [row(i, split="train" if i else "valid", patient="same") for i in range(3)]
    report = check(write(folder, *rows), arguments={"mapping": {"question": "question"}}, by="split")
    assert report.rows == {"valid": 1, "train": 2} and len(told(report, "leakage")) == 1


def test_a_patient_of_two_files_is_one_where_rows_name_no_data_set(folder):
    plain = [{key: value for key, value in row(i, patient="same").items() if key != "dataset"} for i in range(2)]
    report = check(write(folder, plain[0]), [write(folder, plain[1], name="valid.jsonl")])
    (problem,) = told(report, "leakage")
    assert "the patient is in another split" in problem.what and list(report.balance) == ["chest_xray/train"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"by": "splt"}, r"--by: no row has this field(?s:.)*did you mean 'split'"),
        ({"root": "nowhere"}, "--root: no such folder"),
        ({"workers": 0}, "--workers: at least 1"),
        ({"frames": 0}, "--frames: at least 1"),
        ({"splits": ["train.jsonl"]}, "--split: the file is given twice"),
        ({"splits": ["p"]}, "the data file is a folder"),
    ],
)
def test_wrong_arguments_are_told(folder, monkeypatch, more, said):
    monkeypatch.chdir(folder)
    write(folder, row(0, split="a"))
    arguments = {"mapping": {"question": "question"}} if "by" in more else {}
    with pytest.raises(UserError, match=said):
        check("train.jsonl", arguments=arguments, **more)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"where": "foo"}, "where: an argument of another kind(?s:.)*where.split=train"),
        ({"unless": 3}, "unless: an argument of another kind"),
        ({"defaults": "foo"}, "defaults: an argument of another kind(?s:.)*defaults.domain=ct"),
        ({"prefix": 3}, "prefix: an argument of another kind(?s:.)*text"),
        ({"format": None}, "format: an argument of another kind"),
        ({"mapping.labels": 3}, "mapping.labels: not the name of a field"),
    ],
)
def test_arguments_of_another_kind_are_told(folder, given, said):
    with pytest.raises(UserError, match=said):
        check(write(folder, row(0)), arguments=given)


def test_no_box_needs_no_size(folder):
    assert check(write(folder, row(0, boxes_px=[], width="abc", height=1))).errors == 0


def test_rows_that_say_the_same(folder):
    report = check(write(folder, row(0), row(0, id="again"), row(0, id="other", labels=["nodule"])))
    (problem,) = told(report, "duplicate")
    assert problem.where.startswith("again ") and report.errors == 0


def test_balance(folder):
    report = check(write(folder, *(row(i, labels=["edema"]) for i in range(4))))
    assert [problem.what.split(":")[0] for problem in told(report, "balance")] == [
        "labels that never occur", "every labelled case has one and the same label",
    ]  # fmt: skip
    train = write(folder, *(row(i, labels=["edema"]) for i in range(3)), row(3, labels=[]), row(6, labels=None))
    report = check(train, [write(folder, row(4, labels=["nodule"]), name="valid.jsonl")])
    assert [problem.got for problem in told(report, "balance")] == ["nodule"]
    counts = report.balance["chest_xray/ours"]
    assert counts["(none)"]["train"] == counts["(not known)"]["train"] == 1


# ---------------------------------------------------------------- decoding
@pytest.mark.parametrize("workers", [1, 2])
def test_media_and_masks_are_decoded(folder, workers):
    (folder / "p/1.png").write_bytes((folder / "p/1.png").read_bytes()[:100])
    Image.fromarray(np.zeros((10, 20), np.uint8)).save(folder / "empty.png")
    Image.fromarray(np.full((10, 10), 255, np.uint8)).save(folder / "square.png")
    box = {"boxes_px": [[0, 0, 5, 5]], "height": 10}
    rows = [row(0), row(1), row(2, mask="empty.png"), row(3, mask="square.png"), row(4, width=40, **box),
            row(5, width=20, **box), row(6, media={"ecg": "p/6.png"})]  # fmt: skip
    report = check(write(folder, *rows), decode=True, workers=workers)
    assert [problem.where[:2] for problem in told(report, "unreadable")] == ["r1", "r6"]
    assert [problem.where[:2] for problem in told(report, "mask")] == ["r2", "r3"]
    (problem,) = told(report, "box")
    assert problem.where.startswith("r4") and (problem.got, problem.expected) == ("40 x 10", "20 x 10")
    assert report.decoded == 3 and report.errors == 4 and report.warnings == 1


def test_a_picture_that_shows_the_patient_is_told(folder):
    write_dicom(folder / "p/0.dcm", np.ones((4, 4)), BurnedInAnnotation="YES")
    report = check(write(folder, row(0, media={"image": "p/0.dcm"}), row(1)), decode=True, workers=1)
    assert report.errors == 0 and "BurnedInAnnotation" in told(report, "privacy")[0].what


def test_places_are_those_of_the_loaders(folder):
    (folder / "p/link.png").symlink_to(folder / "p/0.png")
    (folder / "p/out.png").symlink_to("/etc/hostname")
    (folder / "r.hea").write_text("x")
    (folder / "q").symlink_to(folder / "p")
    places = Places(folder)
    for path in ("p/0.png", "p/link.png", "p/out.png", "p/9.png", "p", "r", "r.hea", "q/0.png", "p//0.png", "./p/0.png",
                 "", " ", "/etc/passwd", "../x", "p/../p/0.png", "C:/x", "no/0.png"):  # fmt: skip
        found = places.find(path)
        try:
            assert found == resolve(folder, path), path
        except DataError as error:
            assert found == error.problems[0], path
    assert not isinstance(found, Problem) or found.what


# ---------------------------------------------------------------- lengths
def test_tokens_of_the_prompts(folder, tmp_path_factory):
    from tiny_policy import load

    model = tmp_path_factory.mktemp("model")
    loaded = load()
    loaded.policy.model.save_pretrained(model)
    loaded.processor.save_pretrained(model)
    picture(folder / "p/1.png", 1, 280, 280)
    rows = [row(0), row(1), row(2, domain="ecg", question="A far longer question. " * 20), row(3, task="riddle"),
            row(4, media={"eeg": "p/4.png"})]  # fmt: skip
    report = check(write(folder, *rows), model=model, max_tokens=150)
    assert set(report.lengths) == {"chest_xray", "ecg"}
    xray = report.lengths["chest_xray"]
    assert xray.cases == 2 and xray.shortest <= xray.median <= xray.longest == xray.p95
    assert [problem.what.split()[0] for problem in told(report, "length")][-1] == "1"  # no encoder of eeg
    assert any("unknown task 'riddle'" in problem.what for problem in told(report, "length"))
    with pytest.raises(UserError, match="no model is there"):
        check(folder / "train.jsonl", model=folder)
    (folder / "config.json").write_text("{}")
    with pytest.raises(UserError, match="--model: the model's tokenizer"):
        check(folder / "train.jsonl", model=folder)


# ---------------------------------------------------------------- mending
def test_what_is_safe_is_mended(folder):
    lines = ["\ufeff" + json.dumps(row(0)), "", json.dumps(row(0), indent=None, sort_keys=True),
             json.dumps(row(1, labels=["Nodule "])), json.dumps(row(2, value=float("nan"))),
             json.dumps(row(3, labels=["nodules"])), "{"]  # fmt: skip
    out = folder / "mended.jsonl"
    report = check(write(folder, *lines), fix=out)
    assert sorted(report.fixed.values()) == [1, 1, 1, 1]
    kept = out.read_text(encoding="utf-8").splitlines()
    assert kept[0] == json.dumps(row(0)) and json.loads(kept[1])["labels"] == ["nodule"]
    assert json.loads(kept[2])["value"] is None and kept[3:] == lines[5:]
    assert report.errors == 2  # what is left: no guess at "nodules", nor at half a row
    assert {problem.where.split(":")[-1].rstrip(")") for problem in told(report, "label") + told(report, "json")} == {
        "4",
        "5",
    }
    before = out.read_bytes()
    with pytest.raises(UserError, match="nothing is overwritten"):
        check(folder / "train.jsonl", fix=out)
    assert out.read_bytes() == before


def test_half_a_character_in_a_mended_row_is_written_as_it_was(folder):
    out = folder / "mended.jsonl"
    check(write(folder, json.dumps(row(0, question="\ud800", labels=["EDEMA"]))), fix=out)
    mended = json.loads(out.read_text(encoding="utf-8"))
    assert (mended["question"], mended["labels"]) == ("\ud800", ["edema"])


def test_a_label_that_two_may_be_stays(folder):
    space = ["Edema", "edema"]
    out = folder / "mended.jsonl"
    check(write(folder, row(0, label_space=space, labels=["EDEMA"])), fix=out)
    assert json.loads(out.read_text())["labels"] == ["EDEMA"]


# ---------------------------------------------------------------- the command
def run(capsys, *words):
    try:
        cli.main(["data", "check", *map(str, words)])
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    return code, *capsys.readouterr()


def test_the_command(folder, capsys):
    train, (valid,) = good(folder)
    code, out, _ = run(capsys, train, "--split", valid)
    assert code == 0 and "0 errors, 0 warnings" in out and "edema" in out
    write(folder, row(0), row(1, labels=["edemas"]))
    code, out, _ = run(capsys, train)
    assert code == 2 and "error: labels outside their space: 1" in out and "did you mean 'edema'" in out
    code, out, _ = run(capsys, train, "--json")
    made = json.loads(out)
    assert code == 2 and made["errors"] == {"label": 1} and made["findings"][0]["where"].startswith("r1 (")
    code, _, err = run(capsys, folder / "none.jsonl")
    assert code == 2 and "does not exist" in err
    code, _, err = run(capsys, train, "mappings.labels=x")
    assert code == 2 and "did you mean 'mapping'" in err


def test_brackets_of_labels_are_shown_as_they_are(folder, capsys):
    space = ["a [/b]", "Nevus [nv]"]
    lines = [row(i, label_space=space, labels=[space[i]], split="[/s]", dataset="[/d]") for i in range(2)]
    known = {name: name for name in lines[0] if name != "split"}
    report = check(write(folder, *lines), arguments={"mapping": known}, by="split")
    Console(width=200).print(report_view(report))
    out = capsys.readouterr().out
    assert all(text in out for text in (*space, "[/s]", "[/d]"))


def test_rows_of_other_tools_are_checked(folder, capsys):
    theirs = {"problem": "<image>What?", "answer": "edema", "images": ["p/0.png"], "data_source": "chest_xray"}
    file = write(folder, theirs, {**theirs, "images": ["p/1.png"], "bbox": [0, 0, 99, 5]})
    code, out, _ = run(capsys, file, "format=easyr1", "gather=true", "--json")
    assert code == 2 and json.loads(out)["errors"] == {"box": 1}
    assert nested({"mapping.labels": "x", "task": "vqa"}) == {"mapping": {"labels": "x"}, "task": "vqa"}
    with pytest.raises(UserError, match="whole and in parts"):
        nested({"mapping": None, "mapping.labels": "x"})


@pytest.mark.real
def test_the_real_manifest_has_no_error(real_root):
    mapping = {"labels": "label", "media": "files", "boxes_xywh": "bbox", "box_labels": "bbox_names"}
    report = check(real_root / "manifest.jsonl", arguments={"mapping": mapping}, by="split")
    assert report.errors == 0 and sum(report.rows.values()) == 415
    assert any(
        "E07510" in problem.got for problem in told(report, "duplicate")
    )  # its signal is E07509's, byte for byte


def test_a_malformed_transform_is_found_with_file_and_line(tmp_path):
    row = {"id": "a", "domain": "ct", "question": "?", "labels": ["x"], "label_space": ["x", "y"]}
    bad = row | {"id": "b", "attributes": {"views/transform": [{"from": "PA", "to": "PA", "matrix": []}]}}
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in (row, bad)))
    (found,) = [one for one in check(file).findings.kept if one.severity == "error"]
    assert (found.kind, found.problem.where) == ("schema", f"b ({file}:2)") and "views/transform" in found.problem.what
