"""The parser of responses and the matcher of labels: well-formed, sloppy and hostile texts."""

import json
import math
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qoqmed.errors import DataError
from qoqmed.reading import MAX_BOXES, MAX_CHARACTERS, RawBox, clashes, labels_of, match_labels, parse
from qoqmed.types import Case, Target

GOOD = '<think>dark and round</think>\n```json\n[{"bbox_2d": [1, 2, 30, 40], "label": "cyst"}]\n```\n\\boxed{cyst}'


KEYS = ("bbox_2d", "bbox", "boxes", "label", "labels", "image", "x1", "y1", "x2", "y2")


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
        ("[1, 2, 3]", "json_shape"),
        ('{"x1": 1, "y1": 2, "x2": 3, "y2": "4"}', "box_invalid"),
        ("[" * 9 + "1, 2, 3, 4" + "]" * 9, "json_shape"),
        ('{"box": ' * 500 + "1" + "}" * 500, "json_shape"),
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


MENDED = [
    ('[{"box": [1, 2, 3, 4], "name": "x"}]', ["x"], "json_repaired"),
    ('[{"bounding_box": [1, 2, 3, 4], "class": "x"}]', ["x"], "json_repaired"),
    ("[1, 2, 3, 4]", [""], "json_repaired"),
    ("[[1, 2, 3, 4], [1, 2, 3, 4]]", ["", ""], "json_repaired"),
    ('[{"bbox_2d": {"x1": 1, "y1": 2, "x2": 3, "y2": 4}, "label": "x"}]', ["x"], "json_repaired"),
    ('[{"xmin": 1, "ymin": 2, "xmax": 3, "ymax": 4, "label": "x"}]', ["x"], "json_repaired"),
    ('[{"bbox_2d": [[1, 2, 3, 4], [1, 2, 3, 4]], "label": "x"}]', ["x", "x"], "json_repaired"),
    ('{"boxes": [[1, 2, 3, 4], [1, 2, 3, 4]], "labels": ["x", "y"]}', ["x", "y"], "json_repaired"),
    ('{"objects": [{"bbox_2d": [1, 2, 3, 4], "label": "x"}]}', ["x"], "json_repaired"),
    ('{"x": [1, 2, 3, 4], "y": [{"bbox_2d": [1, 2, 3, 4]}]}', ["x", "y"], "json_repaired"),
    ('{"bbox_2d": [1, 2, 3, 4], "label": "x"}\n{"bbox_2d": [1, 2, 3, 4], "label": "y"}', ["x", "y"], "json_repaired"),
    ('[{"bbox_2d": [1, 2, 3, 4], "label": "x"}],\n[[1, 2, 3, 4]] as said', ["x", ""], "json_repaired"),
    ('{"bbox_2d": [1, 2, 3, 4], "label": "x"} as said', ["x"], "json_repaired"),
    ('{"bbox_2d": [1, 2, 3, 4], "label": "x"}, {"bbox_2d": [1, ', ["x"], "json_repaired"),
    ('[{"bbox_2d": [1, 2, 3, 4], "label": "x"}, {"bbox_2d": [1, 2,', ["x"], "json_invalid"),
    ('[{"bbox_2d": [1, 2, 3, 4], "label": "x"},]', ["x"], "json_invalid"),
    ('Here they are: [{"bbox_2d": [1, 2, 3, 4], "label": "x"}]', ["x"], "json_repaired"),
    ('{"bbox_2d": [1, 2, 3, 4], "label": 3}', [""], "json_shape"),
    ('{"bbox_2d": [1, 2, 3, 4], "label": "x", "image": "1"}', ["x"], "json_repaired"),
    ('{"bbox_2d": [1, 2, 3, 4], "label": "x", "image": "one"}', ["x"], "json_shape"),
]


@pytest.mark.parametrize(("body", "labels", "kind"), MENDED)
def test_other_shapes_are_read_and_the_repair_is_told(body, labels, kind):
    boxes = parse(block(body)).boxes
    assert [(box.numbers, box.label) for box in boxes] == [((1.0, 2.0, 3.0, 4.0), label) for label in labels]
    assert kind in kinds(block(body))


