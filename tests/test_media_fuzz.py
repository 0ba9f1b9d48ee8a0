"""Mutated files of every spatial kind: pictures or a MediaError, never another exception, a hang or a wrong array."""

from __future__ import annotations

import gzip
import struct
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, TiffImagePlugin
from tiny_media import load, write_dicom, write_nifti, write_video

from qoqmed.errors import MediaError
from qoqmed.media import masks
from qoqmed.types import Mask

pytest.importorskip("pydicom")
pytest.importorskip("nibabel")
pytest.importorskip("av")

# Decoders warn of what they then mend or refuse; outside of tests a warning is no exception.
pytestmark = pytest.mark.filterwarnings("ignore")

KINDS = [
    "png",
    "wide.png",
    "jpg",
    "tiff",
    "deflate.tiff",
    "gif",
    "webp",
    "bmp",
    "dcm",
    "rle.dcm",
    "nii",
    "nii.gz",
    "mp4",
    "mkv",
    "avi",
]
OPTIONS = {
    "dcm": [{}, {"axis": "coronal"}, {"axis": "axial", "window": "lung"}],
    "nii": [{}, {"axis": "sagittal"}, {"axis": "acquired", "window": "brain"}, {"time": 0}],
    "mp4": [{}, {"start_s": 0.1, "stop_s": 0.3}],
}
OPTIONS |= {"gz": OPTIONS["nii"], "mkv": OPTIONS["mp4"], "avi": OPTIONS["mp4"]}


MODALITIES = dict.fromkeys(["dcm", "nii", "gz"], "volume") | dict.fromkeys(["mp4", "mkv", "avi"], "video")


def ending(kind):
    return kind.rpartition(".")[2]


def modality(kind):
    return MODALITIES.get(ending(kind), "image")


