"""The parser of responses and the matcher of labels: well-formed, sloppy and hostile texts."""

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qoqmed.reading import MAX_BOXES, MAX_CHARACTERS, RawBox, clashes, match_labels, parse

GOOD = '<think>dark and round</think>\n```json\n[{"bbox_2d": [1, 2, 30, 40], "label": "cyst"}]\n```\n\\boxed{cyst}'


def kinds(text):
    return [flaw.kind for flaw in parse(text).flaws]


def test_the_house_form_has_no_flaw():
    parsed = parse(GOOD)
    assert parsed.reasoning == "dark and round"
    assert parsed.boxes == (RawBox((1.0, 2.0, 30.0, 40.0), "cyst"),)
    assert parsed.answer == "cyst"
    assert parsed.flaws == ()


@pytest.mark.parametrize(
    ("text", "reasoning", "kind"),
    [
        ("\\boxed{a}", "", "think_missing"),
        ("<think>so\\boxed{a}", "so\\boxed{a}", "think_unclosed"),
        ("so</think>\\boxed{a}", "so", "think_unopened"),
        ("<think>x</think><think>y</think>\\boxed{a}", "x", "think_repeated"),
    ],
)
def test_think_flaws(text, reasoning, kind):
    parsed = parse(text)
    assert (parsed.reasoning, parsed.answer) == (reasoning, "a")
    assert kind in kinds(text)


def block(body):
    return f"<think></think>\n```json\n{body}\n```\n\\boxed{{a}}"


@pytest.mark.parametrize(
    "text",
    [
        block('{"bbox_2d": [1, 2, 3, 4], "label": "x"}'),
        block('[{"bbox": [1, 2, 3, 4], "label": "x"}]'),
        block('[{"bbox": [1.0, 2.0, 3.0, 4.0], "label": "x", "more": {"a": 1}}]'),
        '<think>here: ```json [{"bbox_2d": [1,2,3,4], "label": "x"}]``` so</think>\\boxed{a}',
        '<think></think>```\n[{"bbox_2d": [1,2,3,4], "label": "x"}]\n```\\boxed{a}',
        '<think></think>```JSON\n[{"bbox_2d": [1,2,3,4], "label": "x"}]\n```\\boxed{a}',
    ],
)
def test_shapes_of_json(text):
    parsed = parse(text)
    assert parsed.boxes == (RawBox((1.0, 2.0, 3.0, 4.0), "x"),)
    assert parsed.flaws == ()


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ('[{"bbox_2d": [1, 2, 3, NaN]}]', "json_invalid"),
        ('[{"bbox_2d": [1, 2, 3, Infinity]}]', "json_invalid"),
        ('[{"bbox_2d": [1, 2, 3, 1e999]}]', "box_invalid"),
        ('[{"bbox_2d": [1, 2, 3, 1' + "0" * 400 + "]}]", "box_invalid"),
        ('[{"bbox_2d": [1, 2, 3, 1' + "0" * 5000 + "]}]", "json_invalid"),
        ('[{"bbox_2d": [1, 2, 3, true]}]', "box_invalid"),
        ('[{"bbox_2d": [1, 2, 3, "4"]}]', "box_invalid"),
        ('[{"bbox_2d": [1, 2, 3]}]', "box_invalid"),
        ('[{"bbox_2d": null}]', "json_shape"),
        ("[1, 2, 3, 4]", "json_shape"),
        ('[{"label": "x"}]', "json_shape"),
        ("[{'bbox_2d': [1, 2, 3, 4]}]", "json_invalid"),
        ("[" * 100_000, "json_invalid"),
        ("__import__('os').system('true')", "json_invalid"),
        ("", "json_invalid"),
    ],
)
def test_bad_json_is_a_flaw_and_no_box(body, kind):
    assert parse(block(body)).boxes == ()
    assert kind in kinds(block(body))
    assert parse(block(body)).answer == "a"


def test_json_without_a_closing_fence_is_read():
    parsed = parse('<think></think>```json\n[{"bbox_2d": [1, 2, 3, 4]}]\n\\boxed{a}')
    assert parsed.boxes == (RawBox((1.0, 2.0, 3.0, 4.0)),)
    assert [flaw.kind for flaw in parsed.flaws] == ["json_unclosed"]


def test_a_flood_of_boxes_is_cut():
    body = "[" + ",".join(['{"bbox_2d": [1, 2, 3, 4]}'] * 5000) + "]"
    assert len(parse(block(body)).boxes) == MAX_BOXES
    assert kinds(block(body)) == ["too_many_boxes"]


def test_boxes_keep_their_picture():
    assert parse(block('[{"bbox_2d": [1, 2, 3, 4], "image": 2}]')).boxes[0].picture == 2
    assert parse(block('[{"bbox_2d": [1, 2, 3, 4], "image": "2"}]')).boxes[0].picture is None


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{a}", "a"),
        (r"\boxed{ a, b }", "a, b"),
        (r"\boxed{\text{a {b} c}}", r"\text{a {b} c}"),
        (r"\boxed{a \} b}", r"a \} b"),
        (r"\boxed{a} then \boxed{b}", "b"),
        (r"\boxed{\boxed{a}}", r"\boxed{a}"),
        (r"\boxed {a}", "a"),
        (r"\boxed{}", ""),
        (r"\boxed{a} \boxed{b", "a"),
        (r"{ { \boxed{a}", "a"),
        (r"} \boxed{a} }", "a"),
        (r"\boxed{a", None),
        (r"boxed{a}", None),
        ("", None),
    ],
)
def test_boxed(text, answer):
    assert parse(text).answer == answer


