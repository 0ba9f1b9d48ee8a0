"""The machinery of `data build`: tables, readers of labels, splits, questions, specs, and what the user is told."""

from __future__ import annotations

import gzip
import json
import sys
import tomllib
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from PIL import Image
from published_layouts import MAKERS, picture, table
from pyarrow import parquet
from tiny_run import command

from qoqmed.errors import DataError, UserError
from qoqmed.preparing import labels, spec, tables
from qoqmed.preparing.build import build
from qoqmed.preparing.cases import Draft
from qoqmed.preparing.left_out import LeftOut
from qoqmed.preparing.marked import Marked
from qoqmed.preparing.rows import SOURCES
from qoqmed.preparing.spec import SplitSpec
from qoqmed.preparing.splits import Shares, assign

SPACE = ("a", "b", "c")
OWN = """
name: mine
domain: dermoscopy
rows: {read: files, glob: "*/*.png", pattern: "(?P<class>[^/]+)/(?P<who>[^_]+)_(?P<name>[^/]+)[.]png$"}
id: "{class}-{name}"
patient: "{who}"
media: [{modality: image, path: "{path}"}]
labels: {read: value, column: class}
label_space: [mole, other]
about: folder names
"""


@pytest.fixture
def mine(tmp_path):
    """Twelve pictures of six people in two folders, and a spec of one's own."""
    source = tmp_path / "source"
    for place in range(12):
        picture(source / ("mole", "other")[place % 2] / f"p{place // 2}_{place}.png")
    (tmp_path / "mine.yaml").write_text(OWN)
    return source, str(tmp_path / "mine.yaml")


def rows(folder: Path):
    paths = [folder / f"{split}.jsonl" for split in ("train", "valid", "test")]
    return [json.loads(line) for path in paths if path.exists() for line in path.read_text().splitlines()]


# ---- tables


def test_cells_become_plain_texts(tmp_path):
    table(tmp_path / "a.csv", '﻿id, name,x\n1.0,"a, b",\n2.50, c ,-1.0')
    assert list(tables.read(tmp_path / "a.csv")) == [
        {"id": "1", "name": "a, b", "x": ""},
        {"id": "2.50", "name": "c", "x": "-1"},
    ]
    (tmp_path / "a.tsv").write_text("id\tname\n1\tx\n")
    assert list(tables.read(tmp_path / "a.tsv")) == [{"id": "1", "name": "x"}]
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"id\n7\n"))
    assert list(tables.read(tmp_path / "a.csv.gz")) == [{"id": "7"}]
    (tmp_path / "a.json").write_text('[{"id": 1.0, "ok": true, "no": null, "deep": {"x": 1}}]')
    assert list(tables.read(tmp_path / "a.json")) == [{"id": "1", "ok": "true", "no": ""}]
    (tmp_path / "a.jsonl").write_text('{"id": 1}\n\n{"id": 2}\n')
    assert [row["id"] for row in tables.read(tmp_path / "a.jsonl")] == ["1", "2"]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.csv", b"id\n1,2\n", "more cells"),
        ("a.csv", b"id\n\xff\xfe\n", "cannot be read"),
        ("a.csv.gz", b"no gzip", "cannot be read"),
        ("a.csv.gz", gzip.compress(b"id\n7\n")[:10] + b"\xff" * 20, "cannot be read"),
        ("a.json", b'["\xff"]', "no valid JSON"),
        ("a.json", b"{}", "no list"),
        ("a.json", b"[1]", "no object"),
        ("a.jsonl", b"{\n", "no valid JSON"),
    ],
)
def test_a_table_that_cannot_be_read_is_named(tmp_path, name, content, told):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=told) as error:
        list(tables.read(tmp_path / name))
    assert name in str(error.value)


def test_the_extra_that_the_message_names_brings_pyarrow():
    text = (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    extras = tomllib.loads(text)["project"]["optional-dependencies"]
    assert [one for one in extras["parquet"] if one.startswith("pyarrow")]


def test_parquet_is_read(tmp_path):
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"id": [1.0, None], "name": ["x", "y"], "ill": [True, False]}), path)
    rows = [{"id": "1", "name": "x", "ill": "true"}, {"id": "", "name": "y", "ill": "false"}]
    assert list(tables.read(path)) == rows
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match="the table cannot be read"):
        list(tables.read(path))


