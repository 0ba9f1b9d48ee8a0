"""Electrocardiograms from files (WFDB, CSV, NPY, DICOM waveforms), and the fixed shape that encoders read.

Rules: leads by name, in the order asked for; millivolts whatever the file's unit. Only `window_s` seconds from
`start_s` on (0 where the row says nothing) are read; a shorter record is padded with zeros at its end. Resampled by
FFT after the crop. NaN, infinities and more than a volt in what is read are refused.
An array in memory is at the wanted rate, and has the 12 standard leads or the wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qoqmed.media import ecg_dicom, ecg_tables, ecg_wfdb
from qoqmed.media.ecg_leads import LEADS as LEADS  # encoders ask for them here
from qoqmed.media.ecg_leads import key
from qoqmed.media.ecg_request import Request, request
from qoqmed.media.refusals import decoding, need, refused

Signal = npt.NDArray[np.float32]  # [L, T] millivolts
Reader = Callable[[Request], tuple[npt.NDArray[Any], float]]

MAX_MV = 1e3  # electrode offsets reach a third of it; more is another unit
TEXT_ENDINGS = (".csv", ".tsv", ".txt")


def load(
    path: Path,
    leads: Sequence[str] = LEADS,
    rate_hz: float = 250.0,
    window_s: float = 10.0,
    options: Mapping[str, Any] = {},
) -> Signal:
    """An ECG file -> float32 [L, round(rate_hz * window_s)] millivolts.

    path: a file, or a WFDB record without its ending. options, by the file's row: rate_hz, unit and leads (names of
    its channels) where the file does not say them; start_s, where the window begins. Raises MediaError.
    """
    asked = request(path, leads, window_s, options)
    with decoding("ECG record", path):
        signal, stored_hz = _reader(path)(asked)
        require_finite(signal, leads, path)
        if np.abs(signal).max(initial=0) > MAX_MV:
            what = f"the record has {np.abs(signal).max():.3g} mV"
            raise refused(what, path, f"at most {MAX_MV:g} mV", "check its unit")
        samples = max(1, round(signal.shape[1] * rate_hz / stored_hz))
        if samples != signal.shape[1]:
            signal = need("scipy.signal", "ecg").resample(signal, samples, axis=1)
        return fit(signal.astype(np.float32), round(rate_hz * window_s))


def _reader(path: Path) -> Reader:
    """By the file's first bytes, else by its ending, else WFDB."""
    if path.is_dir():
        raise refused("the path is a folder", path, "an ECG file, or a record's name without its ending")
    start = b""
    if path.is_file():
        with path.open("rb") as file:
            start = file.read(132)
    if start[128:] == b"DICM":
        return ecg_dicom.read
    if start.startswith(b"\x93NUMPY"):
        return ecg_tables.read_npy
    if start and path.suffix.lower() in TEXT_ENDINGS:
        return ecg_tables.read_csv
    return ecg_wfdb.read


def fit(signal: Signal, samples: int) -> Signal:
    """[L, T] -> [L, samples]: the first ones, or zeros after the last."""
    kept = signal[:, :samples]
    return np.pad(kept, ((0, 0), (0, samples - kept.shape[1])))


def pick_leads(signal: Signal, leads: Sequence[str]) -> Signal:
    """An array in memory -> the wanted leads of it."""
    if signal.ndim != 2 or signal.shape[0] not in (len(LEADS), len(leads)):
        raise refused(f"an ECG array has shape {signal.shape}", "array", f"[12, T] or [{len(leads)}, T]")
    if signal.shape[0] == len(leads):
        return signal
    standard = [key(lead) for lead in LEADS]
    return signal[[standard.index(key(lead)) for lead in leads]]


def require_finite(signal: npt.NDArray[Any], leads: Sequence[str], path: str | Path) -> None:
    """Refuses NaN and infinities, naming each lead and how many samples of it are bad."""
    bad = (~np.isfinite(signal)).sum(1)
    if bad.any():
        counts = ", ".join(f"{lead}: {count}" for lead, count in zip(leads, bad, strict=True) if count)
        raise refused(f"samples are NaN or infinite ({counts}, of {signal.shape[1]})", path)