def test_flaws_of_boxed():
    assert kinds("<think></think>none") == ["boxed_missing"]
    assert kinds(r"<think></think>\boxed{a") == ["boxed_unclosed", "boxed_missing"]
    assert kinds(r"<think></think>\boxed{a}\boxed{b}") == ["boxed_repeated"]
    assert kinds(r"<think>\boxed{a}</think>") == ["boxed_in_think"]
    assert kinds(r"<think>\boxed{a}</think>\boxed{b}") == []


HOSTILE = ["\\boxed{", "\\boxed ", "{", "}", "<think>", "</think>", "```", "```json[", "[{", "```json\n[1]", " ", "\\"]


@pytest.mark.parametrize("piece", HOSTILE)
def test_a_megabyte_of_anything_is_read(piece):
    parsed = parse(piece * (1_000_000 // len(piece)))
    assert "too_long" in [flaw.kind for flaw in parsed.flaws]
    assert len(parsed.flaws) < 50


@pytest.mark.parametrize("piece", HOSTILE)
def test_work_grows_linearly(piece):
    """Python-level events (calls and lines) for twice the text: at most about twice as many."""
    one, two = (events(piece * (size // len(piece))) for size in (20_000, 40_000))
    assert two <= 2.2 * one + 100


def events(text):
    count = 0

    def trace(frame, event, argument):
        nonlocal count
        count += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        parse(text)
    finally:
        sys.settrace(before)
    return count


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([*HOSTILE, GOOD, "a, b", "\n", '"bbox_2d": [1,2,3,4]', "]", ",", "é", "\ud800"])))
def test_never_raises(pieces):
    text = "".join(pieces)
    parsed = parse(text)
    assert parsed.answer is None or parsed.answer in text
    match_labels(text, ["a", "b"])


def test_length_is_capped():
    assert parse("x" * MAX_CHARACTERS + GOOD).answer is None


SPACE = ("hand fracture and edema", "edema", "Lung Opacity", "COVID-19", "E.Coli", "nodule ≥ 3mm", "nodule <3mm")


@pytest.mark.parametrize(
    ("answer", "labels", "flaws"),
    [
        ("edema", ["edema"], []),
        ("EDEMA.", ["edema"], []),
        ("hand fracture and edema", ["hand fracture and edema"], []),
        ("edema and lung opacity", ["edema", "Lung Opacity"], []),
        ("lung-opacity; covid 19", ["Lung Opacity", "COVID-19"], []),
        ("Covid19, e. coli", ["COVID-19", "E.Coli"], []),
        (r"\text{Lung\_Opacity}", ["Lung Opacity"], []),
        (r"\text{nodule} $\geq$ 3 mm", ["nodule ≥ 3mm"], []),
        ("nodule < 3 mm", ["nodule <3mm"], []),
        ("edema, edema", ["edema"], ["repeated_label"]),
        ("lymphedema", [], ["unknown_label"]),
        ("edematous", [], ["unknown_label"]),
        ("edema of the lung", ["edema"], ["unknown_label"]),
        ("unicorn, edema", ["edema"], ["unknown_label"]),
        ("no edema", [], ["negated_label"]),
        ("edema: no, covid-19: yes", ["COVID-19"], ["negated_label", "unknown_label"]),
        ("lung opacity and no edema", ["Lung Opacity"], ["negated_label"]),
        ("no edema, lung opacity", ["Lung Opacity"], ["negated_label"]),
        ("non-edema", [], ["negated_label"]),
        ("", [], ["answer_empty"]),
        ("?!", [], ["answer_empty"]),
    ],
)
def test_match_labels(answer, labels, flaws):
    got, problems = match_labels(answer, SPACE)
    assert list(got) == labels
    assert [flaw.kind for flaw in problems] == flaws


def test_labels_with_commas_and_negations_of_their_own():
    assert match_labels("mass, left, mass", ["mass, left", "mass"])[0] == ("mass, left", "mass")
    assert match_labels("spleen", ["no spleen", "spleen"]) == (("spleen",), ())
    assert match_labels("no spleen", ["no spleen", "spleen"]) == (("no spleen",), ())
    assert match_labels("No", ["Yes", "No"]) == (("No",), ())
    assert match_labels("stage 1b", ["stage 1"])[0] == ()
    assert match_labels("1 2", ["1", "2", "12"])[0] == ("1", "2")


def test_short_names_in_parentheses():
    space = ["Conduction Delay (CD)", "Normal", "nodule (left)", "nodule (right)"]
    for answer in ("CD", "conduction delay", "Conduction Delay (CD)"):
        assert match_labels(answer, space) == (("Conduction Delay (CD)",), ())
    assert match_labels("nodule", space)[0] == ()  # two labels would do: no guess


def test_a_huge_answer_is_cut():
    labels, flaws = match_labels("edema " * 100_000, SPACE)
    assert labels == ("edema",)
    assert flaws[0].kind == "answer_too_long"


def test_clashes():
    assert clashes(["A-lines", "a lines", "b"]) == ("a lines",)
    assert clashes(["?", "b"]) == ("?",)
    assert clashes(["b", "B "]) == ("B ",)


@given(st.lists(st.sampled_from(SPACE), unique=True, min_size=1))
def test_every_list_of_labels_reads_back(labels):
    assert match_labels(", ".join(labels), SPACE) == (tuple(labels), ())
