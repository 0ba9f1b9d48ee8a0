"""DICOM: order, LUTs, windows, planes, encodings; and what is refused. Golden values: pydicom's own functions where a
test says so, else by hand from the standard's formulas."""

from __future__ import annotations

import os
import shutil
import zlib

import numpy as np
import pytest
from tiny_media import greys, load, write_dicom, write_nifti

from qoqmed.errors import MediaError
from qoqmed.media import dicom, masks
from qoqmed.media.options import Options
from qoqmed.types import Mask, Medium

pydicom = pytest.importorskip("pydicom")
HU = {"Modality": "CT", "RescaleSlope": 1, "RescaleIntercept": -1000}


def item(**tags):
    data = pydicom.Dataset()
    for name, value in tags.items():
        setattr(data, name, value)
    return data


def intensities(path, **options):
    return dicom.slices(path, range, Options(**options)).values


# ---------------------------------------------------------------- order
def test_slices_are_sorted_by_place_and_rescaled(tmp_path):
    for number, place in enumerate([30, 10, 20]):
        write_dicom(
            tmp_path / f"{number}.dcm", np.full((4, 5), place + 1000), place, **HU, WindowCenter=20, WindowWidth=21
        )
    (tmp_path / "LICENSE").write_text("not an image")
    os.mkfifo(tmp_path / "pipe.dcm")  # must not be opened: reading it would hang
    # low 20 - 0.5 - 10 = 9.5, high 29.5: 10 is just above black, 20 just over half, 30 white
    assert greys(load(tmp_path.parent, tmp_path.name)) == [6, 134, 255]


def test_folders_that_are_refused(tmp_path):
    pixels = np.ones((4, 4))
    for name in ("twice", "mixed", "turned", "huge", "short", "empty", "blank", "listed"):
        (tmp_path / name).mkdir()
    for number in range(2):
        write_dicom(tmp_path / f"twice/{number}.dcm", pixels, 0)
        write_dicom(tmp_path / f"mixed/{number}.dcm", pixels, number, SeriesInstanceUID=f"1.{number + 1}")
        turned = {"ImageOrientationPatient": [1, 0, 0, 0, 1 - number, -number]}
        write_dicom(tmp_path / f"turned/{number}.dcm", pixels, number, **turned)
        write_dicom(tmp_path / f"blank/{number}.dcm", pixels, number)
    write_dicom(tmp_path / "huge/0.dcm", pixels, Rows=65_535, Columns=65_535)
    write_dicom(tmp_path / "short/0.dcm", pixels, PixelData=b"\0\0")
    (tmp_path / "blank/2.dcm").write_bytes(b"")  # a slice that was never copied: not to be passed over
    (tmp_path / "listed/0.txt").write_text("no image")
    for name, said in [
        ("twice", "one place"), ("mixed", "several series"), ("turned", "directions"), ("huge", "claims"),
        ("short", "cannot be read"), ("empty", "no DICOM"), ("blank", "no DICOM mark"), ("listed", "no DICOM file"),
    ]:  # fmt: skip
        with pytest.raises(MediaError, match=said):
            load(tmp_path, name)


# ---------------------------------------------------------------- look-up tables
def lut(descriptor, entries, vr="US"):
    data = pydicom.Dataset()
    data.add_new("LUTDescriptor", "SS" if descriptor[1] < 0 else "US", descriptor)
    data.add_new("LUTData", vr, entries)
    return data


def test_a_modality_lut_sequence_is_applied_as_by_pydicom(tmp_path):
    table = lut([6, 10, 16], [0, 100, 400, 900, 1600, 2500])
    pixels = np.arange(20).reshape(4, 5)
    data = write_dicom(tmp_path / "x.dcm", pixels, ModalityLUTSequence=[table], PixelRepresentation=0)
    expected = pydicom.pixels.apply_modality_lut(pixels.astype(np.uint16), data)
    assert (intensities(tmp_path / "x.dcm")[0] == expected).all() and expected.max() == 2500