def test_parquet_without_its_extra_is_refused_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"pip install 'qoqmed\[parquet\]'"):
        list(tables.read(tmp_path / "a.parquet"))


def test_one_of_several_names_of_a_table_is_enough_and_missing_ones_are_told(tmp_path):
    table(tmp_path / "b.csv", "id\n1")
    out = LeftOut()
    wanted = [["a.csv", "b.csv"], "c.csv"]
    assert list(SOURCES["table"](tmp_path, out, wanted)) == [{"table": "b", "id": "1"}]
    assert dict(out.notes) == {"the table c.csv is not there": 1}
    with pytest.raises(DataError, match=r"got: +b.csv\n +expected: x.csv or y.csv\n +mend: +SOURCE is the folder"):
        list(SOURCES["table"](tmp_path, out, [["x.csv", "y.csv"]]))


# ---- labels


def test_bins_have_their_upper_edge(tmp_path):
    read = labels.bins(tmp_path, SPACE, "x", [0, 4, 8], SPACE)
    found = {text: read({"x": text}).labels for text in ("0.001", "4", "4.001", "8", "8.5", "1e3")}
    assert found == {"0.001": ("a",), "4": ("a",), "4.001": ("b",), "8": ("b",), "8.5": ("c",), "1e3": ("c",)}
    assert [bool(read({"x": text}).why) for text in ("0", "-1", "", "nan", "inf", "four")] == [True] * 6


def test_codes_count_by_map_then_group_then_class(tmp_path):
    table(tmp_path / "classes.csv", "code,kind\n9,K\n8,")
    read = labels.codes(
        tmp_path, SPACE, "dx", map={1: "a", "K": "b", 3: None}, groups={"c": [1, 2]}, ignore=[7], alone=["a"],
        classes={"table": "classes.csv", "key": "code", "value": "kind"},
    )  # fmt: skip
    found = {text: read({"dx": text}) for text in ("1", "1,2", "9, 2", "3", "7", "", "8")}
    assert [found[text].labels for text in ("1", "1,2", "9, 2")] == [("a",), ("c",), ("b", "c")]
    assert all(found[text].why for text in ("3", "7", "", "8"))


@pytest.mark.parametrize("text", ["{'a': __import__('os')}", "{", "[1]", "{'a': 'b'}", "(" * 10_000])
def test_statements_that_are_no_dictionary_of_numbers_are_refused(tmp_path, text):
    read = labels.codes(tmp_path, SPACE, "scp", map={"a": "a"}, form="scp")
    with pytest.raises(DataError, match="no dictionary"):
        read({"scp": text})


def test_rules_compare_texts_and_numbers(tmp_path):
    cases = [{"label": "a", "when": {"x": ">= 3", "y": [1, "yes"]}}, {"label": "b", "when": {"x": "< 3"}}]
    read = labels.rules(tmp_path, SPACE, cases)
    assert read({"x": "3", "y": "yes"}).labels == ("a",) and read({"x": "-1.5", "y": ""}).labels == ("b",)
    assert read({"x": "3", "y": "no"}).why and read({"x": "", "y": "1"}).why


def test_readers_of_one_case_agree_as_asked():
    marks = [Marked(("a", "b")), Marked(("b",)), Marked(), Marked(why="not read")]
    found = {agree: labels.merged(marks, SPACE, agree).labels for agree in labels.AGREE}
    assert found == {"any": ("a", "b"), "majority": ("b",), "all": (), "first": ("a",), "last": ("b",)}
    assert labels.merged([Marked(why="x")], SPACE, "any").unusable == "x"
    assert labels.merged([Marked(("a",)), Marked(("c",))], SPACE, "any", alone=["c"]).labels == ("a",)


