"""NIfTI slices through nibabel, read one by one: a file of gigabytes costs what is taken from it.

Rule: axial slices from feet to head, each in the radiological view (front of the body up, the patient's right on the
picture's left), whatever the file's own axes; voxels are not resampled to squares. Several time points are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qoqmed.media.refusals import decoding, need, refused

MAX_VOXELS = 2**29
ENDINGS = (".nii", ".nii.gz")

Choose = Callable[[int], Sequence[int]]  # number of slices -> the ones to read


def is_nifti(path: Path) -> bool:
    return path.name.lower().endswith(ENDINGS)


def slices(path: Path, choose: Choose) -> npt.NDArray[Any]:
    """The chosen slices as stored intensities [N, H, W]."""
    nibabel = need("nibabel", "imaging")
    with decoding("NIfTI volume", path):
        file = nibabel.load(path)
        _check(file, nibabel, path)
        orientation = nibabel.io_orientation(file.affine)  # [3, 2]: a stored axis' body axis and direction
        if not np.isfinite(orientation).all():
            raise refused("the volume's affine does not say where its axes point", path)
        body = [int(axis) for axis in orientation[:, 0]]
        x, y, z = (body.index(axis) for axis in range(3))
        rising = orientation[:, 1] > 0  # towards the patient's right hand (x: left to right), front (y), head (z)
        depth = file.shape[z]
        taken = []
        for position in choose(depth):
            where: list[Any] = [slice(None)] * 3 + [0] * (len(file.shape) - 3)
            where[z] = position if rising[z] else depth - 1 - position
            plane = np.asanyarray(file.dataobj[tuple(where)])
            plane = plane.T if x < y else plane  # [y, x]
            plane = plane[::-1] if rising[y] else plane
            taken.append(plane[:, ::-1] if rising[x] else plane)
        return np.stack(taken)


def _check(file: Any, nibabel: Any, path: Path) -> None:
    """Looks at the header only, before any voxel is read."""
    if type(file) not in (nibabel.Nifti1Image, nibabel.Nifti2Image):
        raise refused(f"a {type(file).__name__} is no NIfTI volume in one file", path)
    shape = tuple(int(side) for side in file.shape)
    if len(shape) < 3 or min(shape) < 1:
        raise refused(f"the volume has shape {shape}", path, expected="three axes")
    if any(side != 1 for side in shape[3:]):
        raise refused(f"the volume has {shape[3:]} time points or channels", path, "one", "extract the one you mean")
    if int(np.prod(shape, dtype=object)) > MAX_VOXELS:
        raise refused(f"the volume has shape {shape}", path, expected=f"at most {MAX_VOXELS} voxels")
    if file.get_data_dtype().kind not in "biuf":
        raise refused(f"the voxels are of type {file.get_data_dtype()}", path, expected="plain numbers")
