"""Golden source: hand computation; mask overlap against a pixel-by-pixel loop."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qoqmed.boxes import AbsoluteFrame, RelativeFrame, best_mask_iou, from_xywh, iou
from qoqmed.geometry import Geometry
from qoqmed.types import Box

PICTURE = Geometry(100, 50, 84, 56, 14, 2)
unit = st.floats(0, 1, width=32)


@st.composite
def boxes(draw):
    x1, x2 = sorted([draw(unit), draw(unit)])
    y1, y2 = sorted([draw(unit), draw(unit)])
    return Box(x1, y1, x2, y2) if x1 < x2 and y1 < y2 else Box(0.25, 0.25, 0.75, 0.75)


@given(boxes(), st.integers(28, 2000), st.integers(28, 2000))
def test_absolute_frame_round_trip(box, width, height):
    frame = AbsoluteFrame([Geometry(width, height, width, height, 14, 2)])
    check_round_trip(frame, box, width, height)


@given(boxes())
def test_relative_frame_round_trip(box):
    check_round_trip(RelativeFrame(), box, 1000, 1000)


def check_round_trip(frame, box, width, height):
    x1, y1, x2, y2 = frame.read(frame.write(box))
    for low, high, got_low, got_high, size in ((box.x1, box.x2, x1, x2, width), (box.y1, box.y2, y1, y2, height)):
        thin = round(low * size) == round(high * size)
        bound = (1.0 if thin else 0.5) + 1e-6
        assert abs(got_low - low) * size <= bound and abs(got_high - high) * size <= bound


def test_absolute_frame_by_hand():
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
