"""DICOM slices through pydicom: one file, or a folder that holds one series. Only the needed slices are decoded.

Rules: which frames there are and in which order is `dicom_series`' to say, what becomes of a pixel `dicom_pixels`'. Of
headers only the fields of `dicom_header` are read. MONOCHROME1 is marked inverted. By default the slices as they were
acquired, pixels as stored. By `axis` a view of the body: the acquired plane turned the radiological way, or a cut
across the slices where these are grey, straight above one another and evenly spaced. So a tilted gantry does not matter
to acquired slices, and refuses a cut.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qoqmed.media import dicom_header, dicom_pixels, dicom_series, planes
from qoqmed.media.dicom_series import Frame
from qoqmed.media.options import Options
from qoqmed.media.planes import Choose
from qoqmed.media.refusals import decoding, need, refused
from qoqmed.media.slices import Slices

ENDINGS = (".dcm", ".dicom")
MAX_FILES = 10_000
MAX_INFLATED = 2**31  # bytes of a deflated data set
BARE_NEEDS = ("SOPClassUID", "SOPInstanceUID", "Rows", "Columns", "BitsAllocated")


def is_dicom(path: Path) -> bool:
    """Whether it is a folder, or a file that bears DICOM's mark or one of its endings."""
    return path.is_dir() or path.name.lower().endswith(ENDINGS) or _marked(path)


def _marked(path: Path) -> bool:
    """128 bytes, then DICM."""
    with decoding("file", path), path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def slices(path: Path, choose: Choose, options: Options | None = None) -> Slices:
    """The chosen slices of a file or a folder."""
    options = options or Options()
    if options.time is not None:
        raise refused("the option 'time' is for NIfTI volumes", path, mend="give each time point its own folder")
    with decoding("DICOM image", path):
        frames = _frames(path)
        decode = dicom_pixels.Reader(_read, voi=options.window in ("auto", "header"))
        if options.axis in (None, "acquired"):
            chosen = [frames[place] for place in choose(len(frames))]
            return _slices(chosen, np.stack([decode(frame) for frame in chosen]))
        return _turned(frames, str(options.axis), choose, decode, path)


def _turned(frames: list[Frame], plane: str, choose: Choose, decode: dicom_pixels.Reader, path: Path) -> Slices:
    """Slices of one of the body's planes."""
    grid = dicom_series.grid(frames, path)
    if dicom_pixels.is_colour(frames[0].header):
        raise refused("slices in colour are shown as acquired only", path, mend="axis: acquired")
    if grid.plane(2) != plane:
        dicom_series.require_crossable(frames, plane, path)
    used: list[Frame] = []

    def slab(place: int) -> npt.NDArray[Any]:
        used.append(frames[place])
        return decode(frames[place]).T

    values = planes.cut(grid, plane, choose, slab)
    return _slices(used, values, planes.spacing_in(grid, plane))


def _slices(frames: list[Frame], values: npt.NDArray[Any], spacing_mm: tuple[float, float] | None = None) -> Slices:
    header = frames[0].header
    return Slices(
        values,
        dicom_pixels.window(frames),
        inverted=header.get("PhotometricInterpretation") == "MONOCHROME1",
        hounsfield=all(dicom_pixels.is_hounsfield(frame) for frame in frames),
        bits=int(header.get("BitsStored") or 8),
        spacing_mm=spacing_mm,
    )


def plane(path: Path, options: Options) -> str:
    """The body's plane in which the slices are shown. Refused where acquired slices are not the radiological way up:
    then a mask in the body's own axes does not lie on them."""
    if options.axis not in (None, "acquired"):
        return str(options.axis)
    with decoding("DICOM image", path):
        grid = dicom_series.grid(_frames(path), path)
        if grid.rising[:2] != (False, False) or grid.body[0] > grid.body[1]:  # see `planes`: across falls, down falls
            what = "a NIfTI mask cannot follow slices that were acquired another way up than the radiological"
            raise refused(what, path, mend=f"axis: {grid.plane(2)}")
        return grid.plane(2)


def _frames(path: Path) -> list[Frame]:
    files = [path]
    if path.is_dir():
        files = sorted(item for item in path.iterdir() if item.is_file() and is_dicom(item))
    if not 0 < len(files) <= MAX_FILES:
        what = f"the folder holds {len(files)} DICOM files" if files else "no DICOM file is there"
        raise refused(what, path, f"1 to {MAX_FILES}")
    return dicom_series.ordered([(file, _read(file, stop_before_pixels=True)) for file in files], path)


def _read(path: Path, stop_before_pixels: bool = False) -> Any:
    pydicom = need("pydicom", "imaging")
    if not _marked(path):
        return _bare(path, stop_before_pixels)
    meta = pydicom.filereader.read_file_meta_info(path)
    if meta.get("TransferSyntaxUID") == pydicom.uid.DeflatedExplicitVRLittleEndian:
        _require_small(path)
    data = pydicom.dcmread(path, stop_before_pixels=stop_before_pixels, specific_tags=list(dicom_header.FIELDS))
    if stop_before_pixels:  # of the two readings, the one of headers alone
        dicom_header.warn_of_what_shows(data, path)
    return data


def _bare(path: Path, stop_before_pixels: bool) -> Any:
    """A data set without preamble and file meta: read where it begins with the tags of group 8 and holds an image of
    known class and size. Its pixels cannot be compressed then: nothing says how."""
    pydicom = need("pydicom", "imaging")
    with path.open("rb") as file:
        start = file.read(2)
    if start in (b"\x08\0", b"\0\x08"):
        data = pydicom.dcmread(
            path, force=True, stop_before_pixels=stop_before_pixels, specific_tags=list(dicom_header.FIELDS)
        )
        if stop_before_pixels:
            dicom_header.warn_of_what_shows(data, path)
        if all(name in data for name in BARE_NEEDS):
            implicit, little = data.original_encoding
            uid = pydicom.uid
            native = uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian
            data.file_meta.TransferSyntaxUID = native if little else uid.ExplicitVRBigEndian
            return data
    what = "the file has no DICOM mark (128 bytes, then DICM), and is no bare data set of an image"
    raise refused(what, path, mend="write it anew with a DICOM tool, or name it by its kind")


def _require_small(path: Path) -> None:
    """Counts what a deflated data set unpacks to, without keeping it."""
    inflate, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
    pydicom = need("pydicom", "imaging")
    with path.open("rb") as file:
        pydicom.filereader.read_preamble(file, force=False)
        pydicom.filereader._read_file_meta_info(file)
        rest = file.read(2**20)
        while rest and total <= MAX_INFLATED:
            total += len(inflate.decompress(rest, 2**20))
            rest = inflate.unconsumed_tail or file.read(2**20)
    if total > MAX_INFLATED:
        raise refused("the deflated data set unpacks to too much", path, f"at most {MAX_INFLATED} bytes")
