"""DICOM waveforms (12-lead ECG storage and its kin) through pydicom.

The first multiplex group of original samples that holds all the wanted leads is read: not a derived median beat.
Leads by the code meaning of their source, amplitudes by sensitivity, correction factor and baseline (PS3.3 C.10.9).
Padding counts as NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from qoqmed.media import dicom_header
from qoqmed.media.ecg_leads import key
from qoqmed.media.ecg_request import Request
from qoqmed.media.refusals import need, refused

MAX_BYTES = 2**28
PLAIN = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1")  # little endian, not deflated
LINEAR = ("SB", "UB", "SS", "US", "SL", "UL")  # the others are companded


def read(request: Request) -> tuple[npt.NDArray[Any], float]:
    """-> the window of the wanted leads [L, T] in millivolts, and its rate in Hz."""
    pydicom, waveforms, path = need("pydicom", "imaging"), need("pydicom.waveforms", "imaging"), request.path
    if path.stat().st_size > MAX_BYTES:
        raise refused(f"the file has {path.stat().st_size} bytes", path, f"at most {MAX_BYTES}")
    syntax = need("pydicom.filereader", "imaging").read_file_meta_info(path).get("TransferSyntaxUID")
    if syntax not in PLAIN:
        raise refused(f"the DICOM file is encoded as {syntax}", path, "plain little endian")
    data = pydicom.dcmread(path, specific_tags=list(dicom_header.WAVEFORM_FIELDS))
    groups = list(data.get("WaveformSequence") or ())
    originals = [i for i, group in enumerate(groups) if group.get("WaveformOriginality") != "DERIVED"]
    if not originals:
        raise refused(f"the DICOM file holds no waveform ({data.get('Modality', 'no modality')})", path)
    names = {i: [_name(channel) for channel in groups[i].ChannelDefinitionSequence] for i in originals}
    held = {i: request.held(names[i]) for i in originals}
    index = next((i for i in originals if _holds(request, held[i])), originals[0])
    chosen, group = request.columns(held[index]), groups[index]
    kind = group.WaveformSampleInterpretation
    if len(held[index]) != group.NumberOfWaveformChannels or kind not in LINEAR:
        raise refused(f"the waveform's header is at odds with itself, or its samples are companded ({kind})", path)
    raw = waveforms.multiplex_array(data, index, as_raw=True)  # [T, channels]
    rate_hz = request.rate(float(group.SamplingFrequency))
    start, stop = request.span(rate_hz, len(raw))
    window = _without_padding(raw[start:stop], group.get("WaveformPaddingValue"))
    channels, pairs = group.ChannelDefinitionSequence, zip(chosen, request.leads, strict=True)
    return np.stack([_millivolts(window[:, c], channels[c], lead, request) for c, lead in pairs]), rate_hz


def _name(channel: Any) -> str:
    (source, *_) = channel.ChannelSourceSequence
    return str(source.get("CodeMeaning") or source.get("CodeValue"))


def _holds(request: Request, held: Sequence[str]) -> bool:
    return {key(lead) for lead in request.leads} <= {key(name) for name in held}


def _without_padding(raw: npt.NDArray[Any], padding: Any) -> npt.NDArray[np.float64]:
    values = raw.astype(np.float64)
    if isinstance(padding, bytes) and len(padding) >= raw.dtype.itemsize:
        values[raw == np.frombuffer(padding[: raw.dtype.itemsize], raw.dtype)[0]] = np.nan
    return values


def _millivolts(values: npt.NDArray[Any], channel: Any, lead: str, request: Request) -> npt.NDArray[np.float64]:
    """[T] stored -> [T] millivolts."""
    sensitivity = channel.get("ChannelSensitivity")
    if sensitivity is None:
        raise refused(f"lead {lead} has no sensitivity: its samples have no unit", request.path)
    (unit, *_) = channel.ChannelSensitivityUnitsSequence
    factor = float(sensitivity) * float(channel.get("ChannelSensitivityCorrectionFactor") or 1)
    baseline = float(channel.get("ChannelBaseline") or 0)
    return (values.astype(np.float64) * factor + baseline) * request.scale(str(unit.CodeValue), lead)