@cache
def whole(kind):
    """A small valid file."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"x.{kind}"
        _write(path, kind)
        return path.read_bytes()


def _write(path, kind):
    noise = np.random.default_rng(7).integers(0, 255, (24, 20, 3), dtype=np.uint8)
    if kind == "wide.png":
        Image.fromarray(noise[..., 0].astype(np.uint16) * 200).save(path)
    elif kind == "deflate.tiff":
        Image.fromarray(noise).save(path, compression="tiff_adobe_deflate")
    elif kind.endswith("dcm"):
        tags = {"Modality": "CT", "RescaleSlope": 1, "RescaleIntercept": -1024, "WindowCenter": 40, "WindowWidth": 400}
        data = write_dicom(path, np.stack([noise[..., 0]] * 2), **tags)
        if kind == "rle.dcm":
            data.compress("1.2.840.10008.1.2.5")
            data.save_as(path)
    elif "nii" in kind:
        write_nifti(path, noise[..., :2].astype(np.int16) - 100, "LPS")
    elif modality(kind) == "video":
        write_video(path, count=5)
    else:
        Image.fromarray(noise).save(path)


@st.composite
def mutated(draw, kind):
    """Bytes changed (mostly near the start, where headers are), a piece cut out, doubled or zeroed, the end lost."""
    data = bytearray(whole(kind))
    packed = kind == "nii.gz" and draw(st.booleans())  # else only the wrapping would be met
    if packed:
        data = bytearray(gzip.decompress(bytes(data)))
    for _ in range(draw(st.integers(0, 6))):
        reach = draw(st.sampled_from([64, 400, len(data)]))
        place = draw(st.integers(0, min(reach, len(data)) - 1))
        data[place] = draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFE, 0xFF]) | st.integers(0, 255))
    if draw(st.booleans()):
        first, length = draw(st.integers(0, len(data) - 1)), draw(st.integers(1, 64))
        piece = data[first : first + length]
        data[first : first + length] = draw(st.sampled_from([b"", bytes(piece) * 2, b"\0" * len(piece), b"\xff" * 4]))
    if draw(st.integers(0, 3)) == 0:
        del data[draw(st.integers(0, len(data))) :]
    return gzip.compress(bytes(data)) if packed else bytes(data)


def check(root, kind, content, options):
    name = f"x.{kind}"
    (root / name).write_bytes(content)
    try:
        pictures = load(root, name, modality(kind), 3, **options)
    except MediaError as error:
        assert len(error.problems) == 1 and error.problems[0].got and error.problems[0].what
        return
    assert 1 <= len(pictures) <= 3
    for picture in pictures:
        assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3 and 0 not in picture.shape


def check_mutated(data, root):
    kind = data.draw(st.sampled_from(KINDS))
    options = data.draw(st.sampled_from(OPTIONS.get(ending(kind), [{}])))
    check(root, kind, data.draw(mutated(kind)), options)


@pytest.mark.parametrize("kind", KINDS)
def test_the_files_are_valid_before_they_are_mutated(tmp_path, kind):
    (tmp_path / f"x.{kind}").write_bytes(whole(kind))
    assert load(tmp_path, f"x.{kind}", modality(kind), 3)


@settings(max_examples=300)
@given(st.data())
def test_mutated_files_load_or_are_refused(tmp_path_factory, data):
    check_mutated(data, _root(tmp_path_factory))


@pytest.mark.slow
@settings(max_examples=2500, derandomize=False)
@given(st.data())
def test_many_mutated_files_load_or_are_refused(tmp_path_factory, data):
    check_mutated(data, _root(tmp_path_factory))


def _root(factory):
    folder = factory.getbasetemp() / "fuzz"
    folder.mkdir(exist_ok=True)
    return folder


@given(st.binary(max_size=300), st.sampled_from(KINDS))
def test_noise_is_always_refused(tmp_path_factory, content, kind):
    root = _root(tmp_path_factory)
    (root / f"x.{kind}").write_bytes(content)
    with pytest.raises(MediaError):
        load(root, f"x.{kind}", modality(kind))


@given(st.sampled_from([kind for kind in KINDS if modality(kind) == "image" or "nii" in kind]), st.data())
def test_mutated_masks_load_or_are_refused(tmp_path_factory, kind, data):
    root = _root(tmp_path_factory)
    (root / f"m.{kind}").write_bytes(data.draw(mutated(kind)))
    try:
        inside = masks.load(Mask(f"m.{kind}"), root)
    except MediaError as error:
        assert error.problems[0].got
        return
    assert inside.dtype == bool and inside.ndim == 2 and 0 not in inside.shape


NIFTI_FIELDS = {"dim": (40, "8h"), "datatype": (70, "2h"), "pixdim": (76, "8f"), "vox_offset": (108, "f"),
                "scale": (112, "2f"), "codes": (252, "2h"), "quatern": (256, "6f"), "srow": (280, "12f")}  # fmt: skip
EXTREME = st.sampled_from([0, 1, 2, 3, 4, 7, 24, -1, 255, 32767, -32768])


@given(st.data(), st.sampled_from(sorted(NIFTI_FIELDS)), st.sampled_from(OPTIONS["nii"]))
def test_nifti_headers_of_any_values(tmp_path_factory, data, name, options):
    content = bytearray(whole("nii"))
    offset, form = NIFTI_FIELDS[name]
    values = [*struct.unpack_from("<" + form, content, offset)]
    numbers = EXTREME if "h" in form else EXTREME.map(float) | st.floats(width=32)
    for place in range(len(values)):
        if data.draw(st.booleans()):
            values[place] = data.draw(numbers)
    struct.pack_into("<" + form, content, offset, *values)
    check(_root(tmp_path_factory), "nii", bytes(content), options)


DICOM_TAGS = [
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "SamplesPerPixel",
    "NumberOfFrames",
]


@given(st.sampled_from(DICOM_TAGS), EXTREME, st.sampled_from(OPTIONS["dcm"]))
def test_dicom_headers_of_any_numbers(tmp_path_factory, tag, value, options):
    root = _root(tmp_path_factory)
    value = abs(value) if tag != "NumberOfFrames" else value
    write_dicom(root / "x.dcm", np.arange(40).reshape(2, 4, 5), **{tag: value})
    check(root, "dcm", (root / "x.dcm").read_bytes(), options)


TEXTS = st.sampled_from(
    ["nan", "inf", "-inf", "1e308", "-1e308", "1e-320", "0", "-5", "", "40\\80", "MONOCHROME1", "RGB", "SIGMOID"]
)
TEXT_TAGS = ["RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth", "ImagePositionPatient", "PixelSpacing",
             "ImageOrientationPatient", "PhotometricInterpretation", "VOILUTFunction", "Modality"]  # fmt: skip


@given(st.dictionaries(st.sampled_from(TEXT_TAGS), TEXTS, min_size=1, max_size=3), st.sampled_from(OPTIONS["dcm"]))
def test_dicom_headers_of_any_texts(tmp_path_factory, changes, options):
    """The texts go into the file as they are: pydicom would not write some of them."""
    from pydicom.datadict import dictionary_VR, tag_for_keyword
    from pydicom.dataelem import RawDataElement
    from pydicom.tag import Tag

    root = _root(tmp_path_factory)
    data = write_dicom(root / "x.dcm", np.arange(40).reshape(2, 4, 5), RescaleSlope=1, RescaleIntercept=-1024)
    for name, value in changes.items():
        copies = {"ImagePositionPatient": 3, "PixelSpacing": 2, "ImageOrientationPatient": 6}.get(name, 1)
        content = "\\".join([value] * copies).encode()
        content += b" " * (len(content) % 2)
        tag = Tag(tag_for_keyword(name))
        data._dict[tag] = RawDataElement(tag, dictionary_VR(tag), len(content), content, 0, False, True)
    data.save_as(root / "x.dcm")
    check(root, "dcm", (root / "x.dcm").read_bytes(), options)


TIFF_TAGS = [256, 257, 258, 259, 262, 273, 274, 277, 278, 279, 284, 317, 338, 339]


@given(
    st.sampled_from(["tiff", "deflate.tiff"]), st.sampled_from(TIFF_TAGS), EXTREME.map(abs) | st.integers(0, 2**32 - 1)
)
def test_tiff_tags_of_any_numbers(tmp_path_factory, kind, tag, value):
    content = bytearray(whole(kind))
    start = struct.unpack_from("<I", content, 4)[0]
    for place in range(struct.unpack_from("<H", content, start)[0]):
        entry = start + 2 + 12 * place
        if struct.unpack_from("<H", content, entry)[0] == tag:
            struct.pack_into("<HII", content, entry + 2, TiffImagePlugin.TiffTags.LONG, 1, value)
    check(_root(tmp_path_factory), kind, bytes(content), {})
