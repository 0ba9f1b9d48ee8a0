"""Rewards of text and length. Golden sources: hand computation from the papers; torchmetrics' ROUGE; a plain table."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qoqmed.errors import UserError
from qoqmed.media.torchvision_ops import repair
from qoqmed.rewards.exact_match import ExactMatch
from qoqmed.rewards.length_window import LengthWindow
from qoqmed.rewards.rouge import Rouge, common_subsequence
from qoqmed.rewards.soft_overlong import SoftOverlong
from qoqmed.rewards.tag_count import TagCount
from qoqmed.types import Answer, Case, Reading, Rollout, Status, Target

CASE = Case("c1", "ct", "set", "report", "", (), (), Target(text="No acute disease."))


def one(reward, text="", tokens=1, case=CASE, reading=None):
    rollout = Rollout("c1", 0, (7,) * tokens, text)
    (verdict,) = reward.score([case], [rollout], [reading or Reading(answer=Answer(text=text))])
    assert verdict.value is None or reward.low <= verdict.value <= reward.high
    return verdict


# ---- tag_count

FORM = "<think>x</think><answer>y</answer>"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (FORM, 1.0),
        (f"<think>\nx\n</think>\n<answer>\ny\n</answer>{'z' * 9}", 1.0),
        ("<think>x</think>y", 0.5),
        ("<think>x", 0.25),
        ("", 0.0),
        (FORM + "<think>", 0.75),
        (FORM * 2, 0.0),
        ("</think>x<think><answer>y</answer>", 0.5),
        ("<answer>y</answer><think>x</think>", 0.0),
        ("<THINK>x</THINK>", 0.0),
        ("<think>" * 100_000, 0.0),
    ],
)
def test_tag_count_by_hand(text, value):
    assert one(TagCount(), text).value == value


def test_tags_of_ones_own():
    assert one(TagCount(("<think>", "</think>", "\\boxed{")), "<think></think>\\boxed{a}").value == 1.0
    for tags in ((), ("a", "a"), ("a", "")):
        with pytest.raises(UserError, match="tags must be"):
            TagCount(tags)


# ---- soft_overlong


@pytest.mark.parametrize(
    ("tokens", "value"), [(1, 0.0), (16384, 0.0), (17408, -0.25), (18432, -0.5), (20480, -1.0), (20481, -1.0)]
)
def test_soft_overlong_has_dapos_numbers(tokens, value):
    """L_max 20,480, L_cache 4,096 (DAPO, section 4.1), of which the default takes the share."""
    assert one(SoftOverlong(20480), tokens=tokens).value == one(SoftOverlong(20480, 4096), tokens=tokens).value == value


def test_soft_overlong_at_the_edges():
    assert str(one(SoftOverlong(100), tokens=1).value) == "0.0"
    assert one(SoftOverlong(100), tokens=0).status is Status.NOT_APPLICABLE
    for wrong in ((0, None), (10, 11), (10, 0)):
        with pytest.raises(UserError, match="out of range"):
            SoftOverlong(*wrong)


# ---- length_window


@pytest.mark.parametrize(
    ("tokens", "ramp", "value"),
    [(10, 0, 1.0), (20, 0, 1.0), (9, 0, 0.0), (21, 0, 0.0), (8, 4, 0.5), (23, 4, 0.25), (24, 4, 0.0), (99, 4, 0.0)],
)
def test_length_window_by_hand(tokens, ramp, value):
    assert one(LengthWindow(10, 20, ramp), tokens=tokens).value == value


def test_length_window_counts_what_it_is_told_to():
    reading = Reading(reasoning="two words")
    assert one(LengthWindow(3, 3, unit="words"), "three short words").value == 1.0
    assert one(LengthWindow(17, 17, unit="characters"), "three short words").value == 1.0
    assert one(LengthWindow(2, 2, unit="words", part="reasoning"), "x", reading=reading).value == 1.0
    assert one(LengthWindow(0, 5), tokens=0).status is Status.NOT_APPLICABLE
    for wrong in ({"longest": 1}, {"ramp": -1}, {"unit": "lines"}, {"part": "answer"}, {"part": "reasoning"}):
        with pytest.raises(UserError):
            LengthWindow(**({"shortest": 2, "longest": 5} | wrong))


# ---- exact_match

LABELLED = replace(CASE, label_space=("a", "b"), target=Target(labels=("a", "b"), text="because"))


def value(number):
    return replace(CASE, target=Target(value=number))


NUMBER = value(2.5)


@pytest.mark.parametrize(
    ("case", "answer", "value"),
    [
        (CASE, Answer(text="  no ACUTE\ndisease"), 1.0),
        (CASE, Answer(text=r"\text{No acute disease}"), 1.0),
        (CASE, Answer(text="acute disease"), 0.0),
        (CASE, Answer(), 0.0),
        (LABELLED, Answer(labels=("b", "a")), 1.0),
        (LABELLED, Answer(labels=("a",), text="because"), 0.0),
        (LABELLED, Answer(), 0.0),
        (NUMBER, Answer(value=2.5), 1.0),
        (NUMBER, Answer(value=2.6), 0.0),
        (NUMBER, Answer(text=" 2.50 "), 1.0),
        (NUMBER, Answer(text="2.5 cm"), 0.0),
        (NUMBER, Answer(text="9" * 400), 0.0),
        (NUMBER, Answer(text="**2.5**."), 1.0),
        (NUMBER, Answer(text="25e-1"), 1.0),
        (value(0.5), Answer(text=".5"), 1.0),
        (value(5.0), Answer(text=".5"), 0.0),
        (value(-0.5), Answer(text="$-.5$"), 1.0),
        (value(0.1 + 0.2), Answer(text="0.3"), 1.0),
        (value(1.0), Answer(text="1e999"), 0.0),
        (replace(CASE, target=Target(text="-5")), Answer(text="5"), 0.0),
    ],
)
def test_exact_match_by_hand(case, answer, value):
    assert one(ExactMatch(), case=case, reading=Reading(answer=answer)).value == value


def test_exact_match_at_the_edges():
    near = Reading(answer=Answer(value=2.6))
    assert one(ExactMatch(tolerance=0.2), case=NUMBER, reading=near).value == 1.0
    assert one(ExactMatch(), case=replace(CASE, target=Target())).status is Status.NOT_APPLICABLE
    assert one(ExactMatch(), case=replace(CASE, target=Target(labels=("a",)))).status is Status.NOT_APPLICABLE
    with pytest.raises(UserError):
        ExactMatch(tolerance=-1)


# ---- rouge

words = st.lists(
    st.sampled_from(["the", "heart", "is", "normal", "in", "size", "no", "acute", "disease", "3mm"]),
    min_size=1,
    max_size=20,
)


@settings(max_examples=30, deadline=None)
@given(words, words, st.sampled_from(["rougeL", "rouge1", "rouge2"]))
def test_rouge_equals_torchmetrics(ours, theirs, kind):
    repair()
    from torchmetrics.functional.text.rouge import rouge_score

    case = replace(CASE, target=Target(text=", ".join(theirs)))
    golden = rouge_score(" ".join(ours).title(), ", ".join(theirs), rouge_keys=(kind,))[f"{kind}_fmeasure"]
    found = one(Rouge(kind), " ".join(ours).title(), case=case)
    if kind == "rouge2" and len(theirs) == 1:  # there 0: nothing could score
        assert found.status is Status.NOT_APPLICABLE and golden == 0
    else:
        assert found.value == pytest.approx(float(golden))


@settings(max_examples=100, deadline=None)
@given(st.text("abc", max_size=90), st.text("abc", max_size=90))
def test_the_common_subsequence_equals_a_plain_table(ours, theirs):
    row = [0] * (len(theirs) + 1)
    for one_letter in ours:
        before = row[:]
        for place, other in enumerate(theirs, 1):
            row[place] = before[place - 1] + 1 if one_letter == other else max(before[place], row[place - 1])
    assert common_subsequence(ours, theirs) == row[-1]


def test_rouge_by_hand():
    """The example of Lin 2004, section 3.1; F with beta 1."""
    case = replace(CASE, target=Target(text="police killed the gunman"))
    assert one(Rouge(), "police kill the gunman", case=case).value == pytest.approx(3 / 4)
    assert one(Rouge(), "the gunman kill police", case=case).value == pytest.approx(2 / 4)
    assert one(Rouge("rouge2"), "the gunman kill police", case=case).value == pytest.approx(1 / 3)


def test_rouge_at_the_edges():
    assert one(Rouge(), case=replace(CASE, target=Target())).status is Status.NOT_APPLICABLE
    assert one(Rouge(), case=replace(CASE, target=Target(text="?!"))).status is Status.NOT_APPLICABLE
    assert one(Rouge(), reading=Reading()).value == one(Rouge(), "?!").value == 0.0
    russian = replace(CASE, target=Target(text="Лёгкие чистые"))
    assert one(Rouge(), "лёгкие", case=russian).value == pytest.approx(2 / 3)
    assert one(Rouge("rouge2"), "лёгкие", case=russian).value == 0.0
    reading = Reading(reasoning="no acute disease")
    assert one(Rouge(part="reasoning"), "x", reading=reading).value == 1.0
    assert one(Rouge(part="response"), "<think>x y</think>No acute disease", reading=Reading()).value == 1.0
    assert one(Rouge(), "no acute disease " * 100_000).value < 0.01
    with pytest.raises(UserError, match="unknown kind"):
        Rouge("rougeLsum")
