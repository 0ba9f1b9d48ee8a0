"""Volumes and videos: which slices and frames, in which window, which way up; and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from qoqmed.errors import MediaError
from qoqmed.media import frames, masks, nifti
from qoqmed.media.window import evenly, robust, stretch
from qoqmed.types import Mask, Medium


def picture(root, name, frames_wanted=4, modality="image"):
    return frames.load(Medium(modality, name), root, frames_wanted)


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


# ---------------------------------------------------------------- volumes
def write_nifti(path, values, axes="RAS", dtype=np.int16):
    nibabel = pytest.importorskip("nibabel")
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for stored, letter in enumerate(axes):
        body = next(i for i, pair in enumerate(("RL", "AP", "SI")) if letter in pair)
        affine[body, stored] = 1 if letter in "RAS" else -1
    file = nibabel.Nifti1Image(values.astype(dtype), affine)
    assert nibabel.aff2axcodes(file.affine) == tuple(axes)
    nibabel.save(file, path)
    return path


@pytest.mark.parametrize("axes", ["RAS", "LPS", "LAS", "PSR", "SRA", "IPL", "ASL"])
def test_nifti_slices_are_axial_and_radiological(tmp_path, axes):
    """Against nibabel's own as_closest_canonical, which loads the whole volume."""
    nibabel = pytest.importorskip("nibabel")
    values = np.random.default_rng(1).integers(0, 1000, (5, 6, 7))
    path = write_nifti(tmp_path / "v.nii.gz", values, axes)
    canonical = np.asanyarray(nibabel.as_closest_canonical(nibabel.load(path)).dataobj)
    expected = np.stack([canonical[::-1, ::-1, z].T for z in range(canonical.shape[2])])
    assert (nifti.slices(path, range).values == expected).all()
    assert (nifti.slices(path, lambda total: [1, 3]).values == expected[[1, 3]]).all()


def test_a_volume_gives_evenly_spaced_slices_in_one_window(tmp_path):
    values = np.broadcast_to(np.arange(12) * 100, (8, 9, 12))
    write_nifti(tmp_path / "v.nii", values)
    slices = picture(tmp_path, "v.nii", 4, "volume")
    assert [shape.shape for shape in slices] == [(9, 8, 3)] * 4
    assert [int(one.mean()) for one in slices] == [0, 85, 170, 255]


@pytest.mark.parametrize(
    ("shape", "dtype", "fill", "said"),
    [
        ((4, 4, 4, 2), np.int16, 0, "time points"),
        ((4, 4), np.int16, 0, "shape"),
        ((4, 4, 4), np.float32, np.nan, "NaN"),
    ],
)
def test_volumes_that_are_refused(tmp_path, shape, dtype, fill, said):
    nibabel = pytest.importorskip("nibabel")
    values = np.full(shape, fill, dtype=dtype)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "v.nii.gz")
    with pytest.raises(MediaError, match=said):
        picture(tmp_path, "v.nii.gz", 4, "volume")


def test_a_nifti_header_of_absurd_size_is_refused(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.int16)
    header["dim"] = [3, 30_000, 30_000, 30_000, 1, 1, 1, 1]
    header["magic"] = b"n+1"
    header["vox_offset"] = 352
    (tmp_path / "v.nii").write_bytes(header.binaryblock + b"\0" * 100)
    with pytest.raises(MediaError, match="at most"):
        picture(tmp_path, "v.nii", 4, "volume")


def write_dicom(path, pixels, place=0, **tags):
    pydicom = pytest.importorskip("pydicom")
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, f"1.2.3.{place + 1}"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID, data.SeriesInstanceUID = CTImageStorage, f"1.2.3.{place + 1}", "1.2.4"
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation = 15, 1
    data.ImagePositionPatient, data.ImageOrientationPatient = [0, 0, place], [1, 0, 0, 0, 1, 0]
    data.PixelData = pixels.astype(np.int16).tobytes()
    for name, value in tags.items():
        setattr(data, name, value)
    data.save_as(path)
    return pydicom