@pytest.mark.parametrize("window", ["auto", "header"])
def test_a_voi_lut_sequence_goes_before_the_window(tmp_path, window):
    table = lut([4, -998, 12], [0, 1365, 2730, 4095])  # maps -998 .. -995 HU
    write_dicom(
        tmp_path / "x.dcm", np.arange(8).reshape(2, 4), **HU, VOILUTSequence=[table], WindowCenter=0, WindowWidth=9
    )
    (picture,) = load(tmp_path, "x.dcm", "image", window=window)
    assert picture[..., 0].tolist() == [[0, 0, 0, 85], [170, 255, 255, 255]]


def test_a_lut_in_bytes_is_read_in_the_order_of_the_file(tmp_path):
    table = lut([3, 0, 16], np.array([0, 21845, 65535], dtype="<u2").tobytes(), "OW")
    write_dicom(tmp_path / "x.dcm", np.arange(3).reshape(1, 3), VOILUTSequence=[table])
    assert load(tmp_path, "x.dcm", "image")[0][0, :, 0].tolist() == [0, 85, 255]


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_window_functions_are_pydicoms(tmp_path, function):
    pixels = np.arange(-60, 60).reshape(10, 12)
    tags = {"WindowCenter": [5, 400], "WindowWidth": [40, 2000], "VOILUTFunction": function}
    data = write_dicom(tmp_path / "x.dcm", pixels, **tags, BitsStored=8, HighBit=7, PixelRepresentation=1)
    (picture,) = load(tmp_path, "x.dcm", "image")
    expected = pydicom.pixels.apply_windowing(pixels.astype(np.int16), data, index=0)  # -128 .. 127
    assert abs(picture[..., 0] - (expected + 128.0)).max() <= 0.51
    assert picture.min() <= 1 and picture.max() >= 254


def test_windows_without_width_are_none_and_monochrome1_is_inverted(tmp_path):
    pixels = np.arange(20).reshape(4, 5)
    write_dicom(tmp_path / "a.dcm", pixels, WindowCenter=0, WindowWidth=0)
    write_dicom(tmp_path / "b.dcm", pixels, PhotometricInterpretation="MONOCHROME1")
    (plain,), (inverted,) = load(tmp_path, "a.dcm", "image"), load(tmp_path, "b.dcm", "image")
    assert plain[0, 0, 0] == 0 and plain[-1, -1, 0] == 255
    assert (plain == 255 - inverted).all()
    with pytest.raises(MediaError, match="gives no window"):
        load(tmp_path, "a.dcm", "image", window="header")


def test_colour_of_more_than_eight_bits_and_palettes(tmp_path):
    rgb = np.array([[[0, 2048, 4095], [4095, 0, 16]]])
    tags = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PixelRepresentation": 0}
    write_dicom(tmp_path / "rgb.dcm", rgb, **tags, BitsStored=12, HighBit=11)
    assert load(tmp_path, "rgb.dcm", "image")[0].tolist() == [[[0, 128, 255], [255, 0, 1]]]
    palette = {f"{name}PaletteColorLookupTableDescriptor": [3, 0, 16] for name in ("Red", "Green", "Blue")}
    for number, name in enumerate(("Red", "Green", "Blue")):
        table = np.array([0, number * 256 * 100, 255 * 256], dtype=np.uint16)
        palette[f"{name}PaletteColorLookupTableData"] = table.tobytes()
    palette |= {"PhotometricInterpretation": "PALETTE COLOR", "PixelRepresentation": 0}
    write_dicom(tmp_path / "p.dcm", np.array([[0, 1, 2]]), **palette)
    assert load(tmp_path, "p.dcm", "image")[0].tolist() == [[[0, 0, 0], [0, 100, 200], [255, 255, 255]]]
    with pytest.raises(MediaError, match="in colour"):
        load(tmp_path, "p.dcm", "image", window="robust")


