"""Every item of the real clinical data loads as a case, and its media and masks decode."""

from __future__ import annotations

import json
from collections import Counter

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
EDGE_CASES_THAT_FAIL = {
    "ct_no_meta_header.dcm": "no DICOM mark",
    "ecg_waveform.dcm": "holds no image",
    "jpeg_12bit_lossy.dcm": "12-bit",
    "mr_4d.nii.gz": "time points",
    "mr_jpegls.dcm": "JPEG-LS",
    "mr_mosaic.dcm": "mosaic",
    "mr_truncated.dcm": "less than expected",
    "no_pixels_rtplan.dcm": "holds no image",
    "us_ybr_multiframe.dcm": "several frames",
    "ecg/100_3chan.hea": "leads are missing: aVR",
    "ecg/v102s.hea": "leads are missing: I, III",
}


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
            inside = masks.load(case.target.mask, real_root)
            assert inside.shape == pictures[0].shape[:2], case.id
            _boxes_cover(case, inside)
    assert met == {"image": 327, "volume": 22, "video": 12, "ecg": 54}[modality]


def _boxes_cover(case, inside):
    """A box that was drawn around mask parts has some of the mask in it."""
    height, width = inside.shape
    for box in case.target.boxes or ():
        part = inside[round(box.y1 * height) : round(box.y2 * height), round(box.x1 * width) : round(box.x2 * width)]
        assert part.any(), case.id


def test_edge_cases_load_or_fail_with_one_message(real_root):
    folder = real_root / "edge_cases"
    rows = [json.loads(line) for line in (folder / "edge_cases.jsonl").read_text().splitlines()]
    failed = {}
    for name in sorted(row["file"].removeprefix("edge_cases/") for row in rows):
        if name.endswith((".dat", ".mat", ".xyz")):
            continue  # parts of a record
        try:
            if name.endswith(".hea"):
                assert ecg.load(resolve(folder, name)).shape == (12, 2500)
            else:
                medium = Medium("volume" if ".nii" in name else "image", name)
                assert frames.load(medium, folder, FRAMES)
        except MediaError as error:
            (problem,) = error.problems
            assert problem.got
            failed[name] = problem.what
    assert failed.keys() == EDGE_CASES_THAT_FAIL.keys()
    for name, said in EDGE_CASES_THAT_FAIL.items():
        assert said in failed[name], name


@pytest.mark.parametrize(
    ("name", "slices"), [("ct_gantry_tilt", 2), ("mr_two_slices", 2), ("us_ybr_multiframe.dcm", 4)]
)
def test_edge_case_series(real_root, name, slices):
    assert len(frames.load(Medium("volume", name), real_root / "edge_cases", FRAMES)) == slices


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
