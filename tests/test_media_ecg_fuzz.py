"""Hostile ECG files: whatever the bytes, `ecg.load` gives a finite array of the right shape or one MediaError.

Files of every kind with bytes changed, cut, doubled or put in; headers written from hostile numbers and words.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from ecg_files import group, twelve, write_csv, write_dicom, write_npy, write_record
from hypothesis import given, settings
from hypothesis import strategies as st

from qoqmed.errors import MediaError
from qoqmed.media import ecg

SECONDS = 0.4
LEADS = ("I", "V6")
MANY = 500

numbers = st.sampled_from(
    [
        "0",
        "1",
        "-1",
        "2",
        "12",
        "250",
        "0.5",
        "1e9",
        "1e-9",
        "1e308",
        "9999999999999",
        "-2147483648",
        "nan",
        "inf",
        "16",
    ]
)
words = st.one_of(
    numbers, st.sampled_from(["I", "V6", "mV", "r.dat", "..", "/etc/passwd", "~", "r", "x", "µV", '"', ""])
)


@st.composite
def edits(draw):
    """Up to six changes of a file: (where, how many bytes go, what comes there)."""
    comes = st.one_of(st.binary(max_size=8), words.map(str.encode))
    return draw(st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 40), comes), min_size=1, max_size=6))


def edited(whole, changes):
    for where, goes, comes in changes:
        where %= len(whole) + 1
        whole = whole[:where] + comes + whole[where + goes :]
    return whole


def survives(path, options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of numpy and the readers, on nonsense
        try:
            signal = ecg.load(path, LEADS, 250, 1, options)
        except MediaError as error:
            assert len(error.problems) == 1 and error.problems[0].got
            return False
    assert signal.shape == (2, 250) and signal.dtype == np.float32 and np.isfinite(signal).all()
    return True


def whole_files(folder):
    """name -> bytes, and the options that each kind needs."""
    write_record(folder, twelve(SECONDS))
    write_csv(folder / "a.csv", twelve(SECONDS), times=("time_s", np.arange(200) / 500))
    write_csv(folder / "b.csv", twelve(SECONDS), None)
    write_npy(folder / "a.npy", twelve(SECONDS))
    median = group(1000 * twelve(SECONDS), originality="DERIVED")
    write_dicom(folder / "a.dcm", [median, group(1000 * twelve(SECONDS))])
    return {path.name: path.read_bytes() for path in folder.iterdir()}


with TemporaryDirectory() as made:
    WHOLE = whole_files(Path(made))
KINDS = {"r.hea": {}, "r.dat": {}, "a.csv": {}, "b.csv": {"rate_hz": 500}, "a.npy": {"rate_hz": 500}, "a.dcm": {}}


def load_edited(kind, changes):
    with TemporaryDirectory() as folder:
        for name in ("r.hea", "r.dat"):
            (Path(folder) / name).write_bytes(WHOLE[name])
        path = Path(folder) / kind
        path.write_bytes(edited(WHOLE[kind], changes))
        return survives(Path(folder) / "r" if kind.startswith("r.") else path, KINDS[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_whole_files_load(kind):
    assert load_edited(kind, [])


@pytest.mark.parametrize("kind", KINDS)
@given(edits())
def test_edited_files(kind, changes):
    assert load_edited(kind, changes) in (True, False)


@given(st.lists(st.lists(words, max_size=10).map(" ".join), max_size=6))
def test_headers_of_hostile_words(lines):
    check_header("\n".join(lines))


@given(st.lists(numbers, min_size=3, max_size=3), st.lists(st.tuples(*[numbers] * 9), min_size=2, max_size=2))
def test_headers_of_hostile_numbers(record, signals):
    lines = [
        f"r.dat {fmt}x{frame}:{skew}+{offset} {gain}({baseline})/mV 16 {zero} {first} {check} 0 {lead}"
        for lead, (fmt, frame, skew, offset, gain, baseline, zero, first, check) in zip(LEADS, signals, strict=True)
    ]
    check_header("\n".join([f"r 2 {' '.join(record)}", *lines]))


def check_header(text):
    with TemporaryDirectory() as folder:
        (Path(folder) / "r.dat").write_bytes(WHOLE["r.dat"])
        (Path(folder) / "r.hea").write_text(text, encoding="utf-8")
        assert survives(Path(folder) / "r", {}) in (True, False)


@given(
    st.lists(st.lists(words, max_size=5), max_size=6), st.sampled_from(",;\t"), st.sampled_from(["\n", "\r", "\r\n"])
)
def test_csv_of_hostile_words(rows, delimiter, end):
    with TemporaryDirectory() as folder:
        path = Path(folder) / "a.csv"
        path.write_bytes(end.join(delimiter.join(row) for row in rows).encode())
        assert survives(path, {"rate_hz": 500, "leads": LEADS}) in (True, False)


shapes = st.lists(st.sampled_from([-1, 0, 1, 2, 3, 200, 2**31, 2**63, 10**30]), max_size=3).map(tuple)
dtypes = st.sampled_from(
    ["<f8", ">f4", "<f2", "|O", "<i2", "|b1", "<c16", "|S3", "<M8[s]", "<f8,<f8", "|V7", "x", 5, None]
)


@given(shapes, dtypes, st.booleans(), st.integers(1, 3), st.binary(max_size=64))
def test_npy_of_hostile_headers(shape, dtype, fortran, version, tail):
    text = repr({"descr": dtype, "fortran_order": fortran, "shape": shape}).encode() + b"\n"
    length = len(text).to_bytes(2 if version == 1 else 4, "little")
    with TemporaryDirectory() as folder:
        path = Path(folder) / "a.npy"
        path.write_bytes(b"\x93NUMPY" + bytes([version, 0]) + length + text + tail)
        assert survives(path, {"rate_hz": 500, "unit": "mV", "leads": LEADS}) in (True, False)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=MANY)
@given(edits())
def test_many_edited_files(kind, changes):
    assert load_edited(kind, changes) in (True, False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "test", [test_headers_of_hostile_words, test_headers_of_hostile_numbers, test_csv_of_hostile_words]
)
def test_many_hostile_texts(test):
    assert settings(max_examples=MANY)(test)() is None
