"""Rewards of boxes. Golden sources: hand computation; `oracles.boxes` (pixels counted, all matchings tried); scipy."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import boxes as oracle
from scipy.ndimage import label as connected
from scipy.optimize import linear_sum_assignment

from qoqmed.boxes import best_mask_iou
from qoqmed.errors import UserError
from qoqmed.rewards.assignment import assign
from qoqmed.rewards.hungarian_boxes import HungarianBoxes, giou
from qoqmed.rewards.iou import IoU
from qoqmed.rewards.label_accuracy import LabelAccuracy
from qoqmed.rewards.parts import best_part_iou, parts_of
from qoqmed.types import Answer, Box, Case, Mask, Medium, Reading, Rollout, Status, Target

CASE = Case("c1", "ct", "set", "grounding", "", (Medium("image"),), (), Target())
ROLLOUT = Rollout("c1", 0, (1,), "text")


def one(reward, case, *boxes):
    (verdict,) = reward.score([case], [ROLLOUT], [Reading(boxes=boxes)])
    return verdict


def gold(*boxes, **fields):
    return replace(CASE, target=Target(boxes=boxes), **fields)


# ---- assignment


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 12), st.integers(0, 12), st.integers(0, 999))
def test_the_matching_costs_no_more_than_scipys(rows, columns, seed):
    cost = np.random.default_rng(seed).normal(size=(rows, columns))
    pairs = assign(cost)
    assert len(pairs) == min(rows, columns)
    assert len({row for row, _ in pairs}) == len({column for _, column in pairs}) == len(pairs)
    theirs = linear_sum_assignment(cost)
    assert sum(cost[pair] for pair in pairs) == pytest.approx(cost[theirs].sum())
    assert pairs == list(zip(*(side.tolist() for side in theirs), strict=True))


def test_equal_costs_are_matched_too():
    assert len(assign(np.zeros((3, 5)))) == 3
    assert len(assign(np.ones((5, 3)))) == 3


# ---- GIoU


sides = st.tuples(st.integers(0, 11), st.integers(0, 11), st.integers(1, 8), st.integers(1, 8))
pixel_boxes = sides.map(lambda side: (side[0], side[1], min(side[0] + side[2], 12), min(side[1] + side[3], 12)))


@settings(max_examples=100, deadline=None)
@given(pixel_boxes, pixel_boxes)
def test_giou_equals_counted_pixels(ours, theirs):
    value = giou(np.array([ours], float), np.array([theirs], float))
    assert value.item() == pytest.approx(oracle.giou(ours, theirs))


def test_giou_by_hand():
    boxes = np.array([[0, 0, 2, 2], [2, 0, 4, 2], [0, 0, 4, 4], [6, 0, 8, 2]], float)
    # beside each other: no overlap, no gap; inside: 4 of 16; two apart: union 8 of a hull of 16
    assert giou(boxes[:1], boxes).tolist() == [[1.0, 0.0, 0.25, pytest.approx(-0.5)]]


# ---- hungarian_boxes


def test_hungarian_boxes_by_hand():
    """G = 2, extents 0.5 x 1: diagonal sqrt(1.25). One pair is exact (s = 1), one missing: 1 / 2."""
    case = gold(Box(0, 0, 0.5, 0.5), Box(0, 0.5, 0.5, 1))
    assert one(HungarianBoxes(), case, Box(0, 0, 0.5, 0.5)).value == pytest.approx(0.5)
    assert one(HungarianBoxes(false_negative=0.4), case, Box(0, 0, 0.5, 0.5)).value == pytest.approx(0.5 - 0.4 / 2)
    # gold and prediction touch: L1 = 1 / (2 sqrt 1.25), GIoU = 0
    touching = (5 * (1 - 1 / (2 * 1.25**0.5)) + 2 * 0.5) / 7
    alone = gold(Box(0, 0, 0.5, 1))
    assert one(HungarianBoxes(), alone, Box(0.5, 0, 1, 1)).value == pytest.approx(touching)
    image = (5 * (1 - 1 / (2 * 2**0.5)) + 2 * 0.5) / 7
    assert one(HungarianBoxes(size="image"), alone, Box(0.5, 0, 1, 1)).value == pytest.approx(image)


def test_the_distance_is_clipped_and_nothing_is_squared():
    """A tiny gold box in the corner, a prediction far away: L1 above 1 counts as 1; only GIoU is left."""
    case = gold(Box(0, 0, 0.01, 0.01))
    overlap = giou(np.array([[0.9, 0.9, 1, 1]]), np.array([[0, 0, 0.01, 0.01]])).item()
    assert one(HungarianBoxes(), case, Box(0.9, 0.9, 1, 1)).value == pytest.approx((overlap + 1) / 7)


lists = st.lists(pixel_boxes, max_size=3)
penalties = st.sampled_from([0.0, 0.3])


@settings(max_examples=150, deadline=None)
@given(lists, lists, st.sampled_from([(12, 12), (24, 16)]), st.booleans(), penalties, penalties)
def test_hungarian_boxes_equal_the_second_implementation(ours, theirs, size, whole, fn, fp):
    width, height = size

    def normal(boxes):
        return [Box(x1 / width, y1 / height, x2 / width, y2 / height) for x1, y1, x2, y2 in boxes]

    reward = HungarianBoxes("image" if whole else "gold", fn, fp)
    case = gold(*normal(theirs), attributes={"media/sizes_px": [[width, height]]})
    value = one(reward, case, *normal(ours)).value
    assert any(value == pytest.approx(each) for each in oracle.rewards(ours, theirs, size if whole else None, fn, fp))
    pictured = replace(gold(*normal(theirs)), media=(Medium("image", array=np.zeros((height, width, 3), np.uint8)),))
    assert one(reward, pictured, *normal(ours)).value == pytest.approx(value)


def test_hungarian_boxes_at_the_edges():
    box = Box(0.2, 0.2, 0.4, 0.4)
    assert one(HungarianBoxes(), gold(box)).value == 0.0
    assert one(HungarianBoxes(), gold()).value == one(HungarianBoxes(), CASE, box).value == 0.5
    for case in (replace(CASE, task="diagnosis"), gold(task="diagnosis")):
        assert one(HungarianBoxes(), case, box).status is Status.NOT_APPLICABLE
    assert one(HungarianBoxes(grounding_tasks=("mine",)), replace(CASE, task="mine"), box).value == 0.5
    assert one(HungarianBoxes(), gold(box), replace(box, medium=1)).value == 0.0
    two = gold(box, replace(box, medium=1))
    assert one(HungarianBoxes(), two, replace(box, medium=1)).value == pytest.approx(0.5)


def test_a_flood_of_boxes_pays_unless_it_is_guarded():
    case = gold(Box(0.2, 0.2, 0.4, 0.4))
    flood = [Box(x / 10, y / 10, x / 10 + 0.2, y / 10 + 0.2) for x in range(8) for y in range(8)]
    assert one(HungarianBoxes(), case, *flood).value == pytest.approx(1.0)
    assert one(HungarianBoxes(max_extra=3), case, *flood).value == 0.0
    assert one(HungarianBoxes(max_extra=3), case, *flood[:4]).value > 0.0
    assert one(HungarianBoxes(false_positive=0.1), case, *flood).value == 0.0


def test_a_mask_without_boxes_is_the_tight_box_around_it():
    array = np.zeros((10, 20), bool)
    array[2:4, 5:10] = True
    case = replace(CASE, target=Target(mask=Mask(array=array)))
    assert one(HungarianBoxes(), case, Box(0.25, 0.2, 0.5, 0.4)).value == pytest.approx(1.0)
    empty = replace(CASE, target=Target(mask=Mask(array=~array & array)))
    assert one(HungarianBoxes(), empty).value == 0.5


@pytest.mark.parametrize(
    "wrong", [{"size": "picture"}, {"false_negative": -1.0}, {"false_positive": -1.0}, {"max_extra": -1}]
)
def test_wrong_arguments_of_hungarian_boxes(wrong):
    with pytest.raises(UserError):
        HungarianBoxes(**wrong)


# ---- iou, parts


masks = st.integers(0, 9999).map(lambda seed: np.random.default_rng(seed).random((9, 11)) < 0.4)


@settings(max_examples=100, deadline=None)
@given(masks)
def test_parts_equal_scipys(mask):
    numbers, count = connected(mask, structure=np.ones((3, 3)))
    parts = parts_of(mask)
    assert len(parts.sizes) - 1 == count
    assert parts.numbers.tolist() == numbers.tolist()
    assert parts.sizes.tolist() == np.bincount(numbers.ravel()).tolist()


@settings(max_examples=50, deadline=None)
@given(masks, st.lists(pixel_boxes, min_size=1, max_size=3))
def test_the_best_part_equals_each_part_as_a_mask(mask, pixels):
    boxes = [Box(x1 / 12, y1 / 12, x2 / 12, y2 / 12) for x1, y1, x2, y2 in pixels]
    numbers, count = connected(mask, structure=np.ones((3, 3)))
    each = [best_mask_iou(boxes, numbers == number) for number in range(1, count + 1)]
    assert best_part_iou(boxes, parts_of(mask)) == pytest.approx(max(each, default=0.0))


def test_iou_of_the_best_part_by_hand():
    array = np.zeros((4, 4), bool)
    array[:, 0] = array[:, 3] = True  # two parts of 4 pixels
    case = replace(CASE, target=Target(mask=Mask(array=array)))
    left = Box(0, 0, 0.25, 1)
    assert one(IoU(), case, left).value == pytest.approx(4 / 8)
    assert one(IoU(parts="best"), case, left).value == 1.0
    assert one(IoU(parts="best"), case, Box(0, 0, 1, 1)).value == pytest.approx(4 / 16)
    assert one(IoU(parts="best"), case).value == 0.0
    full = replace(CASE, target=Target(mask=Mask(array=np.ones((4, 4), bool))))
    assert one(IoU(parts="best"), full, Box(0, 0, 1, 1)).value == 1.0
    empty = replace(CASE, target=Target(mask=Mask(array=np.zeros((4, 4), bool))))
    assert one(IoU(parts="best"), empty, left).status is Status.NOT_APPLICABLE
    with pytest.raises(UserError, match="unknown parts"):
        IoU(parts="bset")


def test_a_mask_that_was_not_loaded_is_no_case_without_boxes():
    with pytest.raises(UserError, match="c1: the mask was not loaded"):
        one(HungarianBoxes(), replace(CASE, target=Target(mask=Mask("m.png"))), Box(0, 0, 1, 1))


# ---- label_accuracy


@pytest.mark.parametrize(
    ("true", "named", "value"),
    [
        (("a",), ("a",), 1.0),
        (("a",), ("b",), 0.0),
        (("a",), ("a", "b"), 1 / 2),
        (("a", "b"), ("b", "c"), 1 / 3),
        (("a", "b"), (), 0.0),
        ((), (), 1.0),
        (("a",), None, 0.0),
    ],
)
def test_label_accuracy_by_hand(true, named, value):
    case = replace(CASE, label_space=("a", "b", "c"), target=Target(labels=true))
    (verdict,) = LabelAccuracy().score([case], [ROLLOUT], [Reading(answer=Answer(labels=named))])
    assert verdict.value == pytest.approx(value)


def test_label_accuracy_of_boxes():
    left, right = Box(0, 0, 0.5, 1, "left lung"), Box(0.5, 0, 1, 1, "right lung")
    case = gold(left, right)
    assert one(LabelAccuracy(), case, replace(left, label="Left-Lung"), right).value == 1.0
    assert one(LabelAccuracy(), case, left, left).value == pytest.approx(1 / 2)
    assert one(LabelAccuracy(), case, left, replace(left, label="heart")).value == pytest.approx(1 / 3)
    assert one(LabelAccuracy(), case, replace(left, label="")).value == 0.0
    assert one(LabelAccuracy(), case).value == 0.0
    assert one(LabelAccuracy(), gold(replace(left, label="")), left).status is Status.NOT_APPLICABLE
    unknown = replace(case, label_space=("a",))
    assert one(LabelAccuracy(), unknown, left).status is Status.NOT_APPLICABLE


# ---- a flood of boxes


def test_iou_may_bound_the_boxes_a_label():
    array = np.zeros((4, 4), bool)
    array[:, 0] = True
    case = replace(CASE, target=Target(labels=("a",), mask=Mask(array=array)))
    left, rest = Box(0, 0, 0.25, 1), [Box(0.5, 0, 0.75, 1)] * 6
    assert one(IoU(), case, left, *rest).value == 1.0  # the paper's letter
    assert one(IoU(boxes_per_label=2), case, left, *rest[:1]).value == 1.0
    assert one(IoU(boxes_per_label=2), case, left, *rest[:2]).value == 0.0
    reading = Reading("", (left, *rest[:3]), Answer(("a", "b"), "a, b"))
    (verdict,) = IoU(boxes_per_label=2).score([case], [Rollout("a", 0, (), "")], [reading])
    assert verdict.value == 1.0  # two labels, four boxes
    several = replace(case, target=replace(case.target, boxes=(left,) * 3))
    assert one(IoU(boxes_per_label=2), several, left, *rest[:5]).value == 1.0  # three boxes are right: six
    assert one(IoU(boxes_per_label=2), several, left, *rest).value == 0.0
    with pytest.raises(UserError, match="boxes_per_label"):
        IoU(boxes_per_label=0)