# ---------------------------------------------------------------- windows by name
def test_presets_are_for_hounsfield_units(tmp_path):
    pixels = np.array([[0, 1000, 1040, 1080, 2000]])  # -1000, 0, 40, 80, 1000 HU
    write_dicom(tmp_path / "ct.dcm", pixels, **HU, WindowCenter=5000, WindowWidth=10)

    def shown(window):
        return load(tmp_path, "ct.dcm", "image", window=window)[0][0, :, 0].tolist()

    assert shown("brain") == [0, 0, 128, 255, 255]  # level 40, width 80
    assert shown("lung") == [round(255 * 350 / 1500), 255 * 1350 // 1500 + 1, round(255 * 1390 / 1500), 243, 255]
    assert shown([0, 80]) == shown("brain") and shown("full") == [0, 128, 133, 138, 255]
    assert shown("auto") == shown("header") == [0] * 5 != shown("robust")
    for name, tags in {
        "mr.dcm": {"Modality": "MR"},
        "raw.dcm": {"Modality": "CT"},
        "density.dcm": {**HU, "RescaleType": "MGML"},
        "eight.dcm": {**HU, "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "PixelRepresentation": 0},
    }.items():
        write_dicom(tmp_path / name, pixels % 200, **tags)
        with pytest.raises(MediaError, match="'lung' does not apply"):
            load(tmp_path, name, "image", window="lung")


# ---------------------------------------------------------------- several frames
def enhanced(path, **tags):
    """Frame i lies at 20 - 10 * i, with an intercept of its own; the window is shared."""
    groups = [
        item(
            PlanePositionSequence=[item(ImagePositionPatient=[0, 0, 20 - 10 * i])],
            PixelValueTransformationSequence=[item(RescaleSlope=2, RescaleIntercept=100 * i, RescaleType="US")],
        )
        for i in range(3)
    ]
    shared = item(
        PlaneOrientationSequence=[item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
        PixelMeasuresSequence=[item(PixelSpacing=[1, 1])],
        FrameVOILUTSequence=[item(WindowCenter=100, WindowWidth=401)],
    )
    sequences = {"PerFrameFunctionalGroupsSequence": groups, "SharedFunctionalGroupsSequence": [shared]}
    write_dicom(path, np.stack([np.full((4, 5), i) for i in range(3)]), **sequences, **tags)


def test_functional_groups_give_each_frame_its_place_and_scale(tmp_path):
    enhanced(tmp_path / "x.dcm")
    stack = dicom.slices(tmp_path / "x.dcm", range)
    assert stack.values[:, 0, 0].tolist() == [204, 102, 0]  # from place 0 up: frames 2, 1, 0
    assert (stack.window.low, stack.window.high) == (-100.5, 299.5)
    assert load(tmp_path, "x.dcm", axis="coronal")[0].shape == (30, 5, 3)  # 3 slices of 10 mm
    with pytest.raises(MediaError, match="several frames"):
        load(tmp_path, "x.dcm", "image")


def test_frames_without_places_stay_as_stored(tmp_path):
    write_dicom(tmp_path / "x.dcm", np.arange(3)[:, None, None].repeat(4, 1).repeat(4, 2))
    assert intensities(tmp_path / "x.dcm")[:, 0, 0].tolist() == [0, 1, 2]


# ---------------------------------------------------------------- planes
def series(folder, values, spacing_mm=(1, 1, 1), **tags):
    """values: [x, y, z] as stored in LPS, as slices across z."""
    folder.mkdir(exist_ok=True)
    for place in range(values.shape[2]):
        where = {"ImagePositionPatient": [0, 0, place * spacing_mm[2]], "PixelSpacing": [spacing_mm[1], spacing_mm[0]]}
        write_dicom(folder / f"{99 - place}.dcm", values[:, :, place].T, place, **{**where, **tags})


@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal"])
def test_planes_are_those_of_the_same_volume_in_nifti(tmp_path, axis):
    """NIfTI in turn is held against nibabel's as_closest_canonical."""
    values = np.random.default_rng(2).integers(-1000, 1000, (5, 6, 7))
    spacing = (1, 2, 3)
    series(tmp_path / "series", values, spacing)
    write_nifti(tmp_path / "v.nii", values, "LPS", spacing_mm=spacing)
    ours, theirs = load(tmp_path, "series", axis=axis, window="full"), load(tmp_path, "v.nii", axis=axis, window="full")
    assert len(ours) == 4 and all((one == other).all() for one, other in zip(ours, theirs, strict=True))


def test_views_turn_acquired_slices_but_axis_acquired_does_not(tmp_path):
    values = np.arange(4 * 5 * 3).reshape(4, 5, 3)
    series(tmp_path / "s", values, ImageOrientationPatient=[-1, 0, 0, 0, -1, 0])  # a patient on the belly
    acquired, axial = intensities(tmp_path / "s", axis="acquired"), intensities(tmp_path / "s", axis="axial")
    assert (acquired == values.transpose(2, 1, 0)).all() and (axial == acquired[:, ::-1, ::-1]).all()


def test_a_tilted_gantry_is_measured_and_refuses_a_cut(tmp_path):
    tilt = np.radians(12)
    tags = {"ImageOrientationPatient": [1, 0, 0, 0, float(np.cos(tilt)), float(-np.sin(tilt))]}
    series(tmp_path / "s", np.ones((4, 4, 3)), (1, 1, 5), **tags)
    assert len(load(tmp_path, "s")) == len(load(tmp_path, "s", axis="axial")) == 3
    for axis in ("coronal", "sagittal"):
        with pytest.raises(MediaError, match=r"sheared by 12\.0 degrees"):
            load(tmp_path, "s", axis=axis)


def test_cuts_that_are_refused(tmp_path):
    pixels = np.ones((4, 4))
    for name in ("uneven", "colour", "nowhere"):
        (tmp_path / name).mkdir()
    for number, place in enumerate((0, 10, 30)):
        write_dicom(tmp_path / f"uneven/{number}.dcm", pixels, place, PixelSpacing=[1, 1])
        rgb = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PixelRepresentation": 0}
        write_dicom(tmp_path / f"colour/{number}.dcm", np.ones((4, 4, 3)), place, PixelSpacing=[1, 1], **rgb)
        write_dicom(tmp_path / f"nowhere/{number}.dcm", pixels, place, ImagePositionPatient=None)
    write_dicom(tmp_path / "lone.dcm", pixels, PixelSpacing=[1, 1])
    for name, said in [
        ("uneven", "gaps between slices differ"), ("colour", "in colour"), ("nowhere", "where its slices lie"),
        ("lone.dcm", "needs several slices"),
    ]:  # fmt: skip
        assert load(tmp_path, name), name
        with pytest.raises(MediaError, match=said):
            load(tmp_path, name, axis="sagittal")
    with pytest.raises(MediaError, match="'time' is for NIfTI"):
        load(tmp_path, "uneven", time=0)


def test_a_nifti_mask_follows_the_plane_in_which_its_series_is_shown(tmp_path):
    """A sagittal series: columns to the back, rows to the feet, slices from the right to the left."""
    values = np.zeros((3, 5, 4))
    values[1, 3, 0] = 1
    write_nifti(tmp_path / "m.nii", values, "LPS")
    (tmp_path / "s").mkdir()
    for x in range(3):
        where = {"ImageOrientationPatient": [0, 1, 0, 0, 0, -1], "ImagePositionPatient": [x, 0, 3]}
        write_dicom(tmp_path / f"s/{x}.dcm", values[x, :, ::-1].T, x, **where, PixelSpacing=[1, 1])
    inside = masks.load(Mask("m.nii"), tmp_path, Medium("volume", "s"))
    assert (inside == (intensities(tmp_path / "s") > 0).any(0)).all() and inside.sum() == 1
    axial = masks.load(Mask("m.nii"), tmp_path, Medium("volume", "s", options={"axis": "axial"}))
    assert axial.shape == (5, 3) and (axial == (intensities(tmp_path / "s", axis="axial") > 0).any(0)).all()
    series(tmp_path / "belly", np.ones((5, 5, 3)), ImageOrientationPatient=[-1, 0, 0, 0, -1, 0])
    with pytest.raises(MediaError, match=r"another way up(.|\n)*axis: axial"):
        masks.load(Mask("m.nii"), tmp_path, Medium("volume", "belly"))


# ---------------------------------------------------------------- encodings
def bare(path, pixels, implicit=True, **tags):
    data = write_dicom(path, pixels, **tags)
    data.preamble, data.file_meta = None, pydicom.dataset.FileMetaDataset()
    data.save_as(path, implicit_vr=implicit, little_endian=True, enforce_file_format=False)
    assert path.read_bytes()[:2] == b"\x08\0"


@pytest.mark.parametrize("implicit", [True, False])
def test_a_bare_data_set_of_an_image_is_read(tmp_path, implicit):
    pixels = np.arange(20).reshape(4, 5)
    write_dicom(tmp_path / "whole.dcm", pixels)
    bare(tmp_path / "bare.dcm", pixels, implicit)
    assert (intensities(tmp_path / "bare.dcm") == pixels).all()
    shutil.copy(tmp_path / "bare.dcm", tmp_path / "bare.png")
    with pytest.raises(MediaError, match="cannot identify"):
        load(tmp_path, "bare.png", "image")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda whole: b" " + whole, "no DICOM mark"),
        (lambda whole: whole[:100], "no DICOM mark"),
        (lambda whole: whole[:-1], "cannot be read"),
        (lambda whole: b"\xff\xd8\xff\xe0JFIF" * 50, "no DICOM mark"),
        (lambda whole: b"", "no DICOM mark"),
    ],
)
def test_bare_data_sets_that_are_refused(tmp_path, change, said):
    bare(tmp_path / "x.dcm", np.ones((4, 5)))
    (tmp_path / "x.dcm").write_bytes(change((tmp_path / "x.dcm").read_bytes()))
    with pytest.raises(MediaError, match=said):
        load(tmp_path, "x.dcm", "image")