def test_two_points_are_a_box():
    assert parse(block('[{"bbox_2d": [[1, 2], [3, 4]]}]')).boxes == (RawBox((1.0, 2.0, 3.0, 4.0)),)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('<think></think>It is [{"bbox_2d": [1, 2, 3, 4]}] \\boxed{a}', ["json_unfenced"]),
        ('<think></think>{"bbox_2d": [1, 2, 3, 4]} \\boxed{a}', ["json_unfenced"]),
        ('<think></think>[x] {"bbox_2d": [1, 2, 3, 4]} \\boxed{a}', ["json_unfenced"]),
        ('<think></think>[{"bbox_2d": [1, 2, 3, 4]}, {"bb \\boxed{a}', ["json_unfenced", "json_invalid"]),
    ],
)
def test_json_without_fences_is_read(text, told):
    assert parse(text).boxes == (RawBox((1.0, 2.0, 3.0, 4.0)),)
    assert kinds(text) == told


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
    assert parse(block('[{"bbox_2d": [1, 2, 3, 4], "image": "2"}]')).boxes[0].picture == 2


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


@pytest.mark.parametrize(
    ("text", "answer", "told"),
    [
        ("<think>x</think>\nAnswer: a", "a", ["boxed_missing", "answer_line"]),
        ("<think>x</think>\nAnswer: a\n**Final answer:** b, c\nThank you.", "b, c", ["boxed_missing", "answer_line"]),
        ("<think>x</think>\nThe final answer is b.", "b.", ["boxed_missing", "answer_line"]),
        ("<think>x</think>\n### Answer\n", None, ["boxed_missing"]),
        ("<think>x</think>\nAnswer:\n\nb", "b", ["boxed_missing", "answer_line"]),
        ("<think>x</think>\nAnswer:", None, ["boxed_missing"]),
        ("<think>x</think>\nThe answers are many", None, ["boxed_missing"]),
        ("<think>Answer: a</think>\nno", None, ["boxed_missing"]),
        ("<think>x</think><answer>a</answer>", "a", ["boxed_missing", "answer_tag"]),
        ("<think>x</think><answer>a</answer><answer>b</answer>", "b", ["boxed_missing", "answer_tag"]),
        ("<think>x</think><answer>a", None, ["answer_unclosed", "boxed_missing"]),
        ("<think>x</think><answer>\\boxed{a}</answer>Answer: b", "a", []),
        ("<think>\\boxed{a}</think>Answer: b", "b", ["boxed_in_think", "answer_line"]),
    ],
)
def test_answers_without_boxed(text, answer, told):
    assert (parse(text).answer, kinds(text)) == (answer, told)


HOSTILE = [
    "<answer>", "</answer>", "answer:", "\nAnswer: ", "the final ", '[{"bbox', '{"bbox_2d": [', '{"bbox_2d":{',
    '"bbox_2d" [{"a":', "[1,", '```json\n[{"bbox_2d": [1', "\n", "## ",
"\\boxed{", "\\boxed ", "{", "}", "<think>", "</think>", "```", "```json[", "[{", "```json\n[1]", " ", "\\",
]  # fmt: skip


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


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=3), inner),
    max_leaves=30,
)


@settings(max_examples=200, deadline=None)
@given(json_values, st.sampled_from(["```json\n%s\n```", "%s", "```%s", "\\boxed{%s}"]))
def test_any_json_is_read(value, form):
    parsed = parse(form % json.dumps(value))
    assert all(len(box.numbers) == 4 and all(map(math.isfinite, box.numbers)) for box in parsed.boxes)
    assert all(isinstance(box.label, str) for box in parsed.boxes)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=200), st.lists(st.text(max_size=20), max_size=5))
def test_any_text_and_any_space(text, space):
    labels, _ = match_labels(text, space)
    assert set(labels) <= set(space)
    parse(text)


def test_length_is_capped():
    assert parse("x" * MAX_CHARACTERS + GOOD).answer is None


SPACE = ("hand fracture and edema", "edema", "Lung Opacity", "COVID-19", "E.Coli", "nodule ≥ 3mm", "nodule <3mm")


