"""Golden sources: transformers' own `smart_resize` (Qwen2-VL), figures worked out by hand, and masks enlarged until no
edge cuts a pixel.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qoqmed.boxes import AbsoluteFrame
from qoqmed.geometry import Geometry, fit
from qoqmed.media import torchvision_ops
from qoqmed.types import Box

torchvision_ops.repair()
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize  # noqa: E402

sides = st.integers(1, 5000)


@settings(max_examples=300, deadline=None)
@given(sides, sides, st.sampled_from([(14, 2), (16, 2), (14, 1), (8, 3)]), st.integers(1, 10**5), st.integers(0, 10**6))
def test_fit_equals_smart_resize(width, height, cell, min_pixels, extra):
    patch, merge = cell
    bounds = {"min_pixels": min_pixels, "max_pixels": min_pixels + extra}
    if max(width, height) / min(width, height) > 200:
        with pytest.raises(ValueError, match="too narrow"):
            fit(width, height, patch=patch, merge=merge, **bounds)
        return
    geometry = fit(width, height, patch=patch, merge=merge, **bounds)
    assert (geometry.resized_height, geometry.resized_width) == smart_resize(height, width, patch * merge, **bounds)
    rows, columns = geometry.grid
    assert rows * patch * merge == geometry.resized_height and columns * patch * merge == geometry.resized_width
    assert geometry.tokens == rows * columns > 0


@pytest.mark.parametrize("patch", [14, 16])  # Qwen2.5-VL, Qwen3-VL
@settings(max_examples=100, deadline=None)
@given(sides, sides)
def test_the_recipes_bounds_on_both_backbones(patch, width, height):
    if max(width, height) > 200 * min(width, height):
        return
    geometry = fit(width, height, patch=patch, merge=2, min_pixels=65_536, max_pixels=524_288)
    assert (geometry.resized_height, geometry.resized_width) == smart_resize(height, width, 2 * patch, 65_536, 524_288)


def test_paper_bound_by_hand():
    # 1024 x 768: 36.57 -> 37 and 27.43 -> 27 cells of 28 px are 783,216 px; shrink by sqrt(786432 / 524288) = 1.2247:
    # floor(1024 / 1.2247 / 28) = 29, floor(768 / 1.2247 / 28) = 22
    geometry = fit(1024, 768, patch=14, merge=2, min_pixels=65_536, max_pixels=524_288)
    assert geometry.grid == (22, 29)
    assert geometry.tokens == 638
    assert (geometry.resized_width, geometry.resized_height) == (812, 616)


# ---------------------------------------------------------------- coordinates
BY_HAND = Geometry(100, 50, 84, 56, 14, 2)  # a grid of 2 x 3


def test_coordinates_by_hand():
    assert BY_HAND.convert([50, 25], "original", "resized").tolist() == [42, 28]
    assert BY_HAND.convert([25, 0, 100, 50], "original", "normalised").tolist() == [0.25, 0, 1, 1]
    assert BY_HAND.convert([[0.5, 0.5], [1, 0]], "normalised", "resized").tolist() == [[42, 28], [84, 0]]
    with pytest.raises(ValueError):
        BY_HAND.convert([1, 2, 3], "original", "resized")


@st.composite
def geometries(draw):
    width, height = draw(st.integers(1, 600)), draw(st.integers(1, 600))
    patch = draw(st.sampled_from([14, 16]))
    if max(width, height) > 200 * min(width, height):
        width = height
    return fit(width, height, patch=patch, merge=2, min_pixels=784, max_pixels=65_536)


@given(geometries(), st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_coordinates_come_back_and_keep_their_share(geometry, box):
    for units in ("original", "resized"):
        there = geometry.convert(box, "normalised", units)
        back = geometry.convert(there, units, "normalised")
        assert abs(back - box).max() < 1e-12
        assert (there[:2] <= geometry.size(units)).all()
        assert (geometry.convert(np.reshape(box, (2, 2)), "normalised", units).ravel() == there).all()
    by_original = geometry.convert(geometry.convert(box, "normalised", "original"), "original", "resized")
    assert abs(by_original - geometry.convert(box, "normalised", "resized")).max() < 1e-9


# ---------------------------------------------------------------- masks
def enlarged(mask, rows, columns):
    """Means over rows x columns equal parts, each pixel first made rows x columns of its kind."""
    height, width = mask.shape
    fine = np.kron(mask, np.ones((rows, columns)))
    return fine.reshape(rows, height, columns, width).mean((1, 3))


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 3), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_masks_follow_the_picture(height, width, rows, columns, seed):
    geometry = Geometry(width, height, 4 * columns, 4 * rows, 2, 2)
    mask = np.random.default_rng(seed).random((height, width)) < 0.5
    cells = geometry.cell_mask(mask)
    assert cells.shape == geometry.grid and np.allclose(cells, enlarged(mask, rows, columns), atol=1e-12)
    assert cells.mean() == pytest.approx(mask.mean())
    resized = geometry.resized_mask(mask)
    assert resized.shape == (4 * rows, 4 * columns) and resized.dtype == bool
    assert (resized == (enlarged(mask, 4 * rows, 4 * columns) >= 0.5 - 1e-9)).all()


@given(geometries(), st.data())
def test_a_box_and_its_mask_stay_together(geometry, data):
    """A box of whole original pixels, written in the backbone's frame, is the tight box of its resized mask."""
    x1, x2 = sorted(data.draw(st.lists(st.integers(0, geometry.width), min_size=2, max_size=2)))
    y1, y2 = sorted(data.draw(st.lists(st.integers(0, geometry.height), min_size=2, max_size=2)))
    corners = geometry.convert([x1, y1, x2, y2], "original", "resized")
    if min(corners[2:] - corners[:2]) < 2:
        return
    mask = np.zeros((geometry.height, geometry.width), np.uint8)
    mask[y1:y2, x1:x2] = 255
    inside = geometry.resized_mask(mask)
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    tight = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    assert abs(tight - corners).max() <= 0.5 + 1e-6
    box = Box(*geometry.convert([x1, y1, x2, y2], "original", "normalised").tolist())
    assert max(abs(np.array(AbsoluteFrame([geometry]).write(box)) - corners)) <= 0.5 + 1e-6
    cell = geometry.patch * geometry.merge
    area = (corners[2] - corners[0]) * (corners[3] - corners[1]) / cell**2
    assert geometry.cell_mask(mask).sum() == pytest.approx(area)


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"\(100, 50\) lies on a picture of \(50, 100\)"):
        BY_HAND.cell_mask(np.zeros((100, 50), bool))
    assert BY_HAND.cell_mask(np.ones((50, 100), int)) == pytest.approx(np.ones((2, 3)))


@pytest.mark.parametrize(
    ("width", "height", "low", "high", "words"),
    [
        (0, 10, 1, 10, "empty"),
        (201, 1, 1, 10**6, "too narrow"),
        (10, 10, 0, 10, "min_pixels"),
        (10, 10, 11, 10, "min_pixels"),
    ],
)
def test_no_grid_fits(width, height, low, high, words):
    with pytest.raises(ValueError, match=words):
        fit(width, height, patch=14, merge=2, min_pixels=low, max_pixels=high)