def test_a_label_outside_the_space_and_a_column_that_is_not_there_are_told(tmp_path):
    with pytest.raises(DataError, match="outside the label space"):
        labels.value(tmp_path, SPACE, "x", {1: "z"})
    with pytest.raises(DataError, match=r"no column 'lable'(?s:.)*did you mean 'label'"):
        labels.value(tmp_path, SPACE, "lable")({"label": "a"})


def numbered(path, array, mode=None):
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.asarray(array, np.uint8), mode).save(path)


def test_tissues_count_by_their_share_of_the_annotated_pixels(tmp_path):
    numbered(tmp_path / "m/x.png", [[0, 0, 0, 0, 1, 1, 1, 2, 9, 9]])
    numbered(tmp_path / "m/grey.png", np.full((2, 2, 3), 3))
    numbered(tmp_path / "m/none.png", np.zeros((2, 2)))
    made = {"path": ["no/{name}.png", "m/{name}.png"], "map": {1: "a", 2: "b", 3: "c"}}
    shares = {least: labels.pixels(tmp_path, SPACE, **made, least=least)({"name": "x"}).labels for least in (0, 0.2, 1)}
    assert shares == {0: ("a", "b"), 0.2: ("a",), 1: ()}  # 3 and 1 of 6; 9 has no label
    read = labels.pixels(tmp_path, SPACE, **made)
    assert read({"name": "grey"}).labels == ("c",) and read({"name": "none"}).unusable == "no label is positive"
    assert read({"name": "../../etc/passwd"}).why == read({"name": "y"}).why == "no picture of its labels"
    assert labels.pixels(tmp_path, SPACE, **made, outside=[0, 9], least=0.75)({"name": "x"}).labels == ("a",)


def test_a_picture_of_labels_in_colours_and_a_share_beyond_one_are_refused(tmp_path):
    numbered(tmp_path / "m/x.png", [[[1, 2, 3]]])
    with pytest.raises(DataError, match="no one whole number a pixel"):
        labels.pixels(tmp_path, SPACE, "m/{name}.png", {1: "a"})({"name": "x"})
    with pytest.raises(DataError, match="no share of the pixels"):
        labels.pixels(tmp_path, SPACE, "m/{name}.png", {1: "a"}, least=5)


# ---- splits


def drafts(patients, splits=None):
    splits = splits or [""] * len(patients)
    return [
        Draft(str(place), patient, Marked(("a",)), (), {}, split, {})
        for place, (patient, split) in enumerate(zip(patients, splits, strict=True))
    ]


def test_patients_stay_whole_and_the_draw_depends_on_the_seed_alone():
    some = drafts([f"p{place % 20}" for place in range(100)])
    one, two, other = (assign(some, SplitSpec(), Shares(0.2, 0.1, seed), LeftOut()) for seed in (0, 0, 1))
    owners = {split: {draft.patient for draft in part} for split, part in one.items()}
    assert {split: len(part) for split, part in owners.items()} == {"train": 14, "valid": 4, "test": 2}
    assert not owners["train"] & owners["valid"] and not owners["test"] & (owners["train"] | owners["valid"])
    assert one == two and one != other
    backwards = assign(some[::-1], SplitSpec(), Shares(0.2, 0.1), LeftOut())
    assert {draft.patient for draft in backwards["valid"]} == owners["valid"]  # whatever the order of the rows


def test_published_splits_keep_their_parts_and_no_patient_in_two():
    published = SplitSpec("fold", train=("1",), test=("2",))
    some = drafts(["p", "q", "r", "s", "q", "t"], ["1", "1", "1", "1", "2", "9"])
    out = LeftOut()
    splits = assign(some, published, Shares(valid=0.34), out)
    assert [draft.id for draft in splits["test"]] == ["4"] and len(splits["valid"]) == 1
    assert out.reasons == {"its patient is in a held-out split, too": 1, "the split '9' is not in the spec": 1}
    drawn = assign(some, published, Shares(valid=0.34, published=False), LeftOut())
    assert sum(map(len, drawn.values())) == 6


