"""Vqa, Report and Tagged: prompts, gold responses that read back, rows that are refused, and the rewards that judge."""

from dataclasses import replace

import pytest

from qoqmed.boxes import AbsoluteFrame
from qoqmed.errors import DataError
from qoqmed.geometry import Geometry
from qoqmed.rewards.exact_match import ExactMatch
from qoqmed.rewards.format import Format
from qoqmed.rewards.hungarian_boxes import HungarianBoxes
from qoqmed.rewards.label_accuracy import LabelAccuracy
from qoqmed.rewards.rouge import Rouge
from qoqmed.rewards.tag_count import TagCount
from qoqmed.tasks.report import Report
from qoqmed.tasks.tagged import Tagged
from qoqmed.tasks.vqa import Vqa
from qoqmed.types import Box, Case, Medium, Rollout, Status, Target

FRAME = AbsoluteFrame([Geometry(84, 84, 84, 84, 14, 2)])
ASKED = Case("q", "ct", "s", "vqa", "Which organ is it?", (Medium("image"),), (), Target(text="The left kidney"))
CLOSED = replace(ASKED, label_space=("yes", "no"), target=Target(labels=("no",), text="It is clear."))
WRITTEN = replace(ASKED, task="report", text="", target=Target(text="No effusion.\n\nHeart size normal."))
BOX = Box(0.0, 1 / 3, 1 / 3, 2 / 3, "cyst")
LABELLED = replace(ASKED, task="tagged", label_space=("cyst", "stone"), target=Target(labels=("cyst",), boxes=(BOX,)))
REGION = replace(LABELLED, label_space=(), target=Target(boxes=(BOX,)))


def value(reward, case, task, text):
    return reward.score([case], [Rollout(case.id, 0, (1,), text)], [task.read(text, case, FRAME)])[0].value


# ---------------------------------------------------------------- vqa


def test_vqa_prompts():
    assert Vqa().prompt(ASKED) == "Which organ is it? Reason in <think></think>, answer in \\boxed{}."
    assert "Choose from: yes, no. Reason" in Vqa().prompt(CLOSED)
    assert Vqa({"ct": "What is it?"}, instruction="Briefly.").prompt(replace(ASKED, text=" ")) == "What is it? Briefly."


@pytest.mark.parametrize(
    ("case", "gold"),
    [
        (ASKED, "<think>The findings are weighed against the question.</think>\n\\boxed{The left kidney}"),
        (CLOSED, "<think>It is clear.</think>\n\\boxed{no}"),
        (
            replace(ASKED, target=Target(value=2.5, text="Two and a half.")),
            "<think>Two and a half.</think>\n\\boxed{2.5}",
        ),
        (replace(ASKED, target=Target(text="a {b} \\frac{1}{2}")), None),
    ],
)
def test_vqa_gold_is_an_exact_match(case, gold):
    text = Vqa().target(case, FRAME)
    assert gold is None or text == gold
    reading = Vqa().read(text, case, FRAME)
    assert reading.flaws == () and value(ExactMatch(), case, Vqa(), text) == 1


@pytest.mark.parametrize("number", [1e-5, 1e16, 0.000123456789012345, 0.1 + 0.2, -2.5, 0.0, 5e-320])
def test_the_gold_answer_of_any_value_is_an_exact_match(number):
    case = replace(ASKED, target=Target(value=number))
    assert value(ExactMatch(), case, Vqa(), Vqa().target(case, FRAME)) == 1


def test_vqa_reads_what_is_not_the_gold_answer():
    assert value(ExactMatch(), ASKED, Vqa(), "<think>x</think>\\boxed{the  LEFT kidney.}") == 1
    assert value(ExactMatch(), ASKED, Vqa(), "\\boxed{the right kidney}") == 0
    assert value(ExactMatch(), ASKED, Vqa(), "no idea") == 0
    assert value(ExactMatch(), CLOSED, Vqa(), "\\boxed{No}") == 1
    assert value(ExactMatch(), CLOSED, Vqa(), "\\boxed{yes, no}") == 0
    assert Vqa().read("no idea", CLOSED, FRAME).answer.labels is None


@pytest.mark.parametrize("task", [Vqa(), Report()])
def test_format_does_not_apply_where_no_box_is_asked_for(task):
    case = replace(ASKED, task=task.name)
    verdict = Format().score([case], [Rollout("q", 0, (), "x")], [task.read("x", case, FRAME)])[0]
    assert verdict.status is Status.NOT_APPLICABLE
    wanted = Format(boxless_tasks=[]).score([case], [Rollout("q", 0, (), "x")], [task.read("x", case, FRAME)])[0]
    assert wanted.value == 0


