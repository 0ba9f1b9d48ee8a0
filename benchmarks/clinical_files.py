"""Files of every kind for the benchmarks: real ones of QOQMED_TEST_DATA (default ../shared/data), else drawn ones."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from record import ROOT

KINDS = ("jpeg", "png", "dicom", "nifti volume", "dicom folder", "video", "wfdb")
DICOM = ("ct_16bit_signed.dcm", "mr_16bit.dcm", "mr_rle.dcm", "us_rgb_colour.dcm", "mr_bigendian.dcm")
EACH = 24  # files of a kind, at most
Files = dict[str, list[tuple[str, str]]]  # kind -> (modality, path under the root)


def files(folder: Path) -> tuple[Path, Files, str]:
    """(data root, files of each kind, where they come from). folder: an empty one, for drawn files."""
    real = Path(os.environ.get("QOQMED_TEST_DATA") or ROOT.parent / "shared" / "data")
    if (real / "manifest.jsonl").is_file():
        return real, _real(real), "real, of the test data"
    return folder, {kind: list(_drawn(folder, kind)) for kind in KINDS}, "drawn"


def _real(root: Path) -> Files:
    found: Files = {kind: [] for kind in KINDS}
    found["dicom"] = [("image", f"edge_cases/{name}") for name in DICOM]
    for line in (root / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
        for modality, path in json.loads(line)["files"].items():
            name = {".jpg": "jpeg", ".png": "png", ".gz": "nifti volume", ".mp4": "video"}.get(Path(path).suffix)
            kind = "wfdb" if modality == "ecg" else name or "dicom folder"
            found[kind].append((modality, path))
    return {kind: paths[:: max(1, len(paths) // EACH)][:EACH] for kind, paths in found.items()}


def _drawn(root: Path, kind: str) -> Iterator[tuple[str, str]]:
    writers = {"nifti volume": _nifti, "dicom folder": _series, "video": _video, "wfdb": _wfdb}
    for number in range(6):
        draw = np.random.default_rng(number)
        if kind in writers:
            yield writers[kind](root, f"{kind.replace(' ', '-')}-{number}", draw)
        elif kind == "dicom":
            _dicom(root / f"{number}.dcm", _plane(draw).astype(np.int16) * 8, number)
            yield "image", f"{number}.dcm"
        else:
            from PIL import Image

            Image.fromarray(np.stack([_plane(draw) for _ in range(3)], -1)).save(root / f"{number}.{kind}")
            yield "image", f"{number}.{kind}"


def _plane(draw: np.random.Generator, side: int = 512) -> Any:
    """[side, side] uint8: a soft disc with a little noise."""
    rows, columns = np.mgrid[:side, :side] - draw.integers(side // 4, 3 * side // 4, 2)[:, None, None]
    disc = 200 * np.exp(-(rows**2 + columns**2) / side**2 * 8)
    return (disc + draw.normal(20, 3, (side, side))).clip(0, 255).astype(np.uint8)


def _nifti(root: Path, name: str, draw: np.random.Generator) -> tuple[str, str]:
    import nibabel

    values = np.stack([_plane(draw, 192) for _ in range(48)], -1).astype(np.int16) * 8
    nibabel.save(nibabel.Nifti1Image(values, np.diag([1.0, 1.0, 3.0, 1.0])), root / f"{name}.nii.gz")
    return "volume", f"{name}.nii.gz"


def _series(root: Path, name: str, draw: np.random.Generator) -> tuple[str, str]:
    (root / name).mkdir()
    for position in range(16):
        _dicom(root / name / f"{position:03}.dcm", _plane(draw).astype(np.int16) * 8, position)
    return "volume", name


def _dicom(path: Path, values: Any, position: int) -> None:
    import pydicom
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = CTImageStorage
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{position + 1}"
    data.SeriesInstanceUID, data.Modality, data.InstanceNumber = "1.2.3", "CT", position + 1
    data.ImageOrientationPatient, data.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 3.0 * position]
    data.Rows, data.Columns = values.shape
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.SamplesPerPixel, data.PixelRepresentation = 15, 1, 1
    data.PhotometricInterpretation = "MONOCHROME2"
    data.PixelData = values.tobytes()
    data.save_as(path, enforce_file_format=True)


def _video(root: Path, name: str, draw: np.random.Generator) -> tuple[str, str]:
    import av

    with av.open(str(root / f"{name}.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 512, 512, "yuv420p"
        for _ in range(50):
            picture = np.repeat(_plane(draw)[..., None], 3, -1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return "video", f"{name}.mp4"


def _wfdb(root: Path, name: str, draw: np.random.Generator) -> tuple[str, str]:
    import wfdb

    from qoqmed.media.ecg import LEADS

    signals = np.cumsum(draw.normal(0, 0.02, (5000, 12)), 0)
    wfdb.wrsamp(
        name, fs=500, units=["mV"] * 12, sig_name=list(LEADS), p_signal=signals, fmt=["16"] * 12, write_dir=str(root)
    )
    return "ecg", name
