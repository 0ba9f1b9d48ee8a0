"""Volumes as a few slices: NIfTI files, DICOM files and folders of DICOM slices.

Rule: slices by `window.evenly`; one window for all of them, from the DICOM headers where these give one, else from the
0.5th to the 99.5th percentile of the slices shown.
"""

from __future__ import annotations

from pathlib import Path

from qoqmed.media import dicom, nifti
from qoqmed.media.refusals import refused
from qoqmed.media.window import Pixels, evenly, grey_to_rgb, robust, stretch


def load(path: Path, count: int) -> Pixels:
    """At most `count` slices -> [N, H, W, 3]."""

    def choose(total: int) -> list[int]:
        return list(evenly(total, count))

    if nifti.is_nifti(path):
        stack = dicom.Slices(nifti.slices(path, choose))
    elif dicom.is_dicom(path):
        stack = dicom.slices(path, choose)
    else:
        raise refused("the volume is of no known kind", path, "a folder of DICOM slices, a DICOM file or NIfTI")
    if stack.values.ndim == 4:
        return stack.values
    grey = stretch(stack.values, *(stack.window or robust(stack.values, path)))
    return grey_to_rgb(255 - grey if stack.inverted else grey)
