"""ECGs as CSV, NPY and DICOM waveforms, and what a row may say of its file.

Golden sources: a sine worked out by hand; the same signals through WFDB; pydicom's own `waveform_array`.
"""

from __future__ import annotations

import numpy as np
import pytest
from ecg_files import group, pydicom, twelve, write_csv, write_dicom, write_npy, write_record

from qoqmed.encoders.ecg_conv import EcgConv
from qoqmed.errors import MediaError
from qoqmed.media import ecg
from qoqmed.media.ecg_leads import LEADS, columns, key

EXPECTED = twelve(rate_hz=250)
TIMES_S = np.arange(5000) / 500


def check(path, options=None, expected=EXPECTED, within=0.01, leads=LEADS):
    signal = ecg.load(path, leads, 250, 10, options or {})
    assert signal.shape == (len(leads), 2500) and signal.dtype == np.float32
    assert abs(signal - expected).max() < within


# ---------------------------------------------------------------- names
def test_one_lead_has_many_names():
    for names in [
        ("aVR", "AVR", "avr", "Lead aVR", "MDC_ECG_LEAD_AVR", "ECG aVR", "lead_avr"),
        ("V1", "v1", "Lead V1", "MDC_ECG_LEAD_V1", "ECG Lead V1", "ekg_v1"),
        ("I", "i", "Lead I (Einthoven)", "Lead I", "DI", "MDC_ECG_LEAD_I"),
        ("III", "Lead III", "DIII", " lead  iii "),
    ]:
        assert {key(name) for name in names} == {key(names[0])}
    assert len({key(name) for name in ("aVR", "-aVR", "Lead -aVR", "V3R", "1", "lead_1", "MLII", "II", "vx", "")}) == 10


def test_a_doubled_lead_is_refused():
    assert columns(["x", "II", "x"], ["ii"], "p") == [1]
    with pytest.raises(MediaError, match="more than once: V1"):
        columns(["V1", "I", "Lead V1"], ["I", "V1"], "p")


# ---------------------------------------------------------------- CSV
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("clock", [("time_s", TIMES_S), ("Time_ms", 1000 * TIMES_S + 7), None])
def test_csv_with_a_line_of_names(tmp_path, delimiter, clock):
    order = list(range(12))[::-1]
    names = [f"Lead {LEADS[i]}" for i in order]
    path = write_csv(tmp_path / "a.csv", twelve()[order], names, clock, delimiter)
    check(path, {} if clock else {"rate_hz": 500})
    check(path, {"rate_hz": 500}, EXPECTED[[6, 0]], leads=("V1", "I"))


def test_csv_without_names(tmp_path):
    path = write_csv(tmp_path / "a.csv", twelve(), None)
    check(path, {"rate_hz": 500})  # the twelve standard ones
    check(write_csv(tmp_path / "b.csv", twelve(), None, ("", TIMES_S)), {"leads": ["time_s", *LEADS]})
    check(path, {"rate_hz": 500, "leads": LEADS[::-1]}, EXPECTED[::-1])
    with pytest.raises(MediaError, match="13 columns and no line of names"):
        ecg.load(tmp_path / "b.csv", options={"rate_hz": 500})


def test_rounded_times_are_even_and_gaps_are_not(tmp_path):
    signals, times = twelve(rate_hz=360), np.arange(3600) / 360
    check(write_csv(tmp_path / "ms.csv", signals, times=("time_s", times.round(3))), within=0.02)
    keep = np.arange(3600) != 1800
    for name, kept in (
        ("gap", times[keep]),
        ("late", times[:-1] + (np.arange(3599) > 2000) / 360),
        ("flat", 0 * times),
    ):
        path = write_csv(tmp_path / f"{name}.csv", signals[:, : len(kept)], times=("time_s", kept))
        with pytest.raises(MediaError, match="not evenly spaced"):
            ecg.load(path)