def test_a_patient_of_the_published_test_part_is_not_drawn_into_the_valid_one():
    published = SplitSpec("fold", train=("1",), test=("2",))
    some = drafts([*"pqrst", *"pqrst"], ["1"] * 5 + ["2"] * 3 + ["1"] * 2)
    for seed in range(10):
        splits = assign(some, published, Shares(valid=0.4, seed=seed), LeftOut())
        owners = [{draft.patient for draft in part} for part in splits.values()]
        assert sum(map(len, owners)) == len(set.union(*owners)) == 5


def test_shares_that_leave_no_patient_to_train_on_are_told():
    with pytest.raises(DataError, match=r"no patient to train on\n +got: +valid 0.5, test 0.4 of 3 patients"):
        assign(drafts([*"abc"]), SplitSpec(), Shares(0.5, 0.4), LeftOut())


def test_splits_that_the_folder_does_not_have_are_drawn():
    out = LeftOut()
    splits = assign(drafts([*"abcdefghij"]), SplitSpec("part", ("train",), ("valid",), ("test",)), Shares(), out)
    assert {split: len(part) for split, part in splits.items()} == {"train": 8, "valid": 1, "test": 1}
    assert "the publisher's splits are not there: they are drawn" in out.notes and not out.rows


# ---- questions


def test_questions_carry_the_cue_and_labels_may_be_shuffled_by_the_case(mine, tmp_path):
    source, own = mine
    build(own, source, tmp_path / "plain")
    build(own, source, tmp_path / "mixed", {"shuffle": True, "phrasings": 3})
    plain, mixed = rows(tmp_path / "plain"), rows(tmp_path / "mixed")
    assert len(plain) == 12 and len(mixed) == 36 and len({row["id"] for row in mixed}) == 36
    assert {tuple(row["label_space"]) for row in plain} == {("mole", "other")}
    assert {tuple(row["label_space"]) for row in mixed} == {("mole", "other"), ("other", "mole")}
    asked = {}
    for row in mixed:
        asked.setdefault(row["id"].split("#")[0], set()).add(row["question"])
    assert all(len(questions) == 3 for questions in asked.values())
    assert all("dermoscopy" in row["question"] for row in plain) and len({row["question"] for row in plain}) > 1


def test_a_marker_in_a_rows_text_does_not_move_the_media(tmp_path):
    table(tmp_path / "source/t.csv", "id,note,label,file\n1,see <image> and {x},a,p.png")
    picture(tmp_path / "source/p.png")
    (tmp_path / "s.yaml").write_text(
        "{name: s, domain: own, rows: {read: table, path: t.csv}, id: '{id}', label_space: [a, b], "
        "labels: {read: value, column: label}, questions: ['{note}: which?'], "
        "media: [{modality: image, path: '{file}'}]}"
    )
    build(str(tmp_path / "s.yaml"), tmp_path / "source", tmp_path / "out")
    assert rows(tmp_path / "out")[0]["question"] == "see (image) and {x}: which?"


# ---- the build


