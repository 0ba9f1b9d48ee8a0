"""What is read of a DICOM header: the fields on this list and no others, so that names, dates and numbers of patients
never reach the memory of a run, its errors or its traces.

The list holds what tells the pixels apart, in order and in unit. Items of sequences on it are read whole: those of
enhanced images hold frames' places, spacings and windows. A file that says of itself that its pixels show more
(BurnedInAnnotation, PS3.3 C.7.6.1; RecognizableVisualFeatures, C.12.1) is read and warned of.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

FIELDS = (
    "SpecificCharacterSet", "ImageType", "SOPClassUID", "SOPInstanceUID", "Modality", "SeriesInstanceUID",
    "InstanceNumber", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "ImagerPixelSpacing",
    "SliceThickness", "SpacingBetweenSlices", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration",
    "NumberOfFrames", "FrameIncrementPointer", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit",
    "PixelRepresentation", "SmallestImagePixelValue", "LargestImagePixelValue", "PixelPaddingValue",
    "PixelPaddingRangeLimit", "BurnedInAnnotation", "RecognizableVisualFeatures", "WindowCenter", "WindowWidth",
    "VOILUTFunction", "RescaleIntercept", "RescaleSlope", "RescaleType", "ModalityLUTSequence", "VOILUTSequence",
    "RedPaletteColorLookupTableDescriptor", "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor", "AlphaPaletteColorLookupTableDescriptor",
    "RedPaletteColorLookupTableData", "GreenPaletteColorLookupTableData", "BluePaletteColorLookupTableData",
    "AlphaPaletteColorLookupTableData", "SegmentedRedPaletteColorLookupTableData",
    "SegmentedGreenPaletteColorLookupTableData", "SegmentedBluePaletteColorLookupTableData",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths", "FloatPixelData", "DoubleFloatPixelData", "PixelData",
)  # fmt: skip
WAVEFORM_FIELDS = ("SpecificCharacterSet", "SOPClassUID", "SOPInstanceUID", "Modality", "WaveformSequence")  # of an ECG
TELLING = {"BurnedInAnnotation": "YES", "RecognizableVisualFeatures": "YES"}


def warn_of_what_shows(header: Any, path: Path) -> None:
    """A warning where the file says that its pixels may show who the patient is."""
    said = [name for name, value in TELLING.items() if str(header.get(name) or "").strip().upper() == value]
    if said:
        warnings.warn(f"the DICOM file {path} may show who the patient is: {' and '.join(said)} is YES", stacklevel=2)
