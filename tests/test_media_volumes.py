"""NIfTI volumes and windows: which slices, which way up, in which window; and what is refused."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_media import greys, load, write_nifti

from qoqmed.errors import MediaError
from qoqmed.media import frames, nifti, options
from qoqmed.media.options import Options
from qoqmed.media.window import PRESETS, Window, evenly, full, preset, robust, stretch
from qoqmed.types import Medium

nibabel = pytest.importorskip("nibabel")
AXES = ["RAS", "LPS", "LAS", "PSR", "SRA", "IPL", "ASL"]


# ---------------------------------------------------------------- windows and picks
def test_evenly_takes_the_middles_of_equal_parts():
    assert list(evenly(100, 4)) == [12, 37, 62, 87]
    assert list(evenly(4, 4)) == [0, 1, 2, 3]
    assert list(evenly(2, 4)) == [0, 1]
    assert list(evenly(0, 4)) == []


@given(st.integers(1, 5000), st.integers(1, 64))
def test_evenly_is_strictly_increasing_and_centred(total, count):
    picks = list(evenly(total, count))
    assert picks == sorted(set(picks)) and picks[0] >= 0 and picks[-1] < total
    assert len(picks) == min(total, count)


def test_a_flat_picture_is_black_and_a_sparse_one_is_not():
    flat = np.full((8, 8), 7.0)
    assert stretch(flat, robust(flat)).max() == 0
    sparse = np.zeros((100, 100))
    sparse[0, 0] = 5
    assert stretch(sparse, robust(sparse)).max() == 255


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.booleans())
def test_stretch_is_monotone_and_spans_the_window(low, width, sigmoid):
    values = np.linspace(low - width, low + 2 * width, 101)
    shown = stretch(values, Window(low, low + width, sigmoid)).astype(int)
    assert (np.diff(shown) >= 0).all() and abs(shown[50] - 127.5) <= 1
    if not sigmoid:
        assert shown[0] == 0 and shown[-1] == 255


def test_presets_span_level_and_width():
    assert preset("brain") == Window(0, 80) and preset("lung") == Window(-1350, 150)
    assert set(PRESETS) >= {
        "lung",
        "mediastinum",
        "soft_tissue",
        "abdomen",
        "liver",
        "bone",
        "brain",
        "subdural",
        "stroke",
    }


def test_a_stretch_by_blocks_is_a_stretch(monkeypatch):
    values = np.random.default_rng(3).normal(size=(7, 11, 3))
    whole = stretch(values, full(values))
    monkeypatch.setattr("qoqmed.media.window.BLOCK", 5)
    assert (stretch(values, full(values)) == whole).all() and whole.max() == 255


# ---------------------------------------------------------------- options
@pytest.mark.parametrize(
    ("modality", "given", "said"),
    [
        ("image", {"axis": "axial"}, "'image' has no option 'axis'"),
        ("volume", {"axes": "axial"}, "did you mean 'axis'"),
        ("volume", {"axis": "axiel"}, "did you mean 'axial'"),
        ("volume", {"axis": 2}, "option 'axis'"),
        ("volume", {"axis": ["axial"]}, "option 'axis'"),
        ("volume", {"window": "lungs"}, "did you mean 'lung'"),
        ("volume", {"window": [5, 5]}, "low, high"),
        ("volume", {"window": [0, float("nan")]}, "low, high"),
        ("volume", {"window": [0, 10**400]}, "low, high"),
        ("volume", {"window": [0, "1"]}, "low, high"),
        ("volume", {"window": [0, 1, 2]}, "low, high"),
        ("volume", {"window": None}, "low, high"),
        ("volume", {"frames": 0}, "from 1"),
        ("volume", {"frames": 2.0}, "whole number"),
        ("volume", {"frames": True}, "whole number"),
        ("volume", {"time": -1}, "from 0"),
        ("video", {"window": "robust"}, "has no option 'window'"),
        ("video", {"start_s": -1}, "seconds from 0"),
        ("video", {"start_s": "1"}, "seconds from 0"),
        ("video", {"start_s": 2, "stop_s": 2}, "is empty"),
    ],
)
def test_options_that_are_refused(modality, given, said):
    with pytest.raises(MediaError, match=said):
        options.read(modality, given)
    with pytest.raises(MediaError, match=said):
        frames.load(Medium(modality, "x", options=given), ".", 4)


def test_options_are_for_files():
    stack = np.zeros((10, 4, 4, 3), dtype=np.uint8)
    assert len(frames.load(Medium("volume", array=stack, options={"frames": 3}), ".", 4)) == 3
    with pytest.raises(MediaError, match="options are for files"):
        frames.load(Medium("volume", array=stack, options={"axis": "axial"}), ".", 4)


# ---------------------------------------------------------------- planes
def canonical(path):
    """nibabel's own canonical volume [x, y, z], rising to the right, the front and the head."""
    return np.asanyarray(nibabel.as_closest_canonical(nibabel.load(path)).dataobj)


