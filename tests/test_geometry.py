"""Golden source: transformers' own `smart_resize` (Qwen2-VL), and figures worked out by hand."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qoqmed.geometry import fit
from qoqmed.media import torchvision_ops

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


def test_paper_bound_by_hand():
    # 1024 x 768: 36.57 -> 37 and 27.43 -> 27 cells of 28 px are 783,216 px; shrink by sqrt(786432 / 524288) = 1.2247:
    # floor(1024 / 1.2247 / 28) = 29, floor(768 / 1.2247 / 28) = 22
    geometry = fit(1024, 768, patch=14, merge=2, min_pixels=65_536, max_pixels=524_288)
    assert geometry.grid == (22, 29)
    assert geometry.tokens == 638
    assert (geometry.resized_width, geometry.resized_height) == (812, 616)


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