@pytest.mark.parametrize(
    ("syntax", "package"),
    [("1.2.840.10008.1.2.4.80", "pylibjpeg-libjpeg"), ("1.2.840.10008.1.2.4.51", "pylibjpeg-libjpeg"),
     ("1.2.840.10008.1.2.4.57", "pylibjpeg-libjpeg"), ("1.2.840.10008.1.2.4.201", "pylibjpeg-openjpeg")],
)  # fmt: skip
def test_a_missing_decoder_says_what_to_install(tmp_path, syntax, package):
    from pydicom.encaps import encapsulate
    from pydicom.pixels import get_decoder

    if set(get_decoder(syntax).available_plugins) - {"pillow"}:
        assert package  # somebody installed it
        return
    data = write_dicom(tmp_path / "x.dcm", np.ones((4, 4)), BitsStored=12, HighBit=11)
    data.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    data.PixelData = encapsulate([b"\xff\xd8\xff\xd9"])
    data["PixelData"].is_undefined_length = True
    data.save_as(tmp_path / "x.dcm")
    with pytest.raises(MediaError, match=rf"no decoder of 12-bit(.|\n)*pip install pylibjpeg {package}"):
        load(tmp_path, "x.dcm", "image")


def deflated(path, tail=b""):
    """tail: bytes behind the data set, inside the compressed stream."""
    write_dicom(path, np.arange(20).reshape(4, 5), TransferSyntaxUID=pydicom.uid.DeflatedExplicitVRLittleEndian)
    if tail:
        whole = path.read_bytes()
        with path.open("rb") as file:
            pydicom.filereader.read_preamble(file, force=False)
            pydicom.filereader._read_file_meta_info(file)
            start = file.tell()
        squeeze = zlib.compressobj(9, wbits=-15)
        inner = zlib.decompress(whole[start:], -15) + tail
        path.write_bytes(whole[:start] + squeeze.compress(inner) + squeeze.flush())