@pytest.mark.parametrize(
    ("answer", "labels", "flaws"),
    [
        ("edema", ["edema"], []),
        ("EDEMA.", ["edema"], ["respelled_label"]),
        ("hand fracture and edema", ["hand fracture and edema"], []),
        ("edema and lung opacity", ["edema", "Lung Opacity"], ["respelled_label"]),
        ("lung-opacity; covid 19", ["Lung Opacity", "COVID-19"], ["respelled_label"] * 2),
        ("Covid19, e. coli", ["COVID-19", "E.Coli"], ["respelled_label"] * 2),
        (r"\text{Lung\_Opacity}", ["Lung Opacity"], ["respelled_label"]),
        (r"\text{nodule} $\geq$ 3 mm", ["nodule ≥ 3mm"], ["respelled_label"]),
        ("nodule < 3 mm", ["nodule <3mm"], ["respelled_label"]),
        ("edema, edema", ["edema"], ["repeated_label"]),
        ("lymphedema", [], ["unknown_label"]),
        ("edematous", [], ["unknown_label"]),
        ("edema of the lung", ["edema"], ["unknown_label"]),
        ("unicorn, edema", ["edema"], ["unknown_label"]),
        ("no edema", [], ["negated_label"]),
        ("edema: no, covid-19: yes", ["COVID-19"], ["negated_label", "unknown_label", "respelled_label"]),
        ("lung opacity and no edema", ["Lung Opacity"], ["negated_label", "respelled_label"]),
        ("no edema, lung opacity", ["Lung Opacity"], ["negated_label", "respelled_label"]),
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
        labels, flaws = match_labels(answer, space)
        assert labels == ("Conduction Delay (CD)",)
        assert [flaw.kind for flaw in flaws] == ["respelled_label"] * (answer != labels[0])
    assert match_labels("nodule", space)[0] == ()  # two labels would do: no guess


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("nodules", "nodule"),
        ("Lung Opacity", "lung opacities"),
        ("masses", "mass"),
        ("bone metastases", "bone metastasis"),
        ("fractures of the hand", "fracture of the hand"),
    ],
)
def test_plurals(answer, label):
    labels, flaws = match_labels(answer, [label, "other"])
    assert (labels, [flaw.kind for flaw in flaws]) == ((label,), ["plural_label"])


def test_a_plural_or_a_synonym_never_takes_another_labels_name():
    assert match_labels("nodules", ["nodule", "nodules"]) == (("nodules",), ())
    assert match_labels("Yes, no", ["Yes", "No"])[0] == ("Yes", "No")
    assert match_labels("CDs", ["delay (CD)"])[0] == ()
    assert match_labels("tumor", ["glioma", "tumor"], {"glioma": ["tumor", "growth"], "tumor": ["growth"]}) == (
        ("tumor",),
        (),
    )
    assert match_labels("growth", ["glioma", "tumor"], {"glioma": ["growth"], "tumor": ["growth"]})[0] == ()


def test_declared_synonyms():
    case = Case(
        "c", "ct", "set", "diagnosis", "", (), ("Glioma", "hand fracture"), Target(),
        attributes={"reading/synonyms": {"Glioma": ["glial tumor"], "hand fracture": ["broken hand"]}},
    )  # fmt: skip
    labels, flaws = labels_of("a broken hand, no glial-tumors, and a Glial Tumor", case)
    assert labels == ("hand fracture", "Glioma")
    assert {"negated_label", "synonym_label", "plural_label"} <= {flaw.kind for flaw in flaws}
    assert labels_of("preglial tumor", case)[0] == ()
    for wrong in ({"x": ["y"]}, {"Glioma": "y"}, {"Glioma": [1]}, ["Glioma"], "Glioma"):
        with pytest.raises(DataError, match=r"^c: the attribute 'reading/synonyms' is malformed"):
            labels_of("x", Case("c", "", "", "", "", (), ("Glioma",), Target(), attributes={"reading/synonyms": wrong}))


def test_flaws_are_counted_beyond_a_limit():
    text = "".join(f"```json\n{' ' * n}[1 {n}\n```" for n in range(20)) + "no \\boxed{"
    assert "json_repeated" in kinds(text) and "boxed_missing" in kinds(text)
    labels, flaws = match_labels(", ".join(f"word{n}" for n in range(200)), ["edema"])
    assert (labels, len(flaws), flaws[-1].kind) == ((), 51, "more_flaws")


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
