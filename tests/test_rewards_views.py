"""Visual coherence (QoQ-Med, App. B.3, eq. 7). Golden source: hand computation."""

from dataclasses import replace

import pytest

from qoqmed.errors import DataError
from qoqmed.rewards.visual_coherence import VisualCoherence
from qoqmed.types import Box, Case, Medium, Reading, Rollout, Status, Target

MIRROR = [[-1, 0, 1], [0, 1, 0]]  # x' = 1 - x
HALF = [[0.5, 0, 0], [0, 0.5, 0]]  # the first view is the top left quarter of the second
MEDIA = (Medium("image", view="left"), Medium("ecg"), Medium("image", view="right"), Medium("image", view="top"))
LEFT, RIGHT, TOP = 0, 2, 3
BOX = Box(0, 0, 0.4, 1, "mass", LEFT)
THERE = Box(0.6, 0, 1, 1, "mass", RIGHT)


def case(*transforms, media=MEDIA, space=("mass", "cyst")):
    rows = [{"from": source, "to": target, "matrix": matrix} for source, target, matrix in transforms]
    return Case("c1", "ultrasound", "s", "diagnosis", "", media, space, Target(), attributes={"views/transform": rows})


def one(where, *boxes):
    (verdict,) = VisualCoherence().score([where], [Rollout("c1", 0, (1,), "")], [Reading(boxes=boxes)])
    return verdict


MIRRORED = case(("left", "right", MIRROR))


@pytest.mark.parametrize(
    ("boxes", "value"),
    [
        ((BOX, THERE), 1.0),
        ((BOX, replace(THERE, x1=0.8)), 0.5),
        ((BOX, replace(BOX, medium=RIGHT)), 0.0),
        ((BOX,), 0.0),
        ((), 0.0),
        ((BOX, replace(THERE, label="cyst")), 0.0),
        ((BOX, replace(THERE, label="Masses")), 1.0),
        ((BOX, replace(THERE, label="")), 1.0),
        ((BOX, BOX, THERE), 0.5),
        ((BOX, THERE, replace(THERE, x1=0.8)), 0.5),
        ((BOX, THERE, Box(0, 0, 1, 1, "mass", TOP)), 1.0),
    ],
)
def test_two_views_by_hand(boxes, value):
    assert one(MIRRORED, *boxes).value == pytest.approx(value)


def test_what_the_other_view_does_not_show_is_not_compared():
    """ "right" shows all, "left" its top left quarter; a box at the bottom right is seen in one of them only."""
    quarter = case(("left", "right", HALF))
    seen = (Box(0, 0, 1, 1, medium=LEFT), Box(0, 0, 0.5, 0.5, medium=RIGHT))
    assert one(quarter, *seen).value == pytest.approx(1.0)
    assert one(quarter, *seen, Box(0.6, 0.6, 1, 1, medium=RIGHT)).value == pytest.approx(1.0)
    assert one(quarter, Box(0.6, 0.6, 1, 1, medium=RIGHT)).value == 0.0
    # half of the right box lies in the left view: there the whole picture, clipped; back, the quarter: 0.25 of 0.5
    half = (Box(0, 0, 1, 1, medium=LEFT), Box(0, 0, 1, 0.5, medium=RIGHT))
    assert one(quarter, *half).value == pytest.approx((1 + 0.5) / 2)


def test_three_views_by_hand():
    """left and right agree; top, which sees what left sees, agrees with neither side's box by a half."""
    views = case(("left", "right", MIRROR), ("left", "top", [[1, 0, 0], [0, 1, 0]]))
    top = Box(0, 0, 0.4, 0.5, "mass", TOP)
    # left: mean of 1 (right) and 0.5 (top); right: 1; top: 0.5
    assert one(views, BOX, THERE, top).value == pytest.approx((0.75 + 1 + 0.5) / 3)


def test_a_turned_box_is_the_rectangle_around_its_corners():
    turn = case(("left", "right", [[0, -1, 1], [1, 0, 0]]))  # 90 degrees: (x, y) -> (1 - y, x)
    assert one(turn, Box(0, 0, 0.5, 0.25, medium=LEFT), Box(0.75, 0, 1, 0.5, medium=RIGHT)).value == pytest.approx(1.0)


def test_the_way_back_may_be_given():
    both = case(("left", "right", MIRROR), ("right", "left", HALF))
    there = 1.0  # into right
    back = (0.1 * 0.5) / (0.4 + 0.2 * 0.5 - 0.1 * 0.5)  # THERE halved: 0.3 to 0.5 by 0.5, 0.1 of it in BOX
    assert one(both, BOX, THERE).value == pytest.approx((there + back) / 2)


def test_not_applicable_without_a_transform():
    for where in (replace(MIRRORED, attributes={}), case(), replace(MIRRORED, media=MEDIA[:2])):
        assert one(where, BOX).status is Status.NOT_APPLICABLE


@pytest.mark.parametrize(
    "given",
    [
        "left",
        [1],
        [{"from": "left", "to": "right"}],
        [{"from": "left", "to": 2, "matrix": MIRROR}],
        [{"from": "left", "to": "left", "matrix": MIRROR}],
        [{"from": "left", "to": "right", "matrix": [[1, 0], [0, 1]]}],
        [{"from": "left", "to": "right", "matrix": [[1, 0, "0"], [0, 1, 0]]}],
        [{"from": "left", "to": "right", "matrix": [[1, 0, float("nan")], [0, 1, 0]]}],
        [{"from": "left", "to": "right", "matrix": [[1, 1, 0], [1, 1, 0]]}],
    ],
)
def test_a_malformed_transform_names_the_row(given):
    with pytest.raises(DataError, match=r"^c1: the attribute 'views/transform' is malformed"):
        one(replace(MIRRORED, attributes={"views/transform": given}), BOX)


def test_two_pictures_of_one_view_are_refused():
    with pytest.raises(DataError, match="two pictures have one of these views"):
        one(replace(MIRRORED, media=(*MEDIA, MEDIA[0])), BOX)
