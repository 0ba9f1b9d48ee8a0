"""Golden source: hand computation; mask overlap against a pixel-by-pixel loop."""

from fractions import Fraction
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qoqmed.boxes import AbsoluteFrame, RelativeFrame, best_mask_iou, from_xywh, iou
from qoqmed.errors import UserError
from qoqmed.geometry import Geometry
from qoqmed.types import Box

PICTURE = Geometry(100, 50, 84, 56, 14, 2)
unit = st.floats(0, 1, width=32)


@st.composite
def boxes(draw):
    x1, x2 = sorted([draw(unit), draw(unit)])
    y1, y2 = sorted([draw(unit), draw(unit)])
    return Box(x1, y1, x2, y2) if x1 < x2 and y1 < y2 else Box(0.25, 0.25, 0.75, 0.75)


orders = st.sampled_from(["xyxy", "xywh"])
sizes = st.integers(28, 4000)


@given(boxes(), sizes, sizes, orders)
def test_absolute_frame_round_trip(box, width, height, order):
    frame = AbsoluteFrame([Geometry(3 * width, height, width, height, 14, 2)], order=order)
    check_round_trip(frame, box, width, height)


@given(boxes(), orders, st.sampled_from([100, 999, 1000]))
def test_relative_frame_round_trip(box, order, scale):
    check_round_trip(RelativeFrame(scale, order=order), box, scale, scale)


def check_round_trip(frame, box, width, height):
    numbers = frame.write(box)
    assert all(type(number) is int for number in numbers)
    x1, y1, x2, y2 = frame.read(numbers)
    assert 0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1
    for low, high, got_low, got_high, size in ((box.x1, box.x2, x1, x2, width), (box.y1, box.y2, y1, y2, height)):
        thin = round(low * size) == round(high * size)
        bound = (1.0 if thin else 0.5) + 1e-6
        assert abs(got_low - low) * size <= bound and abs(got_high - high) * size <= bound
    assert frame.write(Box(x1, y1, x2, y2)) == numbers  # what has been written once stays


@given(boxes(), sizes, sizes)
def test_xywh_names_the_same_corners(box, width, height):
    geometry = Geometry(50, 50, width, height, 14, 2)
    for make in (partial(AbsoluteFrame, [geometry]), RelativeFrame):
        corners, sides = make(), make(order="xywh")
        x1, y1, x2, y2 = corners.write(box)
        assert sides.write(box) == [x1, y1, x2 - x1, y2 - y1]
        assert sides.read(sides.write(box)) == corners.read(corners.write(box))


anything = st.one_of(
    st.floats(), st.integers(), st.floats(-2000, 2000), st.integers(-50, 1100), st.sampled_from([10**400, -(10**400)])
)


@given(st.lists(anything, min_size=4, max_size=4), sizes, sizes, orders)
def test_any_numbers_are_a_box_or_a_value_error(numbers, width, height, order):
    """Against exact fractions."""
    frame = AbsoluteFrame([Geometry(50, 50, width, height, 14, 2)], order=order)
    if any(number != number for number in numbers):
        with pytest.raises(ValueError, match="nan"):
            frame.read(numbers)
        return
    x1, y1, x2, y2 = (Fraction(min(max(number, -(10**9)), 10**9)) for number in numbers)
    if order == "xywh":
        x2, y2 = x1 + x2, y1 + y2
    sides = zip((x1, y1, x2, y2), (width, height, width, height), strict=True)
    expected = [float(min(max(number, 0), size) / size) for number, size in sides]
    if expected[0] < expected[2] and expected[1] < expected[3]:
        assert frame.read(numbers) == pytest.approx(expected, abs=1e-9)
    elif expected[0] > expected[2] or expected[1] > expected[3]:
        with pytest.raises(ValueError, match="no area inside"):
            frame.read(numbers)


@given(boxes(), orders)
def test_reversed_corners_are_no_box(box, order):
    x1, y1, x2, y2 = RelativeFrame().write(box)
    numbers = [x2, y1, x1, y2] if order == "xyxy" else [x2, y1, x1 - x2, y2 - y1]
    with pytest.raises(ValueError, match="no area inside"):
        RelativeFrame(order=order).read(numbers)


