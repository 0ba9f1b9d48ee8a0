"""Diagnosis and Grounding: prompts, gold responses that read back, and rows that are refused by name."""

from dataclasses import replace

import numpy as np
import pytest

from qoqmed.boxes import AbsoluteFrame, RelativeFrame
from qoqmed.errors import DataError
from qoqmed.geometry import Geometry
from qoqmed.tasks.diagnosis import Diagnosis
from qoqmed.tasks.grounding import Grounding
from qoqmed.types import Box, Case, Mask, Medium, Target

SPACE = ("cyst", "stone", "hand fracture and edema")
FRAME = AbsoluteFrame([Geometry(84, 84, 84, 84, 14, 2)])
BOX = Box(0.0, 1 / 3, 1 / 3, 2 / 3, "cyst")
CASE = Case(
    id="u7",
    domain="ultrasound",
    dataset="busi",
    task="diagnosis",
    text="What does the ultrasound show?",
    media=(Medium("image"),),
    label_space=SPACE,
    target=Target(labels=("cyst",), boxes=(BOX,)),
)


def with_target(case=CASE, **fields):
    return replace(case, target=replace(case.target, **fields))


def test_prompt_states_question_labels_and_form():
    assert Diagnosis().prompt(CASE) == (
        "What does the ultrasound show? Choose from: cyst, stone, hand fracture and edema. "
        'Reason in <think></think>, give boxes as a json list of "bbox_2d" and "label", answer in \\boxed{}.'
    )


def test_prompt_without_pictures_asks_for_no_boxes():
    prompt = Diagnosis().prompt(replace(CASE, media=(Medium("ecg"),)))
    assert "bbox" not in prompt and prompt.endswith("Reason in <think></think>, answer in \\boxed{}.")


def test_prompt_of_a_case_without_a_question():
    silent = replace(CASE, text=" ", domain="chest_xray")
    assert Diagnosis().prompt(silent).startswith("Shown above is a chest xray study. State what it shows. Choose")
    assert Diagnosis({"chest_xray": "What is it?"}, instruction="").prompt(silent) == (
        "What is it? Choose from: cyst, stone, hand fracture and edema."
    )


def test_gold_response():
    assert Diagnosis().target(with_target(text="It is dark."), FRAME) == (
        '<think>It is dark.</think>\n```json\n[{"bbox_2d": [0, 28, 28, 56], "label": "cyst"}]\n```\n\\boxed{cyst}'
    )
    assert "json" not in Diagnosis().target(with_target(boxes=None), FRAME)


def test_gold_response_reads_back():
    labels = ("hand fracture and edema", "cyst")
    task, case = Diagnosis(), with_target(labels=labels, boxes=(replace(BOX, label=""), BOX))
    reading = task.read(task.target(case, FRAME), case, FRAME)
    assert reading.answer.labels == labels
    assert reading.flaws == ()
    assert [box.label for box in reading.boxes] == ["hand fracture and edema, cyst", "cyst"]
    assert [(box.x1, box.y1, box.x2, box.y2) for box in reading.boxes] == [(BOX.x1, BOX.y1, BOX.x2, BOX.y2)] * 2


def test_boxes_named_by_anatomy_show_the_answer():
    gold = Diagnosis().target(with_target(boxes=(replace(BOX, label="left lung"),)), FRAME)
    assert '"label": "cyst"' in gold


def test_several_pictures_are_told_apart():
    case = replace(CASE, media=(Medium("ecg"), Medium("image"), Medium("image")))
    case = with_target(case, boxes=(replace(BOX, medium=2),))
    frame = RelativeFrame()
    task = Diagnosis()
    assert '"image" (its number)' in task.prompt(case)
    gold = task.target(case, frame)
    assert '"image": 2}' in gold
    assert [box.medium for box in task.read(gold, case, frame).boxes] == [2]
    assert [box.medium for box in task.read(gold.replace(', "image": 2', ""), case, frame).boxes] == [1]
    for number in (0, 3):  # pictures count from 1
        wrong = task.read(gold.replace('"image": 2', f'"image": {number}'), case, frame)
        assert wrong.boxes == () and wrong.flaws[0].kind == "box_invalid"


