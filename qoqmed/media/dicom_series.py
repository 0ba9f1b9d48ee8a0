"""The frames of a DICOM file or series: found, checked and put in the order of their places, from headers alone.

Rules: sorted by position along the slice normal, else by instance number, else by file name; frames of one file by
the positions of their functional groups, else as stored. Several series, sizes or directions, two slices at one place
and mosaics are refused. A tilted gantry (slices not straight above one another) is measured; see `dicom`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qoqmed.media import planes
from qoqmed.media.nifti import MAX_VOXELS
from qoqmed.media.refusals import refused

GAP_MM = 1e-3  # slices closer than this are at one place
EVEN = 0.02  # of the gap: how far gaps of a series that can be cut across may differ
STRAIGHT_DEGREES = 0.5
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])


@dataclass(frozen=True)
class Frame:
    """One picture of a file. header: the file's dataset without its pixels."""

    path: Path
    index: int
    header: Any

    def macro(self, name: str) -> Any:
        """The item of a functional group that holds for this frame; where there is none, the header itself."""
        mine = self.header.get("PerFrameFunctionalGroupsSequence")
        holders = [mine[self.index]] if mine and self.index < len(mine) else []
        for holder in (*holders, *(self.header.get("SharedFunctionalGroupsSequence") or ())[:1]):
            if holder.get(name):
                return holder.get(name)[0]
        return self.header

    @property
    def axes(self) -> Any:
        """Directions of the rows and of the columns [6], in LPS; None where not given."""
        return self.macro("PlaneOrientationSequence").get("ImageOrientationPatient")

    @property
    def position(self) -> Any:
        """Of the first pixel, in millimetres LPS; None where not given."""
        return self.macro("PlanePositionSequence").get("ImagePositionPatient")


def ordered(headers: Sequence[tuple[Path, Any]], path: Path) -> list[Frame]:
    """All frames in the order of their places."""
    for file, header in headers:
        _check(file, header)
    if len({(header.Rows, header.Columns, header.get("SeriesInstanceUID")) for _, header in headers}) > 1:
        raise refused("the folder holds several series or sizes", path, "one series", "give each its own folder")
    if len(headers) == 1:
        file, header = headers[0]
        frames = [Frame(file, index, header) for index in range(_count(header))]
        if all(frame.macro("PlanePositionSequence") is header for frame in frames):
            return frames
    elif any(_count(header) > 1 for _, header in headers):
        raise refused("the folder holds several files of several frames each", path)
    else:
        frames = [Frame(file, 0, header) for file, header in headers]
    order = np.argsort(_places(frames, path), kind="stable")
    return [frames[place] for place in order]


def _count(header: Any) -> int:
    return int(header.get("NumberOfFrames") or 1)


def _check(file: Path, header: Any) -> None:
    if "Rows" not in header or "Columns" not in header:
        raise refused(f"the DICOM file holds no image ({header.get('Modality', 'no modality')})", file)
    frames, samples = _count(header), int(header.get("SamplesPerPixel") or 1)
    shape = (int(header.Rows), int(header.Columns), frames, samples)
    if min(shape) < 1 or np.prod(shape, dtype=object) > MAX_VOXELS:
        claim = " x ".join(str(side) for side in shape)
        raise refused(f"the header claims {claim} values", file, expected=f"1 to {MAX_VOXELS}")
    if "MOSAIC" in header.get("ImageType", ()):
        raise refused("the file is a mosaic of slices", file, mend="convert it to NIfTI")


def _places(frames: Sequence[Frame], path: Path) -> Sequence[float]:
    """A number a slice that grows along the series."""
    if not located(frames):
        numbers = [frame.header.get("InstanceNumber") for frame in frames]
        return range(len(frames)) if None in numbers else [float(number) for number in numbers]
    axes = np.array([frame.axes for frame in frames], dtype=np.float64)  # [N, 6]
    if not np.abs(axes - axes[0]).max() <= 0.01:
        raise refused("the folder's slices lie in different directions", path, "parallel slices")
    places = _positions(frames) @ np.cross(axes[0, :3], axes[0, 3:])
    if len(places) > 1 and not np.diff(np.sort(places)).min() >= GAP_MM:
        raise refused("several slices lie at one place (time points?)", path, mend="give each its own folder")
    return [float(place) for place in places]


def located(frames: Sequence[Frame]) -> bool:
    """Whether every frame says where it lies."""
    return all(frame.position is not None and frame.axes is not None for frame in frames)


def _positions(frames: Sequence[Frame]) -> npt.NDArray[np.float64]:
    return np.array([frame.position for frame in frames], dtype=np.float64)  # [N, 3]


def grid(frames: Sequence[Frame], path: Path) -> planes.Grid:
    """Stored axes: along a row, along a column, from slice to slice. A lone slice, or gaps that differ: `crossable`."""
    if not located(frames):
        raise refused("the file does not say where its slices lie, so they have no axis", path, mend="axis: acquired")
    axes = np.array(frames[0].axes, dtype=np.float64)
    normal = np.cross(axes[:3], axes[3:])
    spacing = frames[0].macro("PixelMeasuresSequence").get("PixelSpacing") or (1.0, 1.0)
    places = _positions(frames) @ normal
    gap = float((places[-1] - places[0]) / (len(frames) - 1)) if len(frames) > 1 else 1.0
    columns = np.stack([axes[:3] * float(spacing[1]), axes[3:] * float(spacing[0]), normal * gap], axis=1)
    affine = np.eye(4)
    affine[:3, :3] = LPS_TO_RAS @ columns
    shape = (int(frames[0].header.Columns), int(frames[0].header.Rows), len(frames))
    return planes.grid(affine, shape, path)


def require_crossable(frames: Sequence[Frame], plane: str, path: Path) -> None:
    """Refuses to cut across slices that do not make one straight and even block."""
    mend = "axis: acquired shows the slices as they were taken"
    if len(frames) < 2 or "PixelSpacing" not in frames[0].macro("PixelMeasuresSequence"):
        raise refused(f"a {plane} view needs several slices and their pixels' spacing", path, mend=mend)
    tilt = tilt_degrees(frames)
    if tilt > STRAIGHT_DEGREES:
        raise refused(
            f"the slices are sheared by {tilt:.1f} degrees (a tilted gantry): no {plane} view", path, "", mend
        )
    gaps = np.linalg.norm(np.diff(_positions(frames), axis=0), axis=1)
    if np.ptp(gaps) > EVEN * np.median(gaps):
        between = f"{gaps.min():g} to {gaps.max():g} mm"
        raise refused(f"the gaps between slices differ ({between}): no {plane} view", path, "even gaps", mend)


def tilt_degrees(frames: Sequence[Frame]) -> float:
    """The angle between the slices' normal and the line from the first to the last."""
    axes, positions = np.array(frames[0].axes, dtype=np.float64), _positions(frames)
    line, normal = positions[-1] - positions[0], np.cross(axes[:3], axes[3:])
    along = abs(float(line @ normal))
    return float(np.degrees(np.arctan2(np.linalg.norm(np.cross(line, normal)), along)))