VIEWS = {  # by hand from the canonical volume: rows downwards, columns to the right
    "axial": lambda volume, z: volume[::-1, ::-1, z].T,
    "coronal": lambda volume, y: volume[::-1, y, ::-1].T,
    "sagittal": lambda volume, x: volume[x, ::-1, ::-1].T,
}


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize(("axis", "across"), [("axial", 2), ("coronal", 1), ("sagittal", 0)])
def test_planes_are_radiological_whatever_the_stored_axes(tmp_path, axes, axis, across):
    path = write_nifti(tmp_path / "v.nii.gz", np.random.default_rng(1).integers(0, 1000, (5, 6, 7)), axes)
    volume = canonical(path)
    expected = np.stack([VIEWS[axis](volume, place) for place in range(volume.shape[across])])
    assert (nifti.slices(path, range, Options(axis=axis)).values == expected).all()
    some = nifti.slices(path, lambda total: [3, 1], Options(axis=axis)).values
    assert (some == expected[[3, 1]]).all()


@pytest.mark.parametrize(
    ("axes", "slice_axis", "axis"), [("RAS", None, "axial"), ("PSR", None, "sagittal"), ("PSR", 0, "coronal")]
)
def test_acquired_is_across_the_files_own_slice_axis(tmp_path, axes, slice_axis, axis):
    path = write_nifti(tmp_path / "v.nii", np.arange(5 * 6 * 7).reshape(5, 6, 7), axes, slice_axis=slice_axis)
    acquired = nifti.slices(path, range, Options(axis="acquired")).values
    assert (acquired == nifti.slices(path, range, Options(axis=axis)).values).all()
    assert nifti.plane(path, Options(axis="acquired")) == axis


def test_oblique_volumes_are_cut_along_their_own_axes(tmp_path):
    values = np.random.default_rng(4).integers(0, 1000, (5, 6, 7)).astype(np.int16)
    turn, c, s = np.eye(4), np.cos(0.4), np.sin(0.4)
    turn[1:3, 1:3] = [[c, -s], [s, c]]
    nibabel.save(nibabel.Nifti1Image(values, turn @ np.diag([-1, 1, 1, 1])), tmp_path / "v.nii")
    expected = np.stack([values[:, ::-1, z].T for z in range(7)])
    assert (nifti.slices(tmp_path / "v.nii", range).values == expected).all()


def test_a_volume_gives_evenly_spaced_slices_in_one_window(tmp_path):
    write_nifti(tmp_path / "v.nii", np.broadcast_to(np.arange(12) * 100, (8, 9, 12)))
    slices = load(tmp_path, "v.nii")
    assert [one.shape for one in slices] == [(9, 8, 3)] * 4 and greys(slices) == [0, 85, 170, 255]
    assert greys(load(tmp_path, "v.nii", frames=2)) == [0, 255] and len(load(tmp_path, "v.nii", frames=12)) == 12


def test_pixels_become_square(tmp_path):
    values = np.random.default_rng(5).integers(0, 255, (8, 9, 5))
    write_nifti(tmp_path / "v.nii", values, spacing_mm=(1, 1.005, 3))
    assert load(tmp_path, "v.nii", axis="axial")[0].shape == (9, 8, 3)  # within 1%
    assert load(tmp_path, "v.nii", axis="coronal")[0].shape == (15, 8, 3)
    write_nifti(tmp_path / "thin.nii", values, spacing_mm=(1e-5, 1, 1e5))
    with pytest.raises(MediaError, match="voxels of"):
        load(tmp_path, "thin.nii", axis="coronal")


# ---------------------------------------------------------------- time, windows
def test_one_time_point_is_chosen(tmp_path):
    values = np.stack([np.full((4, 4, 4), 10 * time) for time in range(3)], axis=-1)
    nibabel.save(nibabel.Nifti1Image(values.astype(np.int16), np.eye(4)), tmp_path / "v.nii.gz")
    assert (nifti.slices(tmp_path / "v.nii.gz", range, Options(time=2)).values == 20).all()
    for wish, said in [({}, "3 time points(.|\n)*option 'time'"), ({"time": 3}, "'time' from 0 to 2")]:
        with pytest.raises(MediaError, match=said):
            load(tmp_path, "v.nii.gz", **wish)
    write_nifti(tmp_path / "one.nii", values[..., 0])
    assert load(tmp_path, "one.nii", time=0)
    with pytest.raises(MediaError, match="from 0 to 0"):
        load(tmp_path, "one.nii", time=1)