def test_deflated_data_sets_load_and_bombs_do_not(tmp_path, monkeypatch):
    deflated(tmp_path / "x.dcm")
    assert (intensities(tmp_path / "x.dcm") == np.arange(20).reshape(4, 5)).all()
    deflated(tmp_path / "bomb.dcm", b"\0" * 2**22)
    assert (tmp_path / "bomb.dcm").stat().st_size < 2**14
    monkeypatch.setattr(dicom, "MAX_INFLATED", 2**21)
    with pytest.raises(MediaError, match="unpacks to too much"):
        load(tmp_path, "bomb.dcm", "image")


@pytest.mark.parametrize(
    "tags",
    [
        {"Rows": 0}, {"NumberOfFrames": -3}, {"NumberOfFrames": 2**31 - 1}, {"SamplesPerPixel": 60_000},
        {"BitsAllocated": 3}, {"RescaleSlope": 1e300, "RescaleIntercept": 0},
        {"ImageOrientationPatient": [0] * 6, "PixelSpacing": [0, 0]},
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_absurd_headers_are_refused(tmp_path, tags):
    write_dicom(tmp_path / "x.dcm", np.arange(16).reshape(4, 4), **tags)
    with pytest.raises(MediaError):
        load(tmp_path, "x.dcm", axis="axial")