@pytest.mark.parametrize("text", ["", "cyst", "\\boxed{", "\\boxed{x}", "```json\n[{]```", "<think>" * 99, "\x00"])
def test_read_never_raises(text):
    reading = Diagnosis().read(text, CASE, FRAME)
    assert not reading.answer.labels
    assert reading.flaws


def test_read_keeps_the_answer_text_and_drops_boxes_outside():
    text = '<think></think>```json\n[{"bbox_2d": [90, 90, 99, 99]}]```\\boxed{a cyst}'
    reading = Diagnosis().read(text, CASE, FRAME)
    assert (reading.answer.labels, reading.answer.text, reading.boxes) == (("cyst",), "a cyst", ())
    assert [flaw.kind for flaw in reading.flaws] == ["box_invalid", "unknown_label"]


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (with_target(labels=None), "labels are empty"),
        (with_target(labels=()), "use task: grounding"),
        (with_target(labels=("cist",)), "did you mean 'cyst'"),
        (with_target(labels=("cyst", "cyst")), "cannot be told apart"),
        (replace(with_target(labels=("a", "b")), label_space=("a", "b", "a, b")), "cannot be told apart"),
        (replace(CASE, label_space=()), "the space is empty"),
        (replace(CASE, label_space=("cyst", "Cyst")), "reads like another"),
        (with_target(boxes=(replace(BOX, medium=1),)), "no picture"),
        (with_target(boxes=(Box(0.5, 0, 0.5, 1),)), "outside its picture or empty"),
        (with_target(boxes=(Box(0, 0, float("nan"), 1),)), "outside its picture or empty"),
        (with_target(mask=Mask("m.png", medium=3)), "the mask lies on no picture"),
    ],
)
def test_diagnosis_refuses_a_row_by_its_id(case, words):
    with pytest.raises(DataError, match=words) as caught:
        Diagnosis().check(case)
    assert str(caught.value).startswith("u7: ")


SPOT = replace(CASE, task="grounding", text="", label_space=(), target=Target(boxes=(replace(BOX, label=""),)))


def test_grounding():
    task = Grounding(label="lesion")
    assert task.prompt(SPOT) == (
        "Localise the finding in this ultrasound study. Reason in <think></think>, "
        'then answer with boxes as a json list of "bbox_2d" and "label".'
    )
    gold = task.target(SPOT, FRAME)
    assert gold.endswith('</think>\n```json\n[{"bbox_2d": [0, 28, 28, 56], "label": "lesion"}]\n```')
    reading = task.read(gold, SPOT, FRAME)
    assert (reading.flaws, reading.answer.labels, len(reading.boxes)) == ((), None, 1)


def test_grounding_refuses_a_row_by_its_id():
    masked = with_target(SPOT, boxes=None, mask=Mask(array=np.ones((2, 2), bool)))
    Grounding().check(masked)
    with pytest.raises(DataError, match="u7: a gold response needs boxes"):
        Grounding().target(masked, FRAME)
    with pytest.raises(DataError, match="u7: neither boxes nor a mask"):
        Grounding().check(with_target(SPOT, boxes=None))
    with pytest.raises(DataError, match="u7: nothing to localise on"):
        Grounding().check(replace(SPOT, media=(Medium("ecg"),)))


def test_declared_synonyms_are_answers_and_names_of_boxes():
    named = replace(CASE, attributes={"reading/synonyms": {"stone": ["calculus"]}})
    reading = Diagnosis().read("<think>x</think>\\boxed{calculus}", named, FRAME)
    assert reading.answer.labels == ("stone",) and [flaw.kind for flaw in reading.flaws] == ["synonym_label"]
    assert Diagnosis().read("\\boxed{calculus}", CASE, FRAME).answer.labels == ()
    boxed = with_target(named, labels=("stone",), boxes=(replace(BOX, label="calculus"),))
    assert '"label": "calculus"' in Diagnosis().target(boxed, FRAME)
    other = with_target(labels=("stone",), boxes=(replace(BOX, label="calculus"),))
    assert '"label": "stone"' in Diagnosis().target(other, FRAME)
    with pytest.raises(DataError, match="reading/synonyms") as error:
        Diagnosis().check(replace(CASE, attributes={"reading/synonyms": ["calculus"]}))
    assert error.value.problems[0].where == "u7"