def test_dicom_slices_are_sorted_by_place_and_rescaled(tmp_path):
    for number, place in enumerate([30, 10, 20]):
        pixels = np.full((4, 5), place + 1000)
        tags = {"RescaleSlope": 1, "RescaleIntercept": -1000, "WindowCenter": 20, "WindowWidth": 21}
        write_dicom(tmp_path / f"{number}.dcm", pixels, place, **tags)
    (tmp_path / "LICENSE").write_text("not an image")
    slices = picture(tmp_path.parent, tmp_path.name, 4, "volume")
    # low 20 - 0.5 - 10 = 9.5, high 29.5: 10 is just above black, 20 just over half, 30 white
    assert [int(one[0, 0, 0]) for one in slices] == [6, 134, 255]


def test_monochrome1_is_inverted_and_a_window_of_zero_ignored(tmp_path):
    pixels = np.arange(20).reshape(4, 5)
    write_dicom(tmp_path / "a.dcm", pixels, WindowCenter=0, WindowWidth=0)
    write_dicom(tmp_path / "b.dcm", pixels, PhotometricInterpretation="MONOCHROME1")
    (plain,), (inverted,) = picture(tmp_path, "a.dcm"), picture(tmp_path, "b.dcm")
    assert plain[0, 0, 0] == 0 and plain[-1, -1, 0] == 255
    assert (plain == 255 - inverted).all()


def test_dicom_folders_that_are_refused(tmp_path):
    pixels = np.ones((4, 4))
    for name in ("twice", "mixed", "turned", "huge", "short", "empty"):
        (tmp_path / name).mkdir()
    for number in range(2):
        write_dicom(tmp_path / f"twice/{number}.dcm", pixels, 0)
        write_dicom(tmp_path / f"mixed/{number}.dcm", pixels, number, SeriesInstanceUID=f"1.{number + 1}")
        turned = {"ImageOrientationPatient": [1, 0, 0, 0, 1 - number, -number]}
        write_dicom(tmp_path / f"turned/{number}.dcm", pixels, number, **turned)
    write_dicom(tmp_path / "huge/0.dcm", pixels, Rows=65_535, Columns=65_535)
    write_dicom(tmp_path / "short/0.dcm", pixels, PixelData=b"\0\0")
    for name, said in [
        ("twice", "one place"), ("mixed", "several series"), ("turned", "directions"), ("huge", "claims"),
        ("short", "cannot be read"), ("empty", "no DICOM"),
    ]:  # fmt: skip
        with pytest.raises(MediaError, match=said):
            picture(tmp_path, name, 4, "volume")


def test_a_volume_mask_is_the_union_in_the_view_of_the_volume(tmp_path):
    values = np.zeros((5, 6, 7), dtype=np.int16)
    values[0, 1, 2] = 4
    values[3, 4, 5] = 1
    write_nifti(tmp_path / "m.nii.gz", values, "LPS")
    union = masks.load(Mask("m.nii.gz"), tmp_path)
    shown = nifti.slices(tmp_path / "m.nii.gz", range).values
    assert union.shape == (6, 5) and (union == (shown > 0).any(0)).all() and union.sum() == 2
    assert masks.load(Mask(array=np.zeros((4, 4))), tmp_path).sum() == 0
    with pytest.raises(MediaError, match="shape"):
        masks.load(Mask(array=np.zeros(4)), tmp_path)


# ---------------------------------------------------------------- video
def write_video(path, count=20, side=32):
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = side
        stream.pix_fmt = "yuv420p"
        for i in range(count):
            grey = np.full((side, side, 3), 10 * i + 20, dtype=np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def test_a_video_gives_evenly_spaced_frames(tmp_path):
    write_video(tmp_path / "v.mp4")
    shown = picture(tmp_path, "v.mp4", 4, "video")
    assert [one.shape for one in shown] == [(32, 32, 3)] * 4
    assert [round((float(one.mean()) - 20) / 10) for one in shown] == [2, 7, 12, 17]
    assert len(picture(tmp_path, "v.mp4", 50, "video")) == 20


def test_bad_videos_are_refused(tmp_path):
    write_video(tmp_path / "v.mp4")
    whole = (tmp_path / "v.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXTINF:1,\nv.mp4\n#EXT-X-ENDLIST\n")
    Image.new("RGB", (4, 4)).save(tmp_path / "still.mp4", format="PNG")
    for name in ("cut.mp4", "list.m3u8", "still.mp4"):
        with pytest.raises(MediaError):
            picture(tmp_path, name, 4, "video")
