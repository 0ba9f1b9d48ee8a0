"""One DICOM frame's pixels through the modality LUT (PS3.3 C.11.1) and, where asked, the VOI LUT (C.11.2).

A VOI LUT Sequence goes before window centre and width, as in pydicom; the first of several windows. Windows of several
frames: the medians of their centres and widths, and the first one's function (LINEAR, LINEAR_EXACT, SIGMOID).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qoqmed.media.dicom_series import Frame
from qoqmed.media.refusals import need, refused
from qoqmed.media.window import Window

CT_CLASSES = {  # CT, Enhanced CT, Legacy Converted Enhanced CT Image Storage
    "1.2.840.10008.5.1.4.1.1.2",
    "1.2.840.10008.5.1.4.1.1.2.1",
    "1.2.840.10008.5.1.4.1.1.2.2",
}
JPEG_12_BIT = "1.2.840.10008.1.2.4.51"


@dataclass
class Reader:
    """Decodes frames. Holds one file's dataset, so that the frames of a file are read from disk once."""

    read: Any  # path -> dataset
    voi: bool = False
    path: Path | None = None
    data: Any = field(default=None, repr=False)

    def __call__(self, frame: Frame) -> npt.NDArray[Any]:
        """[H, W] float32 after the LUTs, or [H, W, 3] uint8."""
        if self.path != frame.path:
            self.path, self.data = frame.path, self.read(frame.path)
            _require_decoder(self.data, frame.path)
        pixels = need("pydicom.pixels", "imaging")
        values = pixels.pixel_array(self.data, index=frame.index)
        if is_colour(frame.header):
            return _colour(values, self.data, pixels)
        values = _modality(values, frame)
        if self.voi and frame.header.get("VOILUTSequence"):
            values = _looked_up(values, frame.header.VOILUTSequence[0], frame.header)
        return np.asarray(values, dtype=np.float32)


def is_colour(header: Any) -> bool:
    return header.get("PhotometricInterpretation") == "PALETTE COLOR" or int(header.get("SamplesPerPixel") or 1) > 1


def _colour(values: npt.NDArray[Any], data: Any, pixels: Any) -> npt.NDArray[np.uint8]:
    bits = int(data.BitsStored)
    if data.PhotometricInterpretation == "PALETTE COLOR":
        values = pixels.apply_color_lut(values, data)
        bits = 8 * values.dtype.itemsize
    return np.asarray(values[..., :3] >> max(0, bits - 8), dtype=np.uint8)


def _modality(values: npt.NDArray[Any], frame: Frame) -> npt.NDArray[Any]:
    item = frame.macro("PixelValueTransformationSequence")
    if item.get("ModalityLUTSequence"):
        return _looked_up(values, item.ModalityLUTSequence[0], frame.header)
    slope, intercept = item.get("RescaleSlope"), item.get("RescaleIntercept")
    return values if slope is None or intercept is None else values * float(slope) + float(intercept)


def _looked_up(values: npt.NDArray[Any], item: Any, header: Any) -> npt.NDArray[Any]:
    """Values below the first that the table maps get its first entry, those beyond it the last."""
    entries, first, _ = (int(number) for number in item.LUTDescriptor)
    entries, table = entries or 2**16, item.LUTData
    if isinstance(table, bytes):  # VR OW
        wide = len(table) >= 2 * entries
        table = np.frombuffer(table, dtype=("<u2" if header.original_encoding[1] else ">u2") if wide else np.uint8)
    table = np.asarray(table)[:entries]
    places = np.rint(values).astype(np.int64) - first
    return np.asarray(table[places.clip(0, len(table) - 1)])


def window(frames: Sequence[Frame]) -> Window | None:
    """The window in which the files want to be shown; a width of nothing is none."""
    lut = frames[0].header.get("VOILUTSequence")
    if lut:
        return Window(0.0, float(2 ** int(lut[0].LUTDescriptor[2]) - 1))
    items = [frame.macro("FrameVOILUTSequence") for frame in frames]
    centres, widths = ([_first(item.get(name)) for item in items] for name in ("WindowCenter", "WindowWidth"))
    if None in centres or None in widths:
        return None
    centre, width = float(np.median(np.array(centres))), float(np.median(np.array(widths)))
    curve = str(items[0].get("VOILUTFunction") or "LINEAR")
    if not np.isfinite([centre, width]).all() or min(width for width in widths if width is not None) <= 0:
        return None
    if curve == "LINEAR":  # C.11.2.1.2.1: a width of 1 is a threshold
        return Window(centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2) if width > 1 else None
    return Window(centre - width / 2, centre + width / 2, sigmoid=curve == "SIGMOID")


def _first(value: Any) -> float | None:
    """A header's number; the first where it offers several windows."""
    if value is None or value == "":
        return None
    return float(value) if not hasattr(value, "__len__") or isinstance(value, str) else float(value[0])


def is_hounsfield(frame: Frame) -> bool:
    """A CT image whose rescaled values are in HU, or in a unit that it does not name (CT: HU)."""
    item = frame.macro("PixelValueTransformationSequence")
    is_ct = frame.header.get("Modality") == "CT" or frame.header.get("SOPClassUID") in CT_CLASSES
    return is_ct and "RescaleSlope" in item and (item.get("RescaleType") or "HU") == "HU"


def _require_decoder(data: Any, path: Path) -> None:
    """Says what to install where pydicom has no plugin for the file's compression."""
    syntax = data.file_meta.TransferSyntaxUID
    if not syntax.is_compressed or not syntax.is_encapsulated:
        return
    plugins = set(need("pydicom.pixels", "imaging").get_decoder(syntax).available_plugins)
    if syntax == JPEG_12_BIT and int(data.get("BitsStored") or 8) > 8:
        plugins -= {"pillow"}  # which decodes 8 bits alone
    if not plugins:
        package = "pylibjpeg pylibjpeg-openjpeg" if "2000" in syntax.name else "pylibjpeg pylibjpeg-libjpeg"
        bits = f"{data.get('BitsStored')}-bit "
        raise refused(f"no decoder of {bits}{syntax.name} is installed", path, mend=f"pip install {package}")
