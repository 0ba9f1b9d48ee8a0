"""Electrocardiograms from WFDB records, and the fixed shape that encoders read.

Rules: leads by name (case does not matter), in the order asked for; millivolts whatever the record's unit. Only the
first `window_s` seconds are read; a shorter record is padded with zeros at its end. Resampled by FFT after the crop.
NaN in what is read is refused. An array in memory is at the wanted rate, and has the 12 standard leads or the wanted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qoqmed.media.refusals import decoding, need, refused

Signal = npt.NDArray[np.float32]  # [L, T] millivolts

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
MILLIVOLTS = {"mv": 1.0, "uv": 1e-3, "µv": 1e-3, "μv": 1e-3, "nv": 1e-6, "v": 1e3}
MAX_SAMPLES = 2**27  # leads x samples that a header may claim


def load(path: Path, leads: Sequence[str] = LEADS, rate_hz: float = 250.0, window_s: float = 10.0) -> Signal:
    """A WFDB record (path without its ending) -> [L, round(rate_hz * window_s)]."""
    wfdb, scipy_signal = need("wfdb", "ecg"), need("scipy.signal", "ecg")
    with decoding("ECG record", path):
        header = wfdb.rdheader(str(path))
        _check(header, path)
        chosen = _channels(header, leads, path)
        read = min(int(header.sig_len), math.ceil(window_s * header.fs))
        record = wfdb.rdrecord(str(path), sampto=read, channels=sorted(set(chosen)))
        stored = {name.casefold(): column for column, name in reversed(list(enumerate(record.sig_name)))}
        columns = [stored[lead.casefold()] for lead in leads]
        scales = [_millivolts(record.units[column], lead, path) for column, lead in zip(columns, leads, strict=True)]
        signal = np.stack([record.p_signal[:, c] * scale for c, scale in zip(columns, scales, strict=True)])
        require_finite(signal, leads, path)
        if header.fs != rate_hz:
            signal = scipy_signal.resample(signal, max(1, round(read * rate_hz / header.fs)), axis=1)
        return fit(signal.astype(np.float32), round(rate_hz * window_s))


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
    standard = [lead.casefold() for lead in LEADS]
    return signal[[standard.index(lead.casefold()) for lead in leads]]


def require_finite(signal: npt.NDArray[Any], leads: Sequence[str], path: str | Path) -> None:
    """Refuses NaN and infinities, naming each lead and how many samples of it are bad."""
    bad = (~np.isfinite(signal)).sum(1)
    if bad.any():
        counts = ", ".join(f"{lead}: {count}" for lead, count in zip(leads, bad, strict=True) if count)
        raise refused(f"samples are NaN or infinite ({counts}, of {signal.shape[1]})", path)


def _check(header: Any, path: Path) -> None:
    """Looks at the header only, before any signal file is opened."""
    if not getattr(header, "sig_name", None):
        raise refused("the record has no signals, or has several segments", path, mend="convert it to one segment")
    if not header.sig_len or not header.fs or header.fs <= 0:
        raise refused(f"the header gives {header.sig_len} samples at {header.fs} Hz", path)
    if header.sig_len * header.n_sig > MAX_SAMPLES:
        raise refused(f"the header claims {header.n_sig} x {header.sig_len} samples", path, f"at most {MAX_SAMPLES}")
    for name in header.file_name:
        beside = path.parent / name
        if Path(name).name != name or (beside.is_symlink() and not name.startswith(path.name + ".")):
            raise refused(f"the header names the signal file {name!r}", path, "a file beside the header")


def _channels(header: Any, leads: Sequence[str], path: Path) -> list[int]:
    present = [str(name).casefold() for name in header.sig_name]
    missing = [lead for lead in leads if lead.casefold() not in present]
    if missing:
        held = ", ".join(str(name) for name in header.sig_name)
        raise refused(
            f"leads are missing: {', '.join(missing)} (the record has {held})", path, mend="leave the row out (unless)"
        )
    return [present.index(lead.casefold()) for lead in leads]


def _millivolts(unit: str, lead: str, path: Path) -> float:
    scale = MILLIVOLTS.get(str(unit).strip().casefold())
    if scale is None:
        raise refused(f"lead {lead} is in {unit!r}", path, expected="mV, uV, nV or V")
    return scale
