"""MIMIC-IV stays as rows: length of stay and 48-hour mortality from chest X-rays, ECGs and the record (App. D.3).

Inputs lie in [admission - before_h, admission + window_h]. With `censor_at_event` they end before the stay does: the
paper's window of 48 hours overlaps both outcomes, and what was charted at or after death or discharge would tell them.
A record that ends early still hints at it; `event_after_window` keeps only stays whose event lies beyond the window.

Died (48-IHM): death, or discharge to hospice care, within 48 hours of admission. A death without a time counts by the
patient's date of death, at its first moment, where the hospital says that the patient died in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from qoqmed.errors import DataError, Problem
from qoqmed.preparing import tables
from qoqmed.preparing.binding import cell
from qoqmed.preparing.left_out import LeftOut
from qoqmed.preparing.mimic_record import Records
from qoqmed.preparing.mimic_stay import Stay, moment, table

HORIZON = timedelta(hours=48)  # of the mortality, whatever the inputs' window
LONGEST_H = 1_000_000  # of a window; far longer ones leave the calendar
HOSPICE = re.compile("hospice", re.IGNORECASE)
STUDY = re.compile(r"(\d{8}) +(\d{1,6})")


@dataclass(frozen=True)
class Window:
    """Hours around the admission that inputs come from, and what an early event does to them."""

    before: timedelta
    after: timedelta
    censor: bool
    beyond: bool


def mimic_iv(
    root: Path,
    out: LeftOut,
    window_h: float = 48,
    before_h: float = 0,
    censor_at_event: bool = True,
    event_after_window: bool = False,
    images: int = 2,
    ecgs: int = 1,
    items: int = 40,
    hosp: str = "mimiciv/hosp",
    icu: str = "mimiciv/icu",
    cxr: str = "mimic-cxr-jpg",
    ecg: str = "mimic-iv-ecg",
) -> Iterator[dict[str, str]]:
    """A row an admission: hadm_id, subject_id, los_days, died_48h (1 or 0), record (text), and paths of the first
    `images` chest X-rays and `ecgs` ECGs in the window, joined by "|"."""
    if not 0 < window_h <= LONGEST_H or not 0 <= before_h <= LONGEST_H:
        what, got = "hours that cannot be", f"window_h {window_h}, before_h {before_h}"
        expected = f"'window_h' above 0, 'before_h' not negative, both at most {LONGEST_H:,}"
        raise DataError(Problem(what, "mimic_iv", got, expected))
    for name, count in {"images": images, "ecgs": ecgs, "items": items}.items():
        if type(count) is not int or count < 0:
            raise DataError(Problem(f"{name!r} is no count", "mimic_iv", repr(count), "a whole number, 0 or more"))
    window = Window(timedelta(hours=before_h), timedelta(hours=window_h), censor_at_event, event_after_window)
    stays = list(_stays(root / hosp, window, out))
    by_patient: dict[str, list[Stay]] = {}
    for stay in stays:
        by_patient.setdefault(stay.subject, []).append(stay)
    films = _films(root, cxr, by_patient, out)
    traces = _traces(root, ecg, by_patient, out)
    records = Records(stays, by_patient, out)
    records.read(root / hosp, root / icu)
    for stay in stays:
        yield {
            "hadm_id": stay.id,
            "subject_id": stay.subject,
            "los_days": f"{stay.los_days:.6f}",
            "died_48h": str(int(stay.died)),
            "record": records.text(stay, items),
            "images": "|".join(path for _, path in sorted(films.get(stay.id, []))[:images]),
            "ecgs": "|".join(path for _, path in sorted(traces.get(stay.id, []))[:ecgs]),
        }


def _stays(hosp: Path, window: Window, out: LeftOut) -> Iterator[Stay]:
    patients = {cell(row, "subject_id", "patients"): row for row in tables.read(table(hosp, "patients"))}
    for row in tables.read(table(hosp, "admissions")):
        name, subject = cell(row, "hadm_id", "admissions"), cell(row, "subject_id", "admissions")
        start, end = moment(cell(row, "admittime", "admissions")), moment(cell(row, "dischtime", "admissions"))
        if start is None or end is None:
            out.add(name, "the admission or the discharge has no time")
            continue
        person = patients.get(subject, {})
        death = _death(row, person)
        if end <= start or (death is not None and death.date() < start.date()):
            out.add(name, "the stay ends before it begins")
            continue
        hospice = end if HOSPICE.search(row.get("discharge_location", "")) else None
        died = any(event is not None and event - start <= HORIZON for event in (death, hospice))
        event = min(end, death) if death is not None else end
        last = start + window.after
        if window.beyond and event <= last:
            out.add(name, "its event lies in the window of the inputs")
            continue
        stop = min(last, event) if window.censor else last
        first = start - window.before
        about = _about(row, person, start)
        yield Stay(name, subject, start, first, stop, (end - start) / timedelta(days=1), died, about)


def _death(row: Mapping[str, str], person: Mapping[str, str]) -> datetime | None:
    given = moment(cell(row, "deathtime", "admissions"))
    in_hospital = row.get("hospital_expire_flag") == "1"
    return given or (moment(person.get("dod", "")) if in_hospital else None)


def _about(row: Mapping[str, str], person: Mapping[str, str], start: datetime) -> str:
    """What is known at the door: age, sex, and how the patient came. Not where the patient goes."""
    age, year = person.get("anchor_age", ""), person.get("anchor_year", "")
    if age.isdigit() and year.isdigit():
        age = str(int(age) + start.year - int(year))
    parts = {"age": age, "sex": person.get("gender", ""), "race": row.get("race", "")}
    parts |= {"admission": row.get("admission_type", ""), "from": row.get("admission_location", "")}
    return ", ".join(f"{name} {text}" for name, text in parts.items() if text)


Found = dict[str, list[tuple[datetime, str]]]  # stay -> (time, path)


def _films(root: Path, folder: str, by_patient: Mapping[str, list[Stay]], out: LeftOut) -> Found:
    """Chest X-rays by the date and time of their study."""
    path = table(root / folder, "mimic-cxr-2.0.0-metadata", optional=True)
    found: Found = {}
    if path is None:
        out.note("MIMIC-CXR is not there")
        return found
    for row in tables.read(path):
        subject, study = cell(row, "subject_id", "metadata"), cell(row, "study_id", "metadata")
        clock = f"{cell(row, 'StudyDate', 'metadata')} {cell(row, 'StudyTime', 'metadata').split('.')[0]}"
        match = STUDY.fullmatch(clock)
        taken = datetime.strptime(f"{match[1]}{match[2]:0>6}", "%Y%m%d%H%M%S") if match else None
        name = f"{folder}/files/p{subject[:2]}/p{subject}/s{study}/{cell(row, 'dicom_id', 'metadata')}.jpg"
        _put(found, by_patient.get(subject, []), taken, name, out)
    return found


def _traces(root: Path, folder: str, by_patient: Mapping[str, list[Stay]], out: LeftOut) -> Found:
    path = table(root / folder, "record_list", optional=True)
    found: Found = {}
    if path is None:
        out.note("MIMIC-IV-ECG is not there")
        return found
    for row in tables.read(path):
        taken = moment(cell(row, "ecg_time", "record_list"))
        stays = by_patient.get(cell(row, "subject_id", "record_list"), [])
        _put(found, stays, taken, f"{folder}/{cell(row, 'path', 'record_list')}", out)
    return found


def _put(found: Found, stays: list[Stay], taken: datetime | None, path: str, out: LeftOut) -> None:
    if taken is None and stays:
        out.note("images and ECGs without a time: excluded")
    for stay in stays:
        if taken is not None and stay.holds(taken):
            found.setdefault(stay.id, []).append((taken, path))
