"""WFDB records: a header `.hea` and its signal files beside it. Only the samples of the window are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qoqmed.media.ecg_request import Request
from qoqmed.media.refusals import need, refused

MAX_SAMPLES = 2**27  # leads x samples that a header may claim
MAX_HEADER_BYTES = 2**20
MAX_LINE = 2**10  # longer lines keep wfdb's patterns busy


def read(request: Request) -> tuple[npt.NDArray[Any], float]:
    """-> the window of the wanted leads [L, T] in millivolts, and its rate in Hz."""
    wfdb, path = need("wfdb", "ecg"), request.path
    _check_text(path)
    header = wfdb.rdheader(str(path))
    _check(header, path)
    rate_hz = request.rate(header.fs)
    chosen = request.columns(request.held(header.sig_name))
    scales = [request.scale(header.units[c], lead) for c, lead in zip(chosen, request.leads, strict=True)]
    start, stop = request.span(rate_hz, int(header.sig_len))
    taken = sorted(chosen)
    record = wfdb.rdrecord(str(path), sampfrom=start, sampto=stop, channels=taken)
    signal = np.stack([record.p_signal[:, taken.index(c)] * scale for c, scale in zip(chosen, scales, strict=True)])
    return signal, rate_hz


def _check_text(path: Path) -> None:
    header = path.with_name(path.name + ".hea")
    if not header.is_file():
        known = "a WFDB record (name it without its ending), .csv, .tsv, .npy, or a DICOM waveform"
        raise refused("the file is no ECG of a known kind", path, known)
    if header.stat().st_size > MAX_HEADER_BYTES:
        raise refused(f"the header has {header.stat().st_size} bytes", path, f"at most {MAX_HEADER_BYTES}")
    lines = [line for line in header.read_bytes().splitlines() if not line.lstrip().startswith(b"#")]
    if any(len(line) > MAX_LINE for line in lines):
        raise refused("the header has a line without end", path, f"at most {MAX_LINE} characters")
    if not all(line.isascii() for line in lines):  # wfdb leaves such letters out: microvolts would become volts
        raise refused("the header's lines are not plain ASCII", path, mend="write uV for the unit with the Greek mu")


def _check(header: Any, path: Path) -> None:
    """Looks at the header only, before any signal file is opened."""
    if not getattr(header, "sig_name", None):
        raise refused("the record has no signals, or has several segments", path, mend="convert it to one segment")
    if not header.sig_len or not header.fs:
        raise refused(f"the header gives {header.sig_len} samples at {header.fs} Hz", path)
    if header.n_sig != len(header.sig_name):
        raise refused(f"the header claims {header.n_sig} signals and describes {len(header.sig_name)}", path)
    longest = header.sig_len + max(skew or 0 for skew in header.skew)
    if longest * sum(frame or 1 for frame in header.samps_per_frame) > MAX_SAMPLES:
        raise refused(f"the header claims {header.n_sig} x {longest} samples", path, f"at most {MAX_SAMPLES}")
    for name in header.file_name:
        beside = path.parent / name
        if Path(name).name != name or (beside.is_symlink() and not name.startswith(path.name + ".")):
            raise refused(f"the header names the signal file {name!r}", path, "a file beside the header")
