"""Every item of the real clinical data loads as a case, and its media and masks decode."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qoqmed.datasets.jsonl import JsonLines
from qoqmed.errors import MediaError
from qoqmed.media import ecg, frames, masks
from qoqmed.media.paths import resolve
from qoqmed.types import SPATIAL, Medium

pytestmark = pytest.mark.real

MAPPING = {"labels": "label", "media": "files", "boxes_xywh": "bbox", "box_labels": "bbox_names"}
FRAMES = 4
TABLE = Path(__file__).resolve().parents[2] / "docs/media.md"


@pytest.fixture(scope="module")
def data(real_root):
    return JsonLines("manifest.jsonl", root=str(real_root), mapping=MAPPING)


def test_every_row_is_a_case(data):
    cases = [data[i] for i in range(len(data))]
    assert len(cases) == 415 and len(set(data.domains)) == 9
    assert [case.domain for case in cases] == data.domains
    assert sum(case.target.mask is not None for case in cases) == 262
    assert sum(case.target.boxes is not None for case in cases) == 220
    unlabelled = Counter(case.dataset for case in cases if case.target.labels is None)
    assert unlabelled == {"isic2017": 7}
    assert all(case.text for case in cases)


def test_splits_and_exclusions(real_root):
    def size(**arguments):
        return len(JsonLines("manifest.jsonl", root=str(real_root), mapping=MAPPING, **arguments))

    assert size(where={"split": "train"}) + size(where={"split": "valid"}) == 415
    assert size(unless={"dataset": ["isic2017"]}) == 408


@pytest.mark.parametrize("modality", ["image", "volume", "video", "ecg"])
def test_every_medium_decodes(data, real_root, modality):
    met = 0
    for case in (data[i] for i in range(len(data))):
        (medium,) = case.media
        if medium.modality != modality:
            continue
        met += 1
        if modality not in SPATIAL:
            signal = ecg.load(resolve(real_root, medium.path))
            assert signal.shape == (12, 2500) and 0.01 < abs(signal).max() < 50, case.id
            continue
        pictures = frames.load(medium, real_root, FRAMES)
        assert len(pictures) == (1 if modality == "image" else FRAMES), case.id
        assert len({picture.shape for picture in pictures}) == 1 and pictures[0].dtype == np.uint8
        assert np.stack(pictures).std() > 1, case.id
        if case.target.mask is not None:
            inside = masks.load(case.target.mask, real_root, medium)
            assert inside.shape == pictures[0].shape[:2], case.id
            _boxes_cover(case, inside)
    assert met == {"image": 327, "volume": 22, "video": 12, "ecg": 54}[modality]


def _boxes_cover(case, inside):
    """A box that was drawn around mask parts has some of the mask in it."""
    height, width = inside.shape
    for box in case.target.boxes or ():
        part = inside[round(box.y1 * height) : round(box.y2 * height), round(box.x1 * width) : round(box.x2 * width)]
        assert part.any(), case.id


def edge_cases():
    """(file, modality, what happens) of the table in docs/media.md."""
    section = TABLE.read_text().partition("## Edge cases")[2]
    for line in section.splitlines():
        if line.startswith("| `"):
            files, _, modality, happens = (cell.strip() for cell in line.strip("|").split("|"))
            yield from ((name, modality, happens) for name in re.findall("`(.+?)`", files))


def test_the_table_of_edge_cases_is_complete(real_root):
    folder = real_root / "edge_cases"
    files = [json.loads(line)["file"] for line in (folder / "edge_cases.jsonl").read_text().splitlines()]
    told = [name for name, _, _ in edge_cases() if not (folder / name).is_dir()]
    assert len(files) == 39 and set(told) == {file.removeprefix("edge_cases/") for file in files}


@pytest.mark.parametrize(
    ("name", "modality", "happens"),
    [pytest.param(*row, id="-".join(row[:2])) for row in edge_cases() if row[1] != "part"],
)
def test_edge_cases_load_or_fail_with_one_message(real_root, name, modality, happens):
    folder = real_root / "edge_cases"

    def load():
        if modality == "ecg":
            return [ecg.load(resolve(folder, name))]
        return frames.load(Medium(modality, name), folder, FRAMES)

    if happens.startswith("refused: `"):
        with pytest.raises(MediaError, match=re.escape(happens.split("`")[1])) as error:
            load()
        (problem,) = error.value.problems
        assert problem.got.endswith(name.removesuffix(".hea"))
    else:
        assert happens.startswith("loads") and load()


@pytest.mark.parametrize(
    ("name", "slices"), [("ct_gantry_tilt", 2), ("mr_two_slices", 2), ("us_ybr_multiframe.dcm", 4)]
)
def test_edge_case_series(real_root, name, slices):
    assert len(frames.load(Medium("volume", name), real_root / "edge_cases", FRAMES)) == slices


def test_edge_case_pictures_by_other_readers(real_root):
    """Against pydicom's own pipeline and the headers' own words."""
    pydicom = pytest.importorskip("pydicom")
    folder = real_root / "edge_cases"

    def shown(name, modality="image", **options):
        return frames.load(Medium(modality, name, options=options), folder, FRAMES)[0]

    one, *others = (shown(f"mr_{name}.dcm") for name in ("16bit", "bigendian", "rle"))
    assert all((one == other).all() for other in others)
    data = pydicom.dcmread(folder / "mr_16bit.dcm")
    windowed = pydicom.pixels.apply_windowing(data.pixel_array, data)
    assert abs(one[..., 0] - 255 * (windowed + 32768) / 65535).max() <= 1
    data = pydicom.dcmread(folder / "ct_16bit_signed.dcm")
    hounsfield = pydicom.pixels.apply_modality_lut(data.pixel_array, data)
    bone = shown("ct_16bit_signed.dcm", window="bone")[..., 0]
    assert abs(bone - ((hounsfield + 500) / 1800 * 255).clip(0, 255)).max() <= 0.51
    with pytest.raises(MediaError, match="8 bits"):
        shown("ct_nearly_empty.nii.gz", "volume", window="brain")
    first, second = (shown("mr_4d.nii.gz", "volume", time=time) for time in (0, 1))
    assert first.shape == second.shape and (first != second).any()
    for name, degrees in (("edge_cases/ct_gantry_tilt", "14.0"), ("ct/ct_volumes/volumes/ct_volumes_001", "18.5")):
        with pytest.raises(MediaError, match=f"sheared by {degrees} degrees"):
            frames.load(Medium("volume", name, options={"axis": "coronal"}), real_root, FRAMES)
    header = pydicom.dcmread(real_root / "ct/ct_volumes/volumes/ct_volumes_001/000.dcm", stop_before_pixels=True)
    assert header.GantryDetectorTilt == 18.5


@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal", "acquired"])
def test_every_volume_in_every_plane_with_its_mask(data, real_root, axis):
    sheared = []
    for case in (data[i] for i in range(len(data))):
        if case.media[0].modality != "volume":
            continue
        medium = replace(case.media[0], options={"axis": axis, "frames": 2})
        try:
            picture = frames.load(medium, real_root, FRAMES)[0]
        except MediaError as error:
            sheared.append((case.id, error.problems[0].what.split(" (")[0]))
            continue
        height, width = picture.shape[:2]
        if case.target.mask is not None:
            inside = masks.load(case.target.mask, real_root, medium)
            assert masks.fit(inside, width, height) is inside and inside.any(), case.id
    tilted = [("ct_volumes_001", "the slices are sheared by 18.5 degrees")] if axis in ("coronal", "sagittal") else []
    assert sheared == tilted


def test_edge_case_ecgs(real_root):
    """Golden sources: pydicom's and wfdb's own readings; Einthoven's law (I + III = II)."""
    folder = real_root / "edge_cases"
    waveform = ecg.load(resolve(folder, "ecg_waveform.dcm"), rate_hz=1000)
    own = pytest.importorskip("pydicom").dcmread(folder / "ecg_waveform.dcm").waveform_array(0).T  # [12, T] microvolts
    assert abs(waveform - own / 1000).max() < 1e-6
    assert abs(waveform[0] + waveform[2] - waveform[1]).max() < 2e-3
    later = ecg.load(resolve(folder, "ecg/Q0017"), ["V3", "aVR"], 500, 10, {"start_s": 40})
    record = pytest.importorskip("wfdb").rdrecord(str(folder / "ecg/Q0017"), sampfrom=20_000, sampto=25_000)
    assert abs(later - record.p_signal[:, [8, 3]].T).max() < 1e-6
    assert ecg.load(resolve(folder, "ecg/100_3chan"), ["III", "I"])[:, -1].tolist() == [0, 0]  # 2.8 s, padded
    assert ecg.load(resolve(folder, "ecg/v102s"), ["II"]).any()
    with pytest.raises(MediaError, match="II: 1, of 2500"):
        ecg.load(resolve(folder, "ecg/v102s"), ["II"], options={"start_s": 20})
    for name in ("mr_16bit.dcm", "no_pixels_rtplan.dcm", "grey.jpg", "ecg/Q0017.mat", "ecg"):
        with pytest.raises(MediaError, match="no waveform|no ECG of a known kind|folder"):
            ecg.load(resolve(folder, name))
