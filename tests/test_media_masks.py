"""Masks: what counts as inside, in which plane, and at which size."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_media import load, write_nifti

from qoqmed.errors import MediaError
from qoqmed.media import masks, nifti
from qoqmed.media.options import Options
from qoqmed.types import Box, Mask, Medium


def test_masks_of_pictures(tmp_path):
    inside = np.zeros((6, 8), dtype=bool)
    inside[1:3, 2:5] = True
    for name, pixels in {
        "binary.png": inside * np.uint8(255),
        "classes.png": inside * np.uint8(3),
        "colour.png": np.repeat((inside * np.uint8(9))[..., None], 3, axis=-1),
        "wide.png": inside * np.uint16(300),
        "alpha.png": np.dstack([inside * np.uint8(9)] * 3 + [np.full_like(inside, 255, dtype=np.uint8)]),
        "float.tiff": inside * np.float32(0.5),
    }.items():
        Image.fromarray(pixels).save(tmp_path / name)
        assert (masks.load(Mask(name), tmp_path) == inside).all(), name
    Image.fromarray(inside * np.uint8(1)).convert("P").save(tmp_path / "palette.png")
    assert (masks.load(Mask("palette.png"), tmp_path) == inside).all()
    Image.fromarray(inside * np.uint8(255)).save(tmp_path / "x.jpg")
    Image.fromarray(np.where(inside, np.nan, np.float32(0)).astype(np.float32)).save(tmp_path / "nan.tiff")
    os.mkfifo(tmp_path / "pipe.png")
    for name in ("x.jpg", "nan.tiff", "pipe.png", "gone.png", "../x.png"):
        with pytest.raises(MediaError):
            masks.load(Mask(name), tmp_path)


def test_masks_in_memory():
    assert masks.load(Mask(array=np.zeros((4, 4))), ".").sum() == 0
    assert masks.load(Mask(array=np.eye(3)[None].repeat(2, 0)), ".").tolist() == np.eye(3, dtype=bool).tolist()
    for array, said in [(np.zeros(4), "shape"), (np.full((2, 2), np.nan), "NaN")]:
        with pytest.raises(MediaError, match=said):
            masks.load(Mask(array=array), ".")


def test_boxes_of_masks_are_tight_and_normalised():
    inside = np.zeros((4, 10), dtype=bool)
    inside[1:3, 2:5] = True
    assert masks.boxes_of_mask(inside, "lesion", 1) == (Box(0.2, 0.25, 0.5, 0.75, "lesion", 1),)
    assert masks.boxes_of_mask(np.zeros((4, 4), dtype=bool)) == ()


# ---------------------------------------------------------------- volumes
@pytest.mark.parametrize("axes", ["LPS", "RAS", "PSR", "ASL"])
@pytest.mark.parametrize("axis", [None, "axial", "coronal", "sagittal", "acquired"])
def test_a_volume_mask_is_the_union_in_the_plane_of_the_volume(tmp_path, axes, axis):
    values = np.zeros((5, 6, 7), dtype=np.int16)
    values[0, 1, 2], values[3, 4, 5] = 4, 1
    write_nifti(tmp_path / "m.nii.gz", values, "LPS", spacing_mm=(1, 1, 2))
    write_nifti(tmp_path / "v.nii.gz", np.ones((5, 6, 7)), axes)  # another way to store the same body
    options = {} if axis is None else {"axis": axis}
    inside = masks.load(Mask("m.nii.gz"), tmp_path, Medium("volume", "v.nii.gz", options=options))
    plane = nifti.plane(tmp_path / "v.nii.gz", Options(axis=axis))
    shown = nifti.slices(tmp_path / "m.nii.gz", range, Options(axis=plane)).values
    assert inside.sum() == 2 * (1 if plane == "axial" else 2)  # pixels of 1 x 2 mm become two
    assert inside.any(0).sum() == 2 and (shown > 0).any(0).sum() == 2
    if plane == "axial":
        assert (inside == (shown > 0).any(0)).all() and (inside == masks.load(Mask("m.nii.gz"), tmp_path)).all()


def test_a_mask_has_the_size_of_its_slices(tmp_path):
    values = np.random.default_rng(0).integers(0, 2, (5, 6, 7))
    write_nifti(tmp_path / "v.nii", values, spacing_mm=(1, 1.7, 2.9))
    for axis in ("axial", "coronal", "sagittal"):
        medium = Medium("volume", "v.nii", options={"axis": axis})
        assert masks.load(Mask("v.nii"), tmp_path, medium).shape == load(tmp_path, "v.nii", axis=axis)[0].shape[:2]


def test_masks_and_time_points(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    values = np.zeros((4, 4, 4, 2), dtype=np.uint8)
    values[1, 1, 1, 0] = values[2, 2, 2, 1] = 1
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "m.nii")
    nibabel.save(nibabel.Nifti1Image(values[..., 0], np.eye(4)), tmp_path / "still.nii")
    medium = Medium("volume", "m.nii", options={"time": 1})
    assert np.argwhere(masks.load(Mask("m.nii"), tmp_path, medium)).tolist() == [[1, 1]]  # (2, 2) upside down
    assert np.argwhere(masks.load(Mask("still.nii"), tmp_path, medium)).tolist() == [[2, 2]]
    with pytest.raises(MediaError, match="2 time points"):
        masks.load(Mask("m.nii"), tmp_path)


def test_nan_in_a_volume_mask_is_refused(tmp_path):
    write_nifti(tmp_path / "m.nii", np.full((4, 4, 4), np.nan), dtype=np.float32)
    with pytest.raises(MediaError, match="NaN"):
        masks.load(Mask("m.nii"), tmp_path)


# ---------------------------------------------------------------- size
@given(st.integers(16, 300), st.integers(16, 300), st.floats(0.2, 4))
def test_a_mask_of_the_same_aspect_is_resized(width, height, scale):
    inside = np.zeros((max(1, round(height * scale)), max(1, round(width * scale))), dtype=bool)
    inside[: inside.shape[0] // 2, : inside.shape[1] // 2] = True
    fitted = masks.fit(inside, width, height)
    assert fitted.shape == (height, width) and fitted.dtype == bool
    assert abs(fitted.mean() - inside.mean()) < 0.13 and (not inside.any() or fitted[0, 0])


def test_nearest_neighbour_keeps_pixels_whole():
    inside = np.array([[True, False], [False, True]])
    assert (masks.fit(inside, 4, 4) == np.kron(inside, np.ones((2, 2), dtype=bool))).all()
    assert masks.fit(inside, 2, 2) is inside


@pytest.mark.parametrize("shape", [(100, 200), (200, 100), (98, 100), (50, 53), (512, 400)])
def test_a_mask_of_another_aspect_is_refused_naming_both_sizes(shape):
    with pytest.raises(MediaError, match=f"{shape[1]} x {shape[0]} pixels and its picture 100 x 100"):
        masks.fit(np.ones(shape, dtype=bool), 100, 100, "m.png")