def test_an_unknown_order_is_refused():
    with pytest.raises(UserError, match="unknown order"):
        RelativeFrame(order="xxyy")
    with pytest.raises(UserError, match="unknown order"):
        AbsoluteFrame([], order="xxyy")


def test_absolute_frame_by_hand():
    assert AbsoluteFrame([PICTURE], order="xywh").write(Box(0.25, 0.5, 0.75, 1.0)) == [21, 28, 42, 28]
    assert RelativeFrame(order="xywh").read([250, 500, 500, 800]) == (0.25, 0.5, 0.75, 1.0)  # clipped
    frame = AbsoluteFrame([None, PICTURE])  # an ECG, then an image: media count from 0
    box = Box(0.25, 0.5, 0.75, 1.0, medium=1)
    assert frame.write(box) == [21, 28, 63, 56]
    assert frame.read([21, 28, 63, 56], 1) == (0.25, 0.5, 0.75, 1.0)
    assert frame.read([-10, 28.0, 63, 1000], 1) == (0.0, 0.5, 0.75, 1.0)  # clipped
    with pytest.raises(ValueError, match="medium 0 is no picture"):
        frame.read([21, 28, 63, 56])
    with pytest.raises(ValueError, match="medium 7 is no picture"):
        frame.read([21, 28, 63, 56], 7)


@pytest.mark.parametrize(
    "numbers", [[5, 5, 5, 9], [9, 5, 5, 9], [1, 2, 3], [2000, 0, 3000, 9], [float("nan"), 0, 5, 5], []]
)
def test_no_box(numbers):
    with pytest.raises(ValueError):
        RelativeFrame().read(numbers)


def test_from_xywh():
    assert from_xywh([10, 5, 20, 10], 100, 50) == (0.1, 0.1, 0.3, 0.3)
    assert from_xywh([90, 5, 20, 10], 100, 50) == (0.9, 0.1, 1.0, 0.3)  # clipped to the picture
    with pytest.raises(ValueError, match="no area"):
        from_xywh([10, 5, 0, 10], 100, 50)


def test_iou_by_hand():
    one = Box(0, 0, 0.5, 0.5)
    assert iou(one, one) == 1.0
    assert iou(one, Box(0.25, 0.25, 0.75, 0.75)) == pytest.approx(0.0625 / 0.4375)
    assert iou(one, Box(0.5, 0, 1, 0.5)) == 0.0
    assert iou(one, Box(0, 0, 0.5, 0.5, medium=1)) == 0.0


@given(boxes(), boxes())
def test_iou_is_symmetric_and_bounded(one, other):
    assert iou(one, other) == iou(other, one)
    assert 0 <= iou(one, other) <= 1


def test_mask_iou_by_hand():
    mask = np.zeros((4, 8), bool)
    mask[1:3, 2:6] = True  # 8 pixels
    assert best_mask_iou([Box(2 / 8, 1 / 4, 6 / 8, 3 / 4)], mask) == 1.0
    assert best_mask_iou([Box(0, 0, 0.5, 1)], mask) == pytest.approx(4 / (16 + 8 - 4))
    assert best_mask_iou([Box(0, 0, 0.5, 1), Box(2 / 8, 1 / 4, 6 / 8, 1)], mask) == pytest.approx(8 / 12)
    assert best_mask_iou([], mask) == 0.0
    assert best_mask_iou([Box(0, 0, 0.01, 0.01)], np.zeros((4, 4), bool)) == 0.0


@settings(max_examples=50, deadline=None)
@given(boxes(), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_mask_iou_equals_a_loop_over_pixels(box, height, width, seed):
    mask = np.random.default_rng(seed).random((height, width)) < 0.5
    shared = union = 0
    for row in range(height):
        for column in range(width):
            covered = box.x1 <= (column + 0.5) / width < box.x2 and box.y1 <= (row + 0.5) / height < box.y2
            shared += covered and mask[row, column]
            union += covered or mask[row, column]
    assert best_mask_iou([box], mask) == pytest.approx(shared / union if union else 0.0)
