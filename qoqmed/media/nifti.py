"""NIfTI slices through nibabel, read slab by slab: a file of gigabytes costs what is taken from it.

Rules: which slices, in which order and which way up is `planes`' to say; axial ones by default. `acquired`: across the
slice axis that the header names, else the third. Of several time points one must be chosen (`time`). A header's claims
are checked before nibabel sees the file; what a compressed file holds beyond them is never unpacked.
"""

from __future__ import annotations

import gzip
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qoqmed.media import planes
from qoqmed.media.options import Options
from qoqmed.media.planes import Choose, Grid
from qoqmed.media.refusals import decoding, need, refused
from qoqmed.media.slices import Slices

MAX_VOXELS = 2**29
MAX_HEADER_BYTES = 2**24  # with its extensions
ENDINGS = (".nii", ".nii.gz")
HEADERS = {348: (108, "f"), 540: (168, "q")}  # sizeof_hdr -> where and how vox_offset is stored


def is_nifti(path: Path) -> bool:
    return path.name.lower().endswith(ENDINGS)


@dataclass(frozen=True)
class _Volume:
    file: Any
    grid: Grid
    plane: str
    time: int

    def slab(self, place: int) -> npt.NDArray[Any]:
        rest = [0] * (len(self.file.shape) - 3)
        rest[:1] = [self.time] if rest else []
        return np.asanyarray(self.file.dataobj[(slice(None), slice(None), place, *rest)])


def slices(path: Path, choose: Choose, options: Options | None = None) -> Slices:
    """The chosen slices as intensities, after the header's scale factors."""
    with decoding("NIfTI volume", path):
        volume = _opened(path, options or Options())
        values = planes.cut(volume.grid, volume.plane, choose, volume.slab)
        bits = 8 * volume.file.get_data_dtype().itemsize
        return Slices(values, hounsfield=None, bits=bits, spacing_mm=planes.spacing_in(volume.grid, volume.plane))


def union(path: Path, options: Options | None = None) -> npt.NDArray[np.bool_]:
    """What is nonzero in any slice [H, W]. A file of one time point lies on all of its medium's."""
    with decoding("NIfTI mask", path):
        volume = _opened(path, options or Options(), every_time=True)

        def inside(place: int) -> npt.NDArray[Any]:
            values = volume.slab(place)
            if not np.isfinite(values).all():
                raise refused("the mask holds NaN or infinite values", path)
            return np.asarray(values != 0)

        flat = planes.union(volume.grid, volume.plane, inside)
        return np.asarray(planes.square(flat[None], planes.spacing_in(volume.grid, volume.plane), path)[0])


def plane(path: Path, options: Options) -> str:
    """The body's plane in which a file's slices are shown."""
    with decoding("NIfTI volume", path):
        return _opened(path, options, every_time=True).plane


def _opened(path: Path, options: Options, every_time: bool = False) -> _Volume:
    """every_time: `time` is left alone where the file has one time point, or is not read at all."""
    nibabel = need("nibabel", "imaging")
    _check_start(path)
    file = nibabel.load(path, keep_file_open=True)  # else a compressed file is unpacked anew for every slab
    _check(file, nibabel, path)
    grid = planes.grid(np.asarray(file.affine, dtype=np.float64), file.shape[:3], path)
    stored = file.header.get_dim_info()[2]
    across = grid.plane(2 if stored is None else stored) if options.axis == "acquired" else options.axis or "axial"
    points = int(file.shape[3]) if len(file.shape) > 3 else 1
    time = None if every_time and points == 1 else options.time
    if points > 1 and time is None:
        raise refused(f"the volume has {points} time points", path, "one", "choose one by the option 'time', from 0")
    if time is not None and time >= points:
        raise refused(f"the volume has {points} time points", path, f"'time' from 0 to {points - 1}", f"not {time}")
    return _Volume(file, grid, across, time or 0)


def _check_start(path: Path) -> None:
    """Bounds what nibabel reads before it checks anything: header extensions reach up to the first voxel."""
    with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as file:
        start = file.read(max(HEADERS))
    for order in "<>":
        size = struct.unpack_from(order + "i", start)[0] if len(start) >= min(HEADERS) else 0
        where, kind = HEADERS.get(size, (0, ""))
        if kind and len(start) >= where + struct.calcsize(kind):
            offset = struct.unpack_from(order + kind, start, where)[0]
            if not (math.isfinite(offset) and 0 <= offset <= MAX_HEADER_BYTES):
                raise refused(f"the header places the voxels at byte {offset:g}", path, f"at most {MAX_HEADER_BYTES}")
            return
    raise refused("the file does not begin with a NIfTI header", path)


def _check(file: Any, nibabel: Any, path: Path) -> None:
    """Looks at the header only, before any voxel is read."""
    if type(file) not in (nibabel.Nifti1Image, nibabel.Nifti2Image):
        raise refused(f"a {type(file).__name__} is no NIfTI volume in one file", path)
    shape = tuple(int(side) for side in file.shape)
    if len(shape) < 3 or min(shape) < 1:
        raise refused(f"the volume has shape {shape}", path, expected="three axes")
    if any(side != 1 for side in shape[4:]):
        raise refused(f"the volume has {shape[4:]} channels", path, "one", "extract the one you mean")
    if math.prod(shape) > MAX_VOXELS:
        raise refused(f"the volume has shape {shape}", path, expected=f"at most {MAX_VOXELS} voxels")
    if file.get_data_dtype().kind not in "biuf":
        raise refused(f"the voxels are of type {file.get_data_dtype()}", path, expected="plain numbers")
