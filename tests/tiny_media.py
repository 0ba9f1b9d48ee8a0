"""Small valid files of every spatial kind, written by the libraries that define them, and the door that reads them."""

from __future__ import annotations

import numpy as np
import pytest

from qoqmed.media import frames
from qoqmed.types import Medium


def load(root, name, modality="volume", frames_wanted=4, **options):
    return frames.load(Medium(modality, name, options=options), root, frames_wanted)


def greys(pictures):
    """The first pixel of each."""
    return [int(picture[0, 0, 0]) for picture in pictures]


def nifti_affine(axes, spacing_mm=(1, 1, 1)):
    """axes: where the stored axes point to, as in "RAS"."""
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for stored, letter in enumerate(axes):
        body = next(i for i, pair in enumerate(("RL", "AP", "SI")) if letter in pair)
        affine[body, stored] = spacing_mm[stored] if letter in "RAS" else -spacing_mm[stored]
    return affine


def write_nifti(path, values, axes="RAS", dtype=np.int16, spacing_mm=(1, 1, 1), slice_axis=None):
    nibabel = pytest.importorskip("nibabel")
    file = nibabel.Nifti1Image(values.astype(dtype), nifti_affine(axes, spacing_mm))
    assert nibabel.aff2axcodes(file.affine) == tuple(axes)
    if slice_axis is not None:
        file.header.set_dim_info(slice=slice_axis)
    nibabel.save(file, path)
    return path


def write_dicom(path, pixels, place=0, **tags):
    """pixels: [H, W] or frames [N, H, W], int16; or [H, W, 3] with SamplesPerPixel=3."""
    pytest.importorskip("pydicom")
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, f"1.2.3.{place + 1}"
    meta.TransferSyntaxUID = tags.pop("TransferSyntaxUID", ExplicitVRLittleEndian)
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID, data.SeriesInstanceUID = CTImageStorage, f"1.2.3.{place + 1}", "1.2.4"
    if tags.get("SamplesPerPixel") == 3:
        data.Rows, data.Columns, data.PlanarConfiguration = *pixels.shape[:2], 0
    else:
        data.Rows, data.Columns = pixels.shape[-2:]
        if pixels.ndim == 3:
            data.NumberOfFrames = len(pixels)
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation = 15, 1
    data.ImagePositionPatient, data.ImageOrientationPatient = [0, 0, place], [1, 0, 0, 0, 1, 0]
    data.PixelData = pixels.astype(np.uint8 if tags.get("BitsAllocated") == 8 else np.int16).tobytes()
    for name, value in tags.items():
        setattr(data, name, value)
    data.save_as(path)
    return data


def write_video(path, count=20, side=32, width=None):
    """Frame i is of grey 20 + 10 * i; 10 frames a second."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height = width or side, side
        stream.pix_fmt = "yuv420p"
        for i in range(count):
            grey = np.full((side, width or side, 3), 10 * i + 20, dtype=np.uint8)
            grey[: side // 4] = 0  # a dark strip at the top
            for packet in stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