def test_windows_by_name(tmp_path):
    values = np.broadcast_to(np.linspace(-1000, 1000, 101), (4, 4, 101)).round()
    write_nifti(tmp_path / "ct.nii", values)
    assert greys(load(tmp_path, "ct.nii", window="brain", frames=101))[50:55] == [0, 64, 128, 191, 255]
    assert load(tmp_path, "ct.nii", window=[0, 80])[2].max() == load(tmp_path, "ct.nii", window="brain")[2].max()
    assert greys(load(tmp_path, "ct.nii", window="full", frames=101))[::50] == [0, 128, 255]
    with pytest.raises(MediaError, match="gives no window"):
        load(tmp_path, "ct.nii", window="header")
    write_nifti(tmp_path / "positive.nii", values + 1000)
    write_nifti(tmp_path / "eight.nii", values / 10, dtype=np.int8)
    for name, said in [("positive.nii", "no value below 0"), ("eight.nii", "8 bits")]:
        assert load(tmp_path, name, window=[0, 80])
        with pytest.raises(MediaError, match=f"'brain' does not apply: .*{said}"):
            load(tmp_path, name, window="brain")


# ---------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("shape", "dtype", "fill", "said"),
    [
        ((4, 4, 4, 2), np.int16, 0, "time points"),
        ((4, 4, 4, 1, 3), np.int16, 0, "channels"),
        ((4, 4), np.int16, 0, "shape"),
        ((4, 4, 4), np.float32, np.nan, "NaN"),
        ((4, 4, 4), np.float64, np.inf, "infinite"),
        ((4, 4, 4), np.float64, 1e300, "beyond 1e\\+30"),
        ((4, 4, 4), np.complex64, 0, "of type complex64"),
    ],
)
def test_volumes_that_are_refused(tmp_path, shape, dtype, fill, said):
    nibabel.save(nibabel.Nifti1Image(np.full(shape, fill, dtype=dtype), np.eye(4)), tmp_path / "v.nii.gz")
    with pytest.raises(MediaError, match=said):
        load(tmp_path, "v.nii.gz")


def header(**changes):
    """A NIfTI-1 header of 4 x 4 x 4 int16 voxels."""
    head = nibabel.Nifti1Header()
    head.set_data_dtype(np.int16)
    head.set_data_shape((4, 4, 4))
    head.set_sform(np.eye(4), 1)
    head["magic"], head["vox_offset"] = b"n+1", 352
    for name, value in changes.items():
        head[name] = value
    return head.binaryblock + b"\0" * 4


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dim": [3, 30_000, 30_000, 30_000, 1, 1, 1, 1]}, "at most"),
        ({"dim": [3, -4, 4, 4, 1, 1, 1, 1]}, "shape|cannot be read"),
        ({"dim": [7, 4, 4, 4, 1, 1, 1, 1000]}, "channels"),
        ({"vox_offset": 1e12}, "at byte 1e\\+12"),
        ({"vox_offset": np.nan}, "at byte nan"),
        ({"datatype": 9999}, "cannot be read"),
        ({"srow_x": [0, 0, 0, 0]}, "does not say"),
        ({"srow_x": [np.nan, 0, 0, 0]}, "does not say"),
        ({"sizeof_hdr": 7}, "NIfTI header"),
    ],
)
def test_absurd_headers_are_refused(tmp_path, changes, said):
    (tmp_path / "v.nii").write_bytes(header(**changes) + b"\1" * 128)
    with pytest.raises(MediaError, match=said):
        load(tmp_path, "v.nii")


def test_a_compressed_stream_is_never_unpacked_beyond_the_headers_claim(tmp_path):
    """The tail is 64 MiB of zeros and then garbage, which unpacking would meet."""
    packed = gzip.compress(header() + b"\1" * 128 + b"\0" * 2**26)
    (tmp_path / "v.nii.gz").write_bytes(packed[: len(packed) // 2] + b"garbage" * 100)
    assert len(load(tmp_path, "v.nii.gz")) == 4
    extension = b"\1\0\0\0" + np.array([2**31 - 16, 6], dtype="<i4").tobytes()  # claims two gigabytes
    (tmp_path / "e.nii.gz").write_bytes(gzip.compress(header(vox_offset=2**31)[:-4] + extension + b"\0" * 2**24))
    with pytest.raises(MediaError, match="at most 16777216"):
        load(tmp_path, "e.nii.gz")


@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz"])
@pytest.mark.parametrize("kept", [0, 10, 200, 360, -1])
def test_truncated_volumes_are_refused(tmp_path, name, kept):
    write_nifti(tmp_path / name, np.random.default_rng(6).integers(0, 1000, (6, 6, 6)))
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[:kept] if name.endswith("i") or kept > 0 else whole[: len(whole) // 2])
    with pytest.raises(MediaError, match="cannot be read|NIfTI header"):
        load(tmp_path, name)


def test_wrong_kinds_are_refused(tmp_path):
    write_nifti(tmp_path / "x.nii", np.zeros((4, 4, 4)))
    (tmp_path / "x.img").write_bytes((tmp_path / "x.nii").read_bytes())
    (tmp_path / "x.nii.gz").write_bytes((tmp_path / "x.nii").read_bytes())
    (tmp_path / "folder.nii").mkdir()
    for name in ("x.img", "x.nii.gz", "folder.nii"):
        with pytest.raises(MediaError, match="no known kind|cannot be read"):
            load(tmp_path, name)
