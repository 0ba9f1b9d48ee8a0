"""Volumes as a few slices: NIfTI files, DICOM files and folders of DICOM slices.

Rule: slices by `window.evenly`; one window for all of them: what the row asks for, else the DICOM headers' where these
give one, else from the 0.5th to the 99.5th percentile of the slices shown.
"""

from __future__ import annotations

from pathlib import Path

from qoqmed.media import dicom, nifti
from qoqmed.media.options import Options
from qoqmed.media.refusals import refused
from qoqmed.media.slices import shown
from qoqmed.media.window import Pixels, evenly


def load(path: Path, count: int, options: Options | None = None) -> Pixels:
    """At most `count` slices -> [N, H, W, 3]."""
    options = options or Options()

    def choose(total: int) -> list[int]:
        return list(evenly(total, count))

    read = nifti.slices if _is_nifti(path) else dicom.slices
    return shown(read(path, choose, options), options.window, path)


def plane(path: Path, options: Options) -> str:
    """The body's plane in which a volume is shown: axial, coronal or sagittal."""
    return (nifti.plane if _is_nifti(path) else dicom.plane)(path, options)


def _is_nifti(path: Path) -> bool:
    if not nifti.is_nifti(path) and not dicom.is_dicom(path):
        raise refused("the volume is of no known kind", path, "a folder of DICOM slices, a DICOM file or NIfTI")
    return nifti.is_nifti(path)