@pytest.mark.parametrize(
    ("case", "said"),
    [
        (replace(ASKED, target=Target()), "the question has no answer"),
        (replace(ASKED, target=Target(text=" ")), "the question has no answer"),
        (replace(ASKED, target=Target(text="a } b")), "does not read back"),
        (replace(CLOSED, target=Target(labels=("maybe",))), "label outside its space"),
        (replace(CLOSED, target=Target()), "labels are empty"),
    ],
)
def test_rows_that_vqa_refuses(case, said):
    for call in (lambda: Vqa().check(case), lambda: Vqa().target(case, FRAME)):
        with pytest.raises(DataError, match=said) as caught:
            call()
        assert caught.value.problems[0].where == "q"


# ---------------------------------------------------------------- report


def test_report_gold_reads_back_whole():
    text = Report().target(WRITTEN, FRAME)
    assert text.endswith("</think>\nNo effusion.\n\nHeart size normal.")
    reading = Report().read(text, WRITTEN, FRAME)
    assert (reading.answer.text, reading.flaws) == (WRITTEN.target.text, ())
    assert value(Rouge(), WRITTEN, Report(), text) == 1
    assert Report().prompt(WRITTEN) == (
        "Write the report of this ct study. Reason in <think></think>, then answer in plain text."
    )


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>x</think> Clear.\nAnswer: fine.", "Clear.\nAnswer: fine."),
        ("Clear.", "Clear."),
        ("<think>x</think>\\boxed{Clear.}", "Clear."),
        ("<think>x</think><answer>Clear.</answer>", "Clear."),
        ("<think>\\boxed{x}</think>Clear.", "Clear."),
        ('<think>x</think>A spot.\n```json\n[{"bbox_2d": [0, 0, 9, 9], "label": "spot"}]\n```\nElse clear.', None),
        ("<think>Clear.", None),
        ("<think>Clear.</think> ", None),
    ],
)
def test_what_a_report_is(text, answer):
    reading = Report().read(text, WRITTEN, FRAME)
    if "json" in text:
        assert reading.answer.text == "A spot.\n\nElse clear." and len(reading.boxes) == 1
    else:
        assert reading.answer.text == answer
    assert not {"answer_line", "answer_tag", "boxed_missing"} & {flaw.kind for flaw in reading.flaws}


def test_rouge_of_a_report_by_hand():
    """Five words of reference, four of the response, all four in order: 2 x 4 / (4 + 5)."""
    assert value(Rouge(), WRITTEN, Report(), "<think>x</think>No effusion. Heart normal.") == pytest.approx(8 / 9)


@pytest.mark.parametrize(("text", "said"), [(None, "no report"), ("  ", "no report"), ("a </think> b", "tags")])
def test_rows_that_report_refuses(text, said):
    with pytest.raises(DataError, match=said):
        Report().check(replace(WRITTEN, target=Target(text=text)))


# ---------------------------------------------------------------- MedMO's form


@pytest.mark.parametrize("case", [LABELLED, REGION])
def test_tagged_gold_earns_all_of_medmos_rewards(case):
    text = Tagged().target(case, FRAME)
    reading = Tagged().read(text, case, FRAME)
    assert reading.flaws == () and len(reading.boxes) == 1
    for reward in (TagCount(), LabelAccuracy(), HungarianBoxes()):
        assert value(reward, case, Tagged(), text) == pytest.approx(1.0, abs=0.01)


def test_tagged_prompts_and_gold():
    assert Tagged().prompt(LABELLED) == (
        "Which organ is it? Choose from: cyst, stone. Reason in <think></think>, then boxes as a json list of "
        '"bbox_2d" and "label", then the answer in <answer></answer>.'
    )
    assert "in <answer></answer>." in Tagged().prompt(REGION) and "Choose" not in Tagged().prompt(REGION)
    assert Tagged().target(replace(LABELLED, target=Target(labels=("cyst",), text="a\nb")), FRAME) == (
        "<think>a\nb</think>\n<answer>cyst</answer>"
    )
    assert "\\boxed" not in Tagged().target(LABELLED, FRAME)


def test_tagged_reads_a_boxed_answer_too():
    assert Tagged().read("<think>x</think>\\boxed{cyst}", LABELLED, FRAME).answer.labels == ("cyst",)
    assert [flaw.kind for flaw in Tagged().read("cyst", LABELLED, FRAME).flaws] == ["think_missing", "boxed_missing"]
    with pytest.raises(DataError, match="labels are empty"):
        Tagged().check(replace(LABELLED, target=Target()))
    with pytest.raises(DataError, match="neither boxes nor a mask"):
        Tagged().check(replace(REGION, target=Target()))
