"""Labels from a picture that numbers the class of each pixel, as segmentations of tissue are published."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qoqmed.errors import DataError, MediaError, Problem
from qoqmed.media.image import opened
from qoqmed.media.masks import FORMATS
from qoqmed.media.paths import resolve
from qoqmed.preparing.binding import filled
from qoqmed.preparing.marked import Marked, Reader, Space, require_inside
from qoqmed.preparing.tables import Row


def pixels(
    root: Path,
    space: Space,
    path: Any,
    map: Mapping[Any, Any],
    outside: Sequence[int] = (0,),
    least: float = 0.0,
) -> Reader:
    """path: of the picture, a template or several (the first that exists). map: pixel value -> label.

    A label holds where its share of the annotated pixels is above 0 and at least `least` (0 to 1). outside: values of
    pixels that nobody annotated. Values that the map has not are annotated, and have no label.
    """
    templates = [str(one) for one in (path if isinstance(path, list) else [path])]
    names = {int(value): str(label) for value, label in map.items()}
    require_inside(names.values(), space)
    if not 0 <= least <= 1:
        raise DataError(Problem("'least' is no share of the pixels", "labels.least", f"{least}", "0 to 1"))

    def read(row: Row) -> Marked:
        """Of the row's picture."""
        found = next((one for one in (_path(root, filled(text, row, "labels")) for text in templates) if one), None)
        if found is None:
            return Marked(why="no picture of its labels")
        shares = _shares(_numbers(found), names, set(outside))
        return Marked(tuple(label for label in space if shares[label] > 0 and shares[label] >= least))

    return read


def _shares(numbers: npt.NDArray[np.integer[Any]], names: Mapping[int, str], outside: set[int]) -> dict[str, float]:
    """Label -> its share of the annotated pixels."""
    values, counts = np.unique(numbers, return_counts=True)
    annotated = {int(value): int(count) for value, count in zip(values, counts, strict=True) if value not in outside}
    shares: dict[str, float] = defaultdict(float)
    for value, count in annotated.items():
        if value in names:
            shares[names[value]] += count / sum(annotated.values())
    return shares


def _path(root: Path, text: str) -> Path | None:
    try:  # `resolve` says what is missing or leaves the root by an exception alone
        found = resolve(root, text)
    except MediaError:
        return None
    return found if found.is_file() else None


def _numbers(path: Path) -> npt.NDArray[np.integer[Any]]:
    """[H, W]; of a picture in colours the channels have to agree, as in a grey one that was saved so."""
    with opened(path, FORMATS) as image:
        values = np.asarray(image)
    if values.ndim == 3 and (values[..., :3] == values[..., :1]).all():
        values = values[..., 0]
    if values.ndim != 2 or values.dtype.kind not in "ui":
        what = "the picture of labels has no one whole number a pixel"
        raise DataError(Problem(what, str(path), f"{values.dtype} {values.shape}", "[H, W] of whole numbers"))
    return values
