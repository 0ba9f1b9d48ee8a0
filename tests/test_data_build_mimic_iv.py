"""MIMIC-IV stays by the rules of QoQ-Med's App. D.3, on a miniature of the published tables. Labels by hand."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from published_layouts import picture, record, table

from qoqmed.errors import DataError
from qoqmed.preparing.build import build

START = datetime(2180, 1, 1, 10)
NO_FILE = "no file for its image"
# stay -> hours to discharge, hours to death or None, where it goes, the two labels (None: left out)
STAYS = {
    "home": (72, None, "HOME", "0-4 days", "No"),
    "died": (20.5, 20, "DIED", "0-4 days", "Yes"),
    "died_at_48": (49, 48, "DIED", "0-4 days", "Yes"),
    "died_later": (50, 48.01, "DIED", "0-4 days", "No"),
    "hospice": (47, None, "HOSPICE", "0-4 days", "Yes"),
    "hospice_later": (49, None, "HOSPICE", "0-4 days", "No"),
    "four": (96, None, "HOME", "0-4 days", "No"),
    "over_four": (96.5, None, "HOME", "5-8 days", "No"),
    "eight": (192, None, "HOME", "5-8 days", "No"),
    "twelve": (288, None, "HOME", "9-12 days", "No"),
    "over_twelve": (289, None, "HOME", "more than 12 days", "No"),
    "no_film": (72, None, "HOME", None, None),
    "backwards": (-1, None, "HOME", None, None),
}


def at(hours):
    return (START + timedelta(hours=hours)).strftime("%Y-%m-%d %H:%M:%S")


def stays(folder):
    """Fills a folder in the published layout: stay i of patient 10000000 + i, all at the same hours after admission."""
    admissions = ["subject_id,hadm_id,admittime,dischtime,deathtime,admission_type,admission_location,"
                  "discharge_location,race,hospital_expire_flag"]  # fmt: skip
    patients = ["subject_id,gender,anchor_age,anchor_year,dod"]
    labs = ["subject_id,hadm_id,itemid,charttime,storetime,value,valuenum,valueuom"]
    charted = ["subject_id,hadm_id,stay_id,charttime,storetime,itemid,value,valuenum,valueuom"]
    given = ["subject_id,hadm_id,starttime,drug,dose_val_rx,dose_unit_rx"]
    films, traces = (
        ["dicom_id,subject_id,study_id,StudyDate,StudyTime"],
        ["subject_id,study_id,file_name,ecg_time,path"],
    )
    for number, (name, (discharge, death, goes, *_)) in enumerate(STAYS.items(), start=1):
        who = f"{10000000 + number}"
        died = "" if death is None else at(death)
        admissions.append(
            f"{who},{name},{at(0)},{at(discharge)},{died},EW EMER.,EMERGENCY ROOM,{goes},WHITE,{int(bool(died))}"
        )
        patients.append(f"{who},F,60,2178,")
        labs += [f"{who},{name},50912,{at(1)},{at(2)},1.0,1.0,mg/dL", f"{who},,50912,{at(10)},{at(11)},1.4,1.4,mg/dL"]
        labs += [f"{who},{name},50813,{at(30)},{at(31)},,9.9,mmol/L", f"{who},{name},50000,{at(47)},{at(60)},LATE,,"]
        labs.append(f"{who},{name},50001,{at(48)},{at(48)},OUTSIDE,,")
        charted += [f"{who},{name},1,{at(19)},,220045,88,88,bpm", f"{who},{name},1,{at(19)},,999,CMO ORDERED,,"]
        given += [f"{who},{name},{at(3)},Heparin,5000,UNIT", f"{who},{name},,Undated drug,1,mg"]
        time = START + timedelta(hours=2)
        for film, hours in (("a", 2), ("b", 5), ("c", 8), ("late", 100)):
            time = START + timedelta(hours=hours)
            films.append(f"{who}{film},{who},5{number:02},{time:%Y%m%d},{time:%H%M%S}.125")
            if name != "no_film":
                picture(folder / f"mimic-cxr-jpg/files/p10/p{who}/s5{number:02}/{who}{film}.jpg", kind="L")
        traces.append(f"{who},4{number},r,{at(6)},files/p1000/p{who}/s4{number}/r")
        record(folder / f"mimic-iv-ecg/files/p1000/p{who}/s4{number}", "r")
    hosp, icu = folder / "mimiciv/hosp", folder / "mimiciv/icu"
    table(hosp / "admissions.csv.gz", "\n".join(admissions))
    table(hosp / "patients.csv.gz", "\n".join(patients))
    table(hosp / "labevents.csv.gz", "\n".join(labs))
    table(hosp / "prescriptions.csv.gz", "\n".join(given))
    names = "50912,Creatinine\n50813,Lactate\n50000,Stored late\n50001,At the end"
    table(hosp / "d_labitems.csv.gz", f"itemid,label\n{names}")
    table(hosp / "diagnoses_icd.csv.gz", "subject_id,hadm_id,icd_code\n10000001,home,SECRET")
    table(folder / "mimiciv/note/discharge.csv.gz", "subject_id,hadm_id,text\n10000001,home,SECRET")
    table(icu / "chartevents.csv", "\n".join(charted))
    table(icu / "d_items.csv", "itemid,label,category\n220045,Heart Rate,Routine Vital Signs\n999,Comfort,Treatments")
    table(folder / "mimic-cxr-jpg/mimic-cxr-2.0.0-metadata.csv", "\n".join(films))
    table(folder / "mimic-iv-ecg/record_list.csv", "\n".join(traces))


@pytest.fixture
def source(tmp_path):
    stays(tmp_path / "source")
    return tmp_path / "source"


def rows_of(built):
    lines = [line for path in sorted(built.folder.glob("t*.jsonl")) for line in path.read_text().splitlines()]
    lines += (built.folder / "valid.jsonl").read_text().splitlines()
    return {row["id"].split("-", 1)[1]: row for row in map(json.loads, lines)}


@pytest.mark.parametrize(("name", "place"), [("mimic_iv_los", 3), ("mimic_iv_mortality", 4)])
def test_labels_of_every_stay(source, tmp_path, name, place):
    built = build(name, source, tmp_path / "out")
    expected = {stay: [told[place]] for stay, told in STAYS.items() if told[place]}
    assert {stay: row["labels"] for stay, row in rows_of(built).items()} == expected
    assert built.left_out == {"the stay ends before it begins": 1, NO_FILE: 1}
    assert built.notes["undated rows of prescriptions: excluded"] == len(STAYS) - 1
    assert built.notes["the table inputevents is not there"] == 1


def test_inputs_are_those_of_the_window(source, tmp_path):
    row = rows_of(build("mimic_iv_los", source, tmp_path / "out"))["home"]
    text = row["question"]
    assert "age 62, sex F" in text and "EMERGENCY ROOM" in text and "HOME" not in text
    assert "- Creatinine: 1 -> 1.4 mg/dL (from hour 1.0, 2 times)" in text
    assert "- Heart Rate: 88 bpm (from hour 19.0)" in text and "- Heparin: 5000 UNIT (from hour 3.0)" in text
    assert "Lactate" in text
    for absent in ("LATE", "OUTSIDE", "Undated", "SECRET", "CMO"):
        assert absent not in text
    paths = [medium["path"].rsplit("/", 1)[1] for medium in row["media"]]
    assert paths == ["10000001a.jpg", "10000001b.jpg", "r"]  # the first two films, not the late one


def test_a_total_is_told_where_it_is_known_within_the_window(source, tmp_path):
    """MIMIC-IV stores a row at its start; its duration and its amount are those of the whole, whenever it ended."""
    icu = source / "mimiciv/icu"
    known = "itemid,label,category\n1,Ventilation,Procedures\n2,Dialysis,Procedures\n3,Saline,Fluids"
    table(icu / "d_items.csv", known)
    head = "subject_id,hadm_id,starttime,endtime,storetime,itemid,"
    stay = f"10000001,home,{at(10)}"
    table(
        icu / "procedureevents.csv",
        f"""{head}value,valueuom
        {stay},{at(290)},{at(11)},1,17280,min
        {stay},{at(14)},{at(11)},2,240,min""",
    )
    table(icu / "inputevents.csv", f"{head}amount,amountuom\n{stay},{at(90)},{at(11)},3,88,ml")
    text = rows_of(build("mimic_iv_los", source, tmp_path / "out"))["home"]["question"]
    assert "- Ventilation (from hour 10.0)" in text and "- Saline (from hour 10.0)" in text
    assert "- Dialysis: 240 min (from hour 10.0)" in text


def test_the_record_ends_at_the_event_unless_it_is_told_otherwise(source, tmp_path):
    censored = rows_of(build("mimic_iv_mortality", source, tmp_path / "censored"))
    whole = rows_of(build("mimic_iv_mortality", source, tmp_path / "whole", {"censor_at_event": False}))
    assert "Lactate" not in censored["died"]["question"] and "Heart Rate" in censored["died"]["question"]
    assert "Lactate" in whole["died"]["question"]  # taken ten hours after the death: the leak
    assert censored["home"] == whole["home"]


def test_stays_whose_event_lies_in_the_window_can_be_left_out(source, tmp_path):
    built = build("mimic_iv_mortality", source, tmp_path / "out", {"event_after_window": True, "window_h": 24})
    assert built.left_out["its event lies in the window of the inputs"] == 1  # the death at 20 hours
    found = rows_of(built)
    assert "died" not in found and found["died_at_48"]["labels"] == ["Yes"]
    assert "Lactate" not in found["home"]["question"]


def test_media_may_be_missing_where_the_build_says_so(source, tmp_path):
    found = rows_of(build("mimic_iv_los", source, tmp_path / "out", {"media_optional": True}))
    assert [medium["modality"] for medium in found["no_film"]["media"]] == ["ecg"]


def test_a_missing_table_is_named(source, tmp_path):
    (source / "mimiciv/hosp/patients.csv.gz").unlink()
    with pytest.raises(DataError, match="a table of MIMIC-IV is not there"):
        build("mimic_iv_los", source, Path(tmp_path) / "out")
