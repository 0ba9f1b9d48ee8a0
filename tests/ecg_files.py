"""Writers of small ECG files for tests. signals: [L, T], in the unit named."""

from __future__ import annotations

import numpy as np
import pytest

from qoqmed.media.ecg_leads import LEADS

pydicom = pytest.importorskip("pydicom")
wfdb = pytest.importorskip("wfdb")

RATE_HZ = 500


def sine(frequency_hz, seconds=10.0, rate_hz=RATE_HZ):
    return np.sin(2 * np.pi * frequency_hz * np.arange(round(seconds * rate_hz)) / rate_hz)


def twelve(seconds=10.0, rate_hz=RATE_HZ):
    """Lead i of the twelve is a sine of 5 Hz with an amplitude of (i + 1) / 10 mV."""
    return np.stack([(i + 1) / 10 * sine(5, seconds, rate_hz) for i in range(12)])


def write_record(folder, signals, leads=LEADS, units="mV", rate_hz=RATE_HZ, name="r"):
    wfdb.wrsamp(
        name,
        fs=rate_hz,
        units=[units] * len(leads),
        sig_name=list(leads),
        p_signal=np.asarray(signals, dtype=np.float64).T,
        fmt=["16"] * len(leads),
        write_dir=str(folder),
    )
    return folder / name


def write_csv(path, signals, names=LEADS, times=None, delimiter=",", decimals=4):
    """names: None leaves the first line out. times: (name, values) of a first column."""
    columns = [*(() if times is None else (times[1],)), *signals]
    head = [] if names is None else [*(() if times is None else (times[0],)), *names]
    lines = [delimiter.join(f"{value:.{decimals}f}" for value in row) for row in zip(*columns, strict=True)]
    path.write_text("\n".join([delimiter.join(head)] * bool(head) + lines) + "\n")
    return path


def write_npy(path, array):
    np.save(path, array, allow_pickle=False)
    return path


def group(signals, names=LEADS, rate_hz=RATE_HZ, sensitivity=2.5, unit="uV", originality="ORIGINAL", baseline=0):
    """A multiplex group of 16-bit samples; signals in `unit`."""
    raw = np.round((np.asarray(signals) - baseline) / sensitivity).astype("<i2")
    item = pydicom.Dataset()
    item.WaveformOriginality = originality
    item.NumberOfWaveformChannels, item.NumberOfWaveformSamples = raw.shape
    item.SamplingFrequency = str(rate_hz)
    item.WaveformBitsAllocated, item.WaveformSampleInterpretation = 16, "SS"
    item.ChannelDefinitionSequence = []
    for name in names:
        source, units, channel = (pydicom.Dataset() for _ in range(3))
        source.CodeValue, source.CodingSchemeDesignator, source.CodeMeaning = "2:1", "MDC", name
        units.CodeValue, units.CodingSchemeDesignator, units.CodeMeaning = unit, "UCUM", unit
        channel.ChannelSourceSequence, channel.ChannelSensitivityUnitsSequence = [source], [units]
        channel.ChannelSensitivity, channel.ChannelSensitivityCorrectionFactor = str(sensitivity), "1"
        channel.ChannelBaseline, channel.WaveformBitsStored = str(baseline), 16
        item.ChannelDefinitionSequence.append(channel)
    item.WaveformData = raw.T.tobytes()
    return item


def write_dicom(path, groups, syntax=pydicom.uid.ExplicitVRLittleEndian):
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.9.1.1"
    data.SOPInstanceUID = "1.2.3"
    data.Modality = "ECG"
    data.WaveformSequence = groups
    data.save_as(path, enforce_file_format=True)
    return path