def test_the_same_build_gives_the_same_bytes(mine, tmp_path):
    source, own = mine
    for name in ("one", "two"):
        build(own, source, tmp_path / name, {"shuffle": True, "seed": 5})
    for name in ("train.jsonl", "valid.jsonl", "test.jsonl", "left_out.jsonl"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    told = json.loads((tmp_path / "one/build.json").read_text())
    assert told["arguments"]["seed"] == 5 and told["rows"]["train"] == 10 - 2  # two of six patients are held out


def test_a_modality_that_qoqmed_does_not_read_is_noted(mine, tmp_path):
    source, own = mine
    Path(own).write_text(OWN.replace("modality: image", "modality: picture"))
    assert any("'picture'" in note for note in build(own, source, tmp_path / "out").notes)


def test_a_limit_ends_the_build_early(mine, tmp_path):
    built = build(mine[1], mine[0], tmp_path / "out", {"limit": 4})
    assert sum(built.rows.values()) == 4


def test_paths_that_leave_the_source_are_left_out(tmp_path):
    picture(tmp_path / "secret.png")
    table(tmp_path / "source/train.csv", "id_code,diagnosis\n../../secret,0\nin,1")
    picture(tmp_path / "source/train_images/in.png")
    built = build("aptos_2019", tmp_path / "source", tmp_path / "out")
    assert built.left_out == {"no file for its image": 1}


def test_a_mask_outside_the_source_is_none(tmp_path):
    picture(tmp_path / "x_segmentation.png")
    table(tmp_path / "source/HAM10000_metadata.csv", "lesion_id,image_id,dx\nl,../../x,nv\nl,ISIC_1,nv")
    for name in ("x", "source/HAM10000_images/ISIC_1"):
        picture(tmp_path / f"{name}.jpg")
    built = build("ham10000", tmp_path / "source", tmp_path / "out")
    assert sum(built.rows.values()) == 1 and built.left_out == {"no file for its image": 1}
    path = tmp_path / "own.yaml"
    path.write_text(OWN.replace('glob: "*/*.png"', 'glob: "*/*.jpg"').replace("[.]png", "[.]jpg") + "mask: '../*.png'")
    picture(tmp_path / "second/mole/p_1.jpg")
    assert "cases without a mask" in build(str(path), tmp_path / "second", tmp_path / "two").notes


def test_an_id_that_is_used_twice_is_counted(tmp_path):
    table(tmp_path / "source/train.csv", "id_code,diagnosis\nx,0\nx,1")
    picture(tmp_path / "source/train_images/x.png")
    assert build("aptos_2019", tmp_path / "source", tmp_path / "out").left_out == {"its id was used before": 1}


def test_nothing_is_overwritten_and_an_empty_build_says_why(tmp_path):
    MAKERS["aptos_2019"](tmp_path / "source")
    build("aptos_2019", tmp_path / "source", tmp_path / "out")
    with pytest.raises(DataError, match="files are there already"):
        build("aptos_2019", tmp_path / "source", tmp_path / "out")
    (tmp_path / "bare").mkdir()
    with pytest.raises(DataError, match="no table of the data set is there"):
        build("aptos_2019", tmp_path / "bare", tmp_path / "none")
    table(tmp_path / "bare/train.csv", "id_code,diagnosis\nx,0")
    with pytest.raises(DataError, match="no case is left") as error:
        build("aptos_2019", tmp_path / "bare", tmp_path / "none")
    assert "1 x no file for its image" in str(error.value) and not (tmp_path / "none").exists()


def test_wrong_arguments_are_told_at_once(tmp_path):
    wrong = {"valid": 0.9, "test": "much", "shufle": True, "phrasings": True, "uncertainty": "hide"}
    with pytest.raises(DataError) as error:
        build("chexpert", tmp_path, tmp_path / "out", wrong)
    text = str(error.value)
    assert len(error.value.problems) == 4 and "did you mean 'shuffle'" in text and "did you mean 'uncertain'" in text
    with pytest.raises(DataError, match="a sum below 1"):
        build("chexpert", tmp_path, tmp_path / "out", {"valid": 0.9, "test": 0.2})


@pytest.mark.parametrize(
    ("name", "option", "told"),
    [
        ("ptb_xl", {"least": "high"}, "'least' is no number"),
        ("bcss", {"least": True}, "'least' is no number"),
        ("mimic_iv_los", {"window_h": "two"}, "'window_h' is no number"),
        ("mimic_iv_los", {"censor_at_event": 1}, "'censor_at_event' is no true or false"),
        ("mimic_iv_los", {"window_h": 1e300}, "hours that cannot be"),
        ("mimic_iv_los", {"images": 1.5}, "'images' is no whole number"),
        ("mimic_iv_los", {"ecgs": -1}, "'ecgs' is no count"),
    ],
)
def test_options_of_a_wrong_type_are_told(tmp_path, name, option, told):
    with pytest.raises(DataError, match=told):
        build(name, tmp_path, tmp_path / "out", option)


@pytest.mark.parametrize("out", ["file", "file/below"])
def test_out_has_to_be_a_folder(mine, tmp_path, out):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="OUT is no folder"):
        build(mine[1], mine[0], tmp_path / out)