def test_only_the_window_of_a_csv_is_read(tmp_path):
    signals = np.concatenate([0 * twelve(4), twelve(10), np.full((12, 2500), np.nan)], axis=1)
    for clock in (None, ("time_s", np.arange(9500) / 500)):
        path = write_csv(tmp_path / "a.csv", signals, times=clock)
        check(path, {"start_s": 4, "rate_hz": 500})
        with pytest.raises(MediaError, match="I: 500, .* of 5000"):
            ecg.load(path, options={"start_s": 5, "rate_hz": 500})


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("", {"rate_hz": 500}, "no ECG of a known kind"),
        ("I,II\n", {"rate_hz": 500}, "window begins|cannot be read"),
        ("I,II\n1,2\n", {}, "nothing says the file's rate"),
        ("I,II\n1,2\n3\n", {"rate_hz": 500}, "cannot be read"),
        ("I,II\n1,2\n3,\n", {"rate_hz": 500}, "cannot be read"),
        ("I,II\n1,x\n", {"rate_hz": 500}, "cannot be read"),
        ("I,II\n1,nan\n", {"rate_hz": 500}, "II: 1, of 1"),
        ("I,II\n1,1e999\n", {"rate_hz": 500}, "II: 1, of 1"),
        ("I,II\n1,1200\n", {"rate_hz": 500}, r"1.2e\+03 mV"),
        ("I,V1\n1,2\n", {"rate_hz": 500}, r"missing: II \(the record has I, V1\)"),
        ("I,ii,II\n1,2,3\n", {"rate_hz": 500}, "more than once: II"),
        ("I,II\n1,2\n", {"rate_hz": 500, "leads": ["II", "I"]}, "otherwise than its row"),
        ("0,1\n1,2\n", {"rate_hz": 500, "leads": ["I", "II"]}, "counts its columns"),
        ("time_s,time_ms,I,II\n0,0,1,2\n1,1,1,2\n", {}, "several time columns"),
        ("time_s,I,II\n0,1,2\n", {}, "not evenly spaced"),
        ("time_s,I,II\n0,1,2\n0.002,1,2\n", {"rate_hz": 250}, "at 500 Hz, and its row says 250 Hz"),
        ("time_s,I,II\n0,1,2\n1e-9,1,2\n", {}, r"1e\+09 Hz"),
        ("I;II\n1,0;2,0\n", {"rate_hz": 500}, "cannot be read"),  # decimal commas
        ("I,II\n\xff1,2\n", {"rate_hz": 500}, "cannot be read"),
    ],
)
def test_bad_csv(tmp_path, text, options, said):
    (tmp_path / "a.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(MediaError, match=said):
        ecg.load(tmp_path / "a.csv", ("I", "II"), options=options)


# ---------------------------------------------------------------- NPY
def test_npy_both_ways_round(tmp_path):
    for array in (twelve(), twelve().T, twelve().astype(">f4"), np.asfortranarray(twelve())):
        check(write_npy(tmp_path / "a.npy", array), {"rate_hz": 500})
    path = write_npy(tmp_path / "b.npy", (1000 * twelve()[[7, 0, 3]]).round().astype(np.int16))
    options = {"rate_hz": 500, "unit": "uV", "leads": ["V2", "I", "aVR"]}
    check(path, options, EXPECTED[[0, 7]], leads=("I", "V2"))
    with pytest.raises(MediaError, match="nothing says their unit"):
        ecg.load(path, ("I",), options={"rate_hz": 500, "leads": ["V2", "I", "aVR"]})
    with pytest.raises(MediaError, match=r"array is \(3, 5000\)(.|\n)*12 leads"):
        ecg.load(path, ("I",), options={"rate_hz": 500, "unit": "uV"})


def test_a_square_array_says_nothing_of_its_axes(tmp_path):
    path = write_npy(tmp_path / "a.npy", twelve()[:, :12])
    with pytest.raises(MediaError, match="on one axis, and on one only"):
        ecg.load(path, options={"rate_hz": 500})


def test_bad_npy(tmp_path):
    for array in (
        np.zeros(5),
        np.zeros((12, 5), complex),
        np.zeros((12, 5), bool),
        np.zeros((1, 12, 5)),
        np.zeros((12, 0)),
    ):
        with pytest.raises(MediaError):
            ecg.load(write_npy(tmp_path / "a.npy", array), options={"rate_hz": 500})
    pickled = np.empty((12, 5), dtype=object)
    np.save(tmp_path / "p.npy", pickled, allow_pickle=True)
    write_npy(tmp_path / "c.npy", twelve())
    whole = (tmp_path / "c.npy").read_bytes()
    (tmp_path / "huge.npy").write_bytes(whole.replace(b"(12, 5000)", b"(12, 9999)"))
    (tmp_path / "cut.npy").write_bytes(whole[:-1])
    (tmp_path / "text.npy").write_text("1,2,3")
    for name in ("p", "huge", "cut", "text"):
        with pytest.raises(MediaError, match="cannot be read|no ECG of a known kind"):
            ecg.load(tmp_path / f"{name}.npy", options={"rate_hz": 500})


# ---------------------------------------------------------------- DICOM
def test_dicom_by_the_first_bytes(tmp_path):
    order = list(range(12))[::-1]
    names = [f"Lead {LEADS[i]}" if i else "Lead I (Einthoven)" for i in order]
    path = write_dicom(tmp_path / "a.csv", [group(1000 * twelve()[order], names, baseline=20)])
    check(path)
    own = pydicom.dcmread(path).waveform_array(0)  # [T, channels] microvolts
    at_500_hz = ecg.load(path, rate_hz=500)
    assert abs(at_500_hz[0] - own[:, 11] / 1000).max() < 1e-6
    check(write_dicom(tmp_path / "implicit", [group(twelve(), sensitivity=1e-3, unit="mV")], "1.2.840.10008.1.2"))


def test_the_first_original_group_with_all_leads_is_read(tmp_path):
    median = group(5000 * twelve(1), originality="DERIVED")
    limbs, rhythm = group(1000 * twelve()[:6], LEADS[:6]), group(1000 * twelve())
    path = write_dicom(tmp_path / "a", [median, limbs, rhythm])
    check(path)
    check(path, {}, EXPECTED[:2], leads=("I", "II"))
    with pytest.raises(MediaError, match="missing: V1"):
        ecg.load(write_dicom(tmp_path / "b", [limbs, median]), ("I", "V1"))
    with pytest.raises(MediaError, match=r"no waveform \(ECG\)"):
        ecg.load(write_dicom(tmp_path / "c", [median]))


def test_padding_and_bad_waveforms(tmp_path):
    def bad(said, syntax="1.2.840.10008.1.2.1", names=LEADS, **changes):
        item = group(1000 * twelve(), names)
        for name, value in changes.items():
            setattr(item, name, value)
        with pytest.raises(MediaError, match=said):
            ecg.load(write_dicom(tmp_path / "a", [item], syntax))

    padded = group(1000 * twelve())
    raw = np.frombuffer(padded.WaveformData, "<i2").reshape(5000, 12).copy()
    raw[2500:, 4] = -32768
    bad("aVL: 2500, of 5000", WaveformData=raw.tobytes(), WaveformPaddingValue=b"\x00\x80")
    bad("cannot be read", WaveformData=raw.tobytes()[:-2])
    bad("cannot be read", NumberOfWaveformSamples=2**32 - 1)
    bad("at odds with itself", NumberOfWaveformChannels=11)
    bad("companded", WaveformBitsAllocated=8, WaveformSampleInterpretation="MB")
    bad("0 Hz", SamplingFrequency="0")
    bad("missing: aVR", names=[name.replace("aVR", "-aVR") for name in LEADS])
    bad("encoded as 1.2.840.10008.1.2.1.99", syntax="1.2.840.10008.1.2.1.99")
    item = group(1000 * twelve(), unit="mm[Hg]")
    with pytest.raises(MediaError, match="lead I is in 'mm"):
        ecg.load(write_dicom(tmp_path / "a", [item]))
    del item.ChannelDefinitionSequence[0].ChannelSensitivity
    with pytest.raises(MediaError, match="lead I has no sensitivity"):
        ecg.load(write_dicom(tmp_path / "a", [item]))


# ---------------------------------------------------------------- options
def test_all_wrong_options_are_told_at_once(tmp_path):
    options = {"rate": 1, "rate_hz": True, "unit": "mmHg", "leads": ["I", "Lead I"], "start_s": float("nan")}
    with pytest.raises(MediaError) as raised:
        ecg.load(tmp_path / "a.csv", options=options)
    problems = raised.value.problems
    assert len(problems) == 5 and all(problem.got == str(tmp_path / "a.csv") for problem in problems)
    assert "no option 'rate'" in problems[0].what and problems[0].mend == "did you mean 'rate_hz'?"
    for options in ({"leads": "I"}, {"leads": []}, {"leads": [1]}, {"rate_hz": 0}, {"start_s": -1}):
        with pytest.raises(MediaError, match="option"):
            ecg.load(tmp_path / "a.csv", options=options)


def test_a_window_may_begin_later_and_a_row_may_not_overrule_its_file(tmp_path):
    signals = np.concatenate([twelve(6), 0 * twelve(3), twelve(5)], axis=1)
    path = write_record(tmp_path, signals)
    expected = np.concatenate([EXPECTED[:, :1250], np.zeros((12, 1250))], axis=1)
    check(path, {"start_s": 9, "rate_hz": 500, "unit": "mV", "leads": LEADS}, expected)
    for options, said in [
        ({"start_s": 14}, "ends at 14 s and the window begins at 14 s"),
        ({"rate_hz": 250}, "at 500 Hz, and its row says 250 Hz"),
        ({"unit": "uV"}, "in mV, and its row says uV"),
        ({"leads": LEADS[::-1]}, "otherwise than its row"),
    ]:
        with pytest.raises(MediaError, match=said):
            ecg.load(path, options=options)


def test_an_encoder_passes_the_options_on(tmp_path):
    path = write_csv(tmp_path / "a.csv", twelve(14))
    encoder = EcgConv(width=8, num_tokens=5)
    assert abs(encoder.load(path, {"rate_hz": 500, "start_s": 4}) - EXPECTED).max() < 0.01


def test_files_of_other_kinds_are_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n")
    for path in (tmp_path, tmp_path / "a.png", tmp_path / "gone"):
        with pytest.raises(MediaError, match="folder|no ECG of a known kind"):
            ecg.load(path)
