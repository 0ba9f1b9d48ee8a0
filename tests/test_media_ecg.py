"""ECG records: leads by name, millivolts, rate, window; and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from ecg_files import sine, twelve, write_record

from qoqmed.errors import MediaError
from qoqmed.media import ecg
from qoqmed.media.paths import resolve

EIGHT = ("I", "II", "V1", "V2", "V3", "V4", "V5", "V6")


def write(folder, signals, *arguments, name="r", **named):
    write_record(folder, signals, *arguments, name=name, **named)
    return resolve(folder, name)


def test_leads_are_found_by_name_and_resampled(tmp_path):
    shuffled = list(range(12))[::-1]
    path = write(tmp_path, twelve()[shuffled], [ecg.LEADS[i].upper() for i in shuffled])
    signal = ecg.load(path, EIGHT, 250, 10)
    assert signal.shape == (8, 2500) and signal.dtype == np.float32
    expected = np.stack([(ecg.LEADS.index(lead) + 1) / 10 * sine(5, 10, 250) for lead in EIGHT])
    assert abs(signal - expected).max() < 0.01


@pytest.mark.parametrize(("units", "scale"), [("mV", 1), ("mv", 1), ("uV", 1000), ("V", 0.001)])
def test_units_become_millivolts(tmp_path, units, scale):
    path = write(tmp_path, twelve() * scale, units=units)
    assert abs(ecg.load(path)).max() == pytest.approx(1.2, abs=0.01)


def test_a_long_record_is_cropped_and_a_short_one_padded(tmp_path):
    long = np.concatenate([twelve(10), 5 * np.ones((12, 2500))], axis=1)
    assert abs(ecg.load(write(tmp_path, long, name="long"))).max() < 1.3
    signal = ecg.load(write(tmp_path, twelve(4), name="short"))
    assert signal.shape == (12, 2500) and abs(signal[:, :1000]).max() > 1 and not signal[:, 1000:].any()


def test_missing_leads_are_named(tmp_path):
    path = write(tmp_path, twelve()[:3], ["I", "II", "V1"])
    assert ecg.load(path, ["I", "V1"]).shape == (2, 2500)
    with pytest.raises(MediaError, match=r"leads are missing: V2, V6 \(the record has I, II, V1\)"):
        ecg.load(path, ["I", "V2", "V6"])


def test_nan_is_named_with_its_lead_and_count(tmp_path):
    signals = twelve()
    signals[6, 100:107] = np.nan
    with pytest.raises(MediaError, match=r"V1: 7, of 5000"):
        ecg.load(write(tmp_path, signals))
    assert ecg.load(write(tmp_path, signals), ["I", "II"]).shape == (2, 2500)


def test_bad_records_are_refused(tmp_path):
    path = write(tmp_path, twelve())
    header = (tmp_path / "r.hea").read_text()
    for name, text, said in [
        ("unit", header.replace("/mV", "/mmHg"), "mmHg"),
        ("escape", header.replace("r.dat", "../r.dat"), "names the signal file|cannot be read"),
        ("huge", header.replace("500 5000", "500 99999999999"), "claims"),
        ("gone", header.replace("r.dat", "gone.dat"), "cannot be read"),
        ("junk", "\0\1\2", "cannot be read|no signals"),
        ("empty", "", "cannot be read"),
        ("mu", header.replace("/mV", "/µV"), "not plain ASCII"),
        ("slow", header.replace("500 5000", "0.01 5000"), "0.01 Hz"),
        ("skew", header.replace("r.dat 16", "r.dat 16:99999999999"), "claims"),
        ("frames", header.replace("r.dat 16", "r.dat 16x99999999"), "claims"),
        ("count", header.replace("sk 12 ", "sk 2 ").replace("r 12 ", "r 2 "), "claims 2 signals and describes 12"),
        ("line", header + "r.dat" + "9" * 5000, "line without end"),
        ("twice", header.replace("aVL", "aVR"), "leads are missing: aVL"),
    ]:
        (tmp_path / f"{name}.hea").write_text(text)
        with pytest.raises(MediaError, match=said):
            ecg.load(resolve(tmp_path, name))
    whole = (tmp_path / "r.dat").read_bytes()
    (tmp_path / "r.dat").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MediaError, match="cannot be read"):
        ecg.load(path)


def test_the_header_may_be_named_and_links_out_are_refused(tmp_path):
    write(tmp_path, twelve())
    assert resolve(tmp_path, "r.hea") == resolve(tmp_path, "r")
    header = (tmp_path / "r.hea").read_text().replace("r.dat", "other.dat")
    (tmp_path / "link.hea").write_text(header)
    (tmp_path / "other.dat").symlink_to(tmp_path / "r.dat")
    with pytest.raises(MediaError, match="names the signal file"):
        ecg.load(resolve(tmp_path, "link"))


def test_arrays_in_memory_keep_or_lose_leads():
    signal = np.arange(12, dtype=np.float32)[:, None].repeat(5, axis=1)
    assert ecg.pick_leads(signal, EIGHT)[:, 0].tolist() == [0, 1, 6, 7, 8, 9, 10, 11]
    assert ecg.pick_leads(signal[:8], EIGHT)[:, 0].tolist() == list(range(8))
    assert ecg.fit(signal, 3).shape == (12, 3) and ecg.fit(signal, 9)[0].tolist() == [0] * 9
    with pytest.raises(MediaError, match="shape"):
        ecg.pick_leads(signal[:3], EIGHT)