def test_a_spec_is_checked_whole(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text("{name: s, domain: ct, row: {}, media: [{modality: image}], keep: {}, split: {colum: x}}")
    with pytest.raises(DataError) as error:
        spec.load(str(path))
    told = str(error.value)
    for part in ("unknown key 'row'", "did you mean 'rows'", "'id' is missing", "'labels' is missing", "s.yaml.media.0",
                 "'path' is missing", "s.yaml.keep", "unknown key 'colum'"):  # fmt: skip
        assert part in told
    path.write_text("{name: ${options.none}}")
    with pytest.raises(DataError, match="cannot be resolved|can be resolved"):
        spec.load(str(path))
    with pytest.raises(DataError, match="did you mean 'ham10000'"):
        spec.load("ham1000")
    with pytest.raises(DataError, match="no such spec file"):
        spec.load(str(tmp_path / "none.yaml"))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"rows": "{read: tabel, path: a}"}, "did you mean 'table'"),
        ({"rows": "{read: table, paht: a}"}, "did you mean 'path'"),
        ({"labels": "{read: value}"}, "value needs 'column'"),
        ({"labels": "{read: value, column: clas}"}, "no column 'clas'"),
        ({"labels": "value"}, "mine.yaml.labels: no mapping"),
        ({"labels": "{read: codes, column: class, groups: nope}"}, "labels.groups: no such map"),
        ({"labels": "{read: value, column: class, map: [a]}"}, "mine.labels: 'map' is no mapping"),
        ({"labels": "{read: rules, cases: [{label: mole}]}"}, "labels.cases.0: a rule is malformed"),
        ({"id": "5"}, "mine.yaml.id: no text"),
        ({"id": "'{nme}'"}, "no column 'nme'"),
        ({"id": "'{name'"}, "template is malformed"),
        ({"agree": "most"}, "'agree'"),
        ({"derive": "{x: {column: class, pattern: '(('}}"}, "no regular expression"),
        ({"rows": "{read: files, glob: ../*.png, pattern: '(?P<class>.)'}"}, "no file of the data set is there"),
        ({"label_space": "[]"}, "no label space"),
        (
            {"labels": "{read: value, column: class, map: {mole: mol}}"},
            r"the spec's labels are(?s:.)*you mean 'mole'",
        ),
        ({"labels": "{read: flags, columns: {}, policy: hid}"}, r"labels.policy: no such(?s:.)*did you mean 'hide'"),
        ({"join": "[{table: x.csv, by: {class: a}}]"}, r"a table of the data set is not there\n +got: +mole/, other/"),
    ],
)
def test_a_spec_that_does_not_fit_is_told_with_its_place(mine, tmp_path, change, told):
    source, own = mine
    ((key, value),) = change.items()
    lines = [line for line in OWN.splitlines() if not line.startswith(f"{key}:")]
    Path(own).write_text("\n".join([*lines, f"{key}: {value}"]))
    with pytest.raises(DataError, match=told):
        build(own, source, tmp_path / "out")


def test_brackets_in_labels_are_shown_as_they_are(mine, tmp_path, capsys):
    source, own = mine
    text = OWN.replace("column: class", "column: class, map: {mole: 'a [/b]'}").replace("[mole, other]", "['a [/b]']")
    Path(own).write_text(text)
    assert command("data", "build", own, source, tmp_path / "out") == 0
    assert "a [/b]" in capsys.readouterr().out


def test_the_commands(mine, tmp_path, capsys):
    source, own = mine
    assert command("data", "build", own, source, tmp_path / "out", "valid=0.2") == 0
    shown = capsys.readouterr().out
    assert "mole" in shown and "patients" in shown
    assert command("data", "specs") == 0 and "ptb_xl" in capsys.readouterr().out
    assert command("data", "specs", "chexpert", "--json") == 0
    assert json.loads(capsys.readouterr().out)[0]["options"]["uncertain"] == "hide"
    assert command("data", "specs", "chexpert") == 0 and "valid.csv" in capsys.readouterr().out
    assert command("data", "build", "nothing", source, tmp_path / "other") == 2
    assert "no such spec" in capsys.readouterr().err
