"""DICOM slices through pydicom: one file, or a folder that holds one series. Only the chosen slices are decoded.

Rules: sorted by position along the slice normal, else by instance number, else by file name. Modality LUT applied
(Hounsfield units); window of the headers (median over the chosen slices, linear), else none is given. MONOCHROME1 is
marked inverted. Palettes and YBR become RGB. Several series, several slices at one place and mosaics are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qoqmed.media.nifti import MAX_VOXELS, Choose
from qoqmed.media.refusals import decoding, need, refused

GAP_MM = 1e-3  # slices closer than this are at one place


@dataclass(frozen=True)
class Slices:
    """values: [N, H, W] intensities, or [N, H, W, 3] uint8 where the file is in colour. window: low and high."""

    values: npt.NDArray[Any]
    window: tuple[float, float] | None = None
    inverted: bool = False


@dataclass(frozen=True)
class _Frame:
    path: Path
    index: int  # in its file
    header: Any


def is_dicom(path: Path) -> bool:
    """Whether it is a folder, or a file that bears DICOM's mark (128 bytes, then DICM)."""
    if path.is_dir():
        return True
    with decoding("file", path), path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def slices(path: Path, choose: Choose) -> Slices:
    """The chosen slices of a file or a folder."""
    pydicom = need("pydicom", "imaging")
    with decoding("DICOM image", path):
        files = sorted(item for item in path.iterdir() if item.is_file()) if path.is_dir() else [path]
        headers = [(file, pydicom.dcmread(file, stop_before_pixels=True)) for file in files if is_dicom(file)]
        if not headers:
            raise refused("no DICOM file is there", path)
        frames = _ordered(headers, path)
        chosen = [frames[position] for position in choose(len(frames))]
        planes = [_decoded(frame) for frame in chosen]
        inverted = chosen[0].header.get("PhotometricInterpretation") == "MONOCHROME1"
        return Slices(np.stack(planes), _window([frame.header for frame in chosen]), inverted)


def _ordered(headers: Sequence[tuple[Path, Any]], path: Path) -> list[_Frame]:
    """All frames of a series in the order of their places. Looks at headers only."""
    for file, header in headers:
        _check(file, header)
    if len({(header.Rows, header.Columns, header.get("SeriesInstanceUID")) for _, header in headers}) > 1:
        raise refused("the folder holds several series or sizes", path, "one series", "give each its own folder")
    if len(headers) == 1:
        file, header = headers[0]
        return [_Frame(file, index, header) for index in range(int(header.get("NumberOfFrames") or 1))]
    if any(int(header.get("NumberOfFrames") or 1) > 1 for _, header in headers):
        raise refused("the folder holds several files of several frames each", path)
    places = _places([header for _, header in headers], path)
    order = np.argsort(places, kind="stable")
    return [_Frame(headers[i][0], 0, headers[i][1]) for i in order]


def _check(file: Path, header: Any) -> None:
    if "Rows" not in header or "Columns" not in header:
        raise refused(f"the DICOM file holds no image ({header.get('Modality', 'no modality')})", file)
    frames, samples = int(header.get("NumberOfFrames") or 1), int(header.get("SamplesPerPixel") or 1)
    size = int(header.Rows) * int(header.Columns) * frames * samples
    if not 0 < size <= MAX_VOXELS:
        shape = f"{header.Rows} x {header.Columns} x {frames} x {samples}"
        raise refused(f"the header claims {shape} values", file, expected=f"1 to {MAX_VOXELS}")
    if "MOSAIC" in header.get("ImageType", ()):
        raise refused("the file is a mosaic of slices", file, mend="convert it to NIfTI")


def _places(headers: Sequence[Any], path: Path) -> Sequence[float]:
    """A number a slice that grows along the series."""
    if not all("ImagePositionPatient" in header and "ImageOrientationPatient" in header for header in headers):
        numbers = [header.get("InstanceNumber") for header in headers]
        return range(len(headers)) if None in numbers else [float(number) for number in numbers]
    axes = np.array([header.ImageOrientationPatient for header in headers], dtype=np.float64)  # [N, 6]
    if np.abs(axes - axes[0]).max() > 0.01:
        raise refused("the folder's slices lie in different directions", path, "parallel slices")
    normal = np.cross(axes[0, :3], axes[0, 3:])
    places = np.array([header.ImagePositionPatient for header in headers], dtype=np.float64) @ normal
    if np.diff(np.sort(places)).min() < GAP_MM:
        raise refused("several slices lie at one place (time points?)", path, mend="give each its own folder")
    return [float(place) for place in places]


def _decoded(frame: _Frame) -> npt.NDArray[Any]:
    """One frame: [H, W] float after the modality LUT, or [H, W, 3] uint8."""
    pydicom, pixels = need("pydicom", "imaging"), need("pydicom.pixels", "imaging")
    data = pydicom.dcmread(frame.path)
    values = pixels.pixel_array(data, index=frame.index)
    if data.PhotometricInterpretation == "PALETTE COLOR":
        values = pixels.apply_color_lut(values, data)
    elif data.get("SamplesPerPixel", 1) == 1:
        return np.asarray(pixels.apply_modality_lut(values, data), dtype=np.float32)
    if values.dtype != np.uint8:
        values = values >> (8 * values.dtype.itemsize - 8)
    return np.asarray(values[..., :3], dtype=np.uint8)


def _window(headers: Sequence[Any]) -> tuple[float, float] | None:
    """Low and high of DICOM's linear window (PS3.3 C.11.2.1.2); a width of 1 or less is no window."""
    centres, widths = ([_first(header.get(name)) for header in headers] for name in ("WindowCenter", "WindowWidth"))
    if None in centres or not all(width is not None and width > 1 for width in widths):
        return None
    centre, width = np.median(np.array(centres, dtype=float)), np.median(np.array(widths, dtype=float))
    return float(centre - 0.5 - (width - 1) / 2), float(centre - 0.5 + (width - 1) / 2)


def _first(value: Any) -> float | None:
    """A header's number; the first where it offers several windows."""
    if value is None or value == "":
        return None
    return float(value) if not hasattr(value, "__len__") or isinstance(value, str) else float(value[0])
