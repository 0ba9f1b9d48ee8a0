"""Rows of other tools, as their files have them, and the index of a file that is kept."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from PIL import Image

from qoqmed.datasets import index_cache
from qoqmed.datasets.formats import FORMATS, split_labels
from qoqmed.datasets.jsonl import JsonLines
from qoqmed.errors import DataError
from qoqmed.types import Box, Mask, Medium

EASYR1 = {
    "problem": "<image>What is shown?",
    "answer": "edema, nodule",
    "images": ["img/a.png"],
    "videos": [],
    "time-series": ["ecg/r1"],
    "segmentation_path": "img/a_mask.png",
    "bbox": [10, 5, 30, 25],
    "data_source": "Chest X-Ray",
    "dataset": "ours",
    "demo": "60 years, male",
}
TURNS = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A nevus."}]


def open_rows(folder, *rows, name="rows.jsonl", **arguments):
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return JsonLines(name, root=str(folder), **arguments)


def picture(path, width, height, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(path, **more)


# ---------------------------------------------------------------- EasyR1 and CLIMB
def test_a_row_of_the_authors_data(tmp_path):
    picture(tmp_path / "set/img/a.png", 40, 50)
    data = open_rows(tmp_path, EASYR1, name="set/train.jsonl", format="easyr1", gather=True)
    case = data[0]
    assert case.id == "train-1" and case.domain == "chest_xray" and case.dataset == "ours"
    assert case.media == (Medium("image", "set/img/a.png"), Medium("ecg", "set/ecg/r1"))
    assert case.text == "<image>What is shown?" and case.attributes == {"easyr1/demo": "60 years, male"}
    assert case.target.labels == ("edema", "nodule") == case.label_space
    assert case.target.boxes == (Box(0.25, 0.1, 0.75, 0.5),) and case.target.mask == Mask("set/img/a_mask.png")


def test_boxes_are_of_the_upright_picture(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    picture(tmp_path / "a.jpg", 50, 40, exif=exif)
    row = {**EASYR1, "images": ["a.jpg"], "bbox": [[10, 5, 30, 25], [0, 0, 40, 50]], "time-series": []}
    boxes = open_rows(tmp_path, row, format="easyr1", gather=True)[0].target.boxes
    assert boxes == (Box(0.25, 0.1, 0.75, 0.5), Box(0, 0, 1, 1))
    with pytest.raises(DataError, match="no image to take its size from"):
        open_rows(tmp_path, {**row, "images": []}, format="easyr1", gather=True)[0]
    with pytest.raises(DataError, match="does not exist"):
        open_rows(tmp_path, {**row, "images": ["b.jpg"]}, format="easyr1", gather=True)[0]


def test_the_domain_is_the_one_that_is_named_or_has_the_data_set(tmp_path):
    def domain(**row):
        return open_rows(tmp_path, {"question": "Is it?", "answer": "yes", **row}, format="vqa").domains

    assert domain(data_source="Chest X-Ray") == ["chest_xray"] and domain(data_source="ECG") == ["ecg"]
    assert domain(dataset="PTB-XL") == ["ecg"] and domain(domain="mine", dataset="PTB-XL") == ["mine"]
    with pytest.raises(DataError, match="'domain' is missing"):
        domain(dataset="nobody's")
    defaults = {"domain": "ct", "task": "grounding"}
    row = {"question": "Is it?", "answer": "yes"}
    case = open_rows(tmp_path, row, format="vqa", defaults=defaults)[0]
    assert (case.domain, case.task) == ("ct", "grounding")


def test_joined_labels_follow_the_space():
    space = ["hand fracture", "edema", "ST elevation, anterior", "anterior"]
    assert split_labels("edema, ST elevation, anterior", space) == ["edema", "ST elevation, anterior"]
    assert split_labels("anterior, hand fracture and edema", space) == ["anterior", "hand fracture and edema"]
    assert split_labels("", space) == [] == split_labels(" , ", space)


def test_labels_outside_the_space_are_told(tmp_path):
    row = {**EASYR1, "answer": "hand fracture and edema", "bbox": None}
    defaults = {"label_space": ["hand fracture", "edema"]}
    with pytest.raises(DataError, match="hand fracture and edema"):
        open_rows(tmp_path, row, format="easyr1", defaults=defaults)[0]


def test_a_row_of_climb(tmp_path):
    row = {"images": ["a.png", "b.png"], "conversations": TURNS, "label": "nevus", "explanation": "Regular edges."}
    data = open_rows(
        tmp_path,
        row,
        name="isic/annotation_train.jsonl",
        format="climb",
        gather=True,
        defaults={"domain": "dermoscopy"},
    )
    case = data[0]
    assert case.dataset == "isic" and case.text == "<image>\nWhat is it?" and case.target.text == "Regular edges."
    assert [medium.path for medium in case.media] == ["isic/a.png", "isic/b.png"] and case.target.labels == ("nevus",)


# ---------------------------------------------------------------- questions and conversations
@pytest.mark.parametrize(
    ("row", "labels", "space", "text"),
    [
        ({"answer": "two"}, None, (), "two"),
        ({"answer": 2}, None, (), "2"),
        ({"answer": "B", "options": {"A": "yes", "B": "no"}}, ("no",), ("yes", "no"), None),
        ({"answer": "no", "choices": ["yes", "no"]}, ("no",), ("yes", "no"), None),
        ({"answer": "no", "label_space": ["yes", "no"]}, ("no",), ("yes", "no"), None),
        ({"answer": 2, "options": [1, 2]}, ("2",), ("1", "2"), None),
        ({"answer": "B", "options": {"A": 1, "B": 2.5}}, ("2.5",), ("1", "2.5"), None),
        ({"options": ["yes", "no"]}, None, ("yes", "no"), None),
    ],
)
def test_open_and_closed_questions(tmp_path, row, labels, space, text):
    row = {"image": "a.png", "question": "Is it?", "domain": "ct", **row}
    case = open_rows(tmp_path, row, format="vqa")[0]
    assert (case.target.labels, case.label_space, case.target.text) == (labels, space, text)
    assert case.media == (Medium("image", "a.png"),)


def test_conversations(tmp_path):
    messages = [{"role": who, "content": text} for who, text in
                [("system", "Be brief."), ("user", "Where?"), ("assistant", "Left."), ("user", "How large?"),
                 ("assistant", "3 mm.")]]  # fmt: skip
    rows = [{"conversations": TURNS, "image": "a.png", "id": 7}, {"messages": messages}, {"messages": messages[:4]}]
    data = open_rows(tmp_path, *rows, format="conversations", defaults={"domain": "ct"})
    assert [case.id for case in data] == ["7", "rows-2", "rows-3"]
    assert data[0].text == "<image>\nWhat is it?" and data[0].target.text == "A nevus."
    assert data[1].text == "Be brief.\n\nQuestion: Where?\n\nAnswer: Left.\n\nHow large?"
    assert data[1].target.text == "3 mm." and data[2].target.text is None and data[2].text == data[1].text


@pytest.mark.parametrize(
    ("turns", "said"),
    [
        (None, "no turns"),
        ([], "no turns"),
        (TURNS[1:], "turn 1 is of 'gpt'"),
        ([TURNS[0], TURNS[0]], "turn 2 is of 'human'"),
        ([{"from": "system", "value": "x"}], "nobody asks"),
        (["x"], "a turn is no object"),
        ([{"from": "human"}], "no speaker or no text"),
    ],
)
def test_conversations_that_are_none(tmp_path, turns, said):
    with pytest.raises(DataError, match=said) as error:
        open_rows(tmp_path, {"conversations": turns}, format="conversations", defaults={"domain": "ct"})
    assert error.value.problems[0].where.endswith("rows.jsonl:1")


def test_formats_take_a_mapping_and_refuse_what_is_misspelt(tmp_path):
    row = {"img": "a.png", "q": "Is it?", "answer": "yes", "domain": "ct"}
    case = open_rows(tmp_path, row, format="vqa", mapping={"image": "img", "question": "q"})[0]
    assert case.text == "Is it?" and case.media[0].path == "a.png"
    for arguments, said in [({"format": "vqas"}, "did you mean 'vqa'"), ({"defaults": {"domian": "ct"}}, "'domain'")]:
        with pytest.raises(DataError, match=said):
            open_rows(tmp_path, row, **arguments)
    assert set(FORMATS) == {"easyr1", "climb", "vqa", "conversations"}


def test_a_mask_says_who_drew_it(tmp_path):
    row = {"id": "a", "domain": "ct", "mask": "m.png", "mask_source": "BiomedParse"}
    case = open_rows(tmp_path, row)[0]
    assert case.target.mask == Mask("m.png") and case.attributes == {"mask/source": "BiomedParse"}


# ---------------------------------------------------------------- the kept index
@pytest.fixture
def kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(index_cache, "KEPT_FROM", 0)
    return tmp_path / "cache/qoqmed/index"


def rows_of(count):
    return [{"id": f"r{i}", "domain": "ct" if i % 3 else "mri", "licence": "CC0"} for i in range(count)]


def test_an_index_is_kept_and_gives_the_same(tmp_path, kept, monkeypatch):
    first = open_rows(tmp_path, *rows_of(20), mapping={}, gather=True)
    (entry,) = kept.iterdir()
    monkeypatch.setattr("qoqmed.datasets.jsonl.scan", lambda *_: pytest.fail("it was read anew"))
    again = JsonLines("rows.jsonl", root=str(tmp_path), mapping={}, gather=True)
    assert again.domains == first.domains and again.fingerprint == first.fingerprint and again.origins == first.origins
    assert [case.id for case in again] == [f"r{i}" for i in range(20)]
    assert b"r7" not in entry.read_bytes()  # no id


def test_an_index_is_of_one_file_as_it_is_and_of_its_arguments(tmp_path, kept):
    assert len(open_rows(tmp_path, *rows_of(20), mapping={})) == 20
    assert len(open_rows(tmp_path, *rows_of(9), mapping={})) == 9
    assert len(list(kept.iterdir())) == 1  # of the file as it was before, nothing stays
    assert len(JsonLines("rows.jsonl", root=str(tmp_path), mapping={}, where={"domain": "mri"})) == 3
    assert len(list(kept.iterdir())) == 2
    stat = (tmp_path / "rows.jsonl").stat()
    text = (tmp_path / "rows.jsonl").read_text().replace("r8", "x8")
    (tmp_path / "rows.jsonl").write_text(text)
    os.utime(tmp_path / "rows.jsonl", ns=(stat.st_atime_ns, stat.st_mtime_ns))  # same size, same time, other rows
    assert JsonLines("rows.jsonl", root=str(tmp_path), mapping={})[8].id == "x8"


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"not a zip"])
def test_a_damaged_index_is_made_anew(tmp_path, kept, content):
    open_rows(tmp_path, *rows_of(5), mapping={})
    (entry,) = kept.iterdir()
    entry.write_bytes(content)
    assert len(JsonLines("rows.jsonl", root=str(tmp_path), mapping={})) == 5
    assert entry.stat().st_size > 100


def test_nothing_is_kept_where_nothing_can_be(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(index_cache, "KEPT_FROM", 0)
    assert len(open_rows(tmp_path, *rows_of(5), mapping={})) == 5


def test_small_files_leave_no_trace(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    open_rows(tmp_path, *rows_of(5), mapping={})
    assert not (tmp_path / "cache").exists()


def test_ids_of_one_hash_are_compared_themselves(tmp_path, monkeypatch):
    class Same:
        def __init__(self, *_, **more):
            self.size = more.get("digest_size", 8)

        def update(self, _):
            return None

        def digest(self):
            return b"\1" * self.size

        def hexdigest(self):
            return "01"

    monkeypatch.setattr("qoqmed.datasets.index.hashlib.blake2b", Same)
    assert len(open_rows(tmp_path, *rows_of(5), mapping={})) == 5
    with pytest.raises(DataError, match="'r1' was used before, in line 2"):
        open_rows(tmp_path, *rows_of(5), {"id": "r1", "domain": "ct"}, mapping={})


@pytest.mark.parametrize(("format", "task"), [("vqa", "vqa"), ("conversations", "report"), ("easyr1", "diagnosis")])
def test_a_format_has_its_task(tmp_path, format, task):
    row = {"question": "Is it?", "answer": "yes", "problem": "?", "conversations": TURNS, "domain": "ct"}
    space = {"label_space": ["yes", "no"]} if format == "easyr1" else {}
    assert open_rows(tmp_path, row | space, format=format)[0].task == task
    assert open_rows(tmp_path, row | space | {"task": "mine"}, format=format)[0].task == "mine"
    assert open_rows(tmp_path, row | space, format=format, task="grounding")[0].task == "grounding"
