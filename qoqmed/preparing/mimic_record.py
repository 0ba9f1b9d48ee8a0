"""The record of a stay as text: laboratory, vital signs, treatments and medications with a time in its window.

What has no time (diagnoses, procedures by code) is no input, nor are discharge summaries and radiology reports (App.
D.3): their tables are never opened. A result counts when it was known: where a row has a storetime, that must lie
before the window's end, too. Each item is one line: its first and last value, and how often it was taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from qoqmed.preparing import tables
from qoqmed.preparing.binding import cell
from qoqmed.preparing.left_out import LeftOut
from qoqmed.preparing.mimic_stay import Stay, moment, table


@dataclass(frozen=True)
class Events:
    """A table of events. item: column of its name, or of a key into `names`. keep: categories of `names` that count."""

    heading: str
    table: str
    time: str
    item: str
    value: Sequence[str] = ()
    unit: str = ""
    names: str = ""
    keep: Sequence[str] = ()


HOSP = (
    Events("Laboratory", "labevents", "charttime", "itemid", ("valuenum", "value"), "valueuom", "d_labitems"),
    Events("Medications", "prescriptions", "starttime", "drug", ("dose_val_rx",), "dose_unit_rx"),
)
ICU = (
    Events(
        "Vital signs", "chartevents", "charttime", "itemid", ("valuenum", "value"), "valueuom", "d_items",
        ("Routine Vital Signs",),
    ),
    Events("Treatments", "inputevents", "starttime", "itemid", ("amount",), "amountuom", "d_items"),
    Events("Treatments", "procedureevents", "starttime", "itemid", ("value",), "valueuom", "d_items"),
)  # fmt: skip
HEADINGS = ("Vital signs", "Laboratory", "Treatments", "Medications")


@dataclass
class Course:
    """One item over a stay: its first and last value by time."""

    first: tuple[datetime, str]
    last: tuple[datetime, str]
    unit: str
    times: int = 1

    def add(self, time: datetime, value: str) -> None:
        self.first, self.last = min(self.first, (time, value)), max(self.last, (time, value))
        self.times += 1


@dataclass
class Records:
    """Courses of all stays: (stay, heading) -> item -> its course. Tables are streamed once; the courses are held."""

    stays: Sequence[Stay]
    by_patient: Mapping[str, Sequence[Stay]]
    out: LeftOut
    courses: dict[tuple[str, str], dict[str, Course]] = field(default_factory=dict)

    def read(self, hosp: Path, icu: Path) -> None:
        """Gathers all tables that are there."""
        for folder, kinds in ((hosp, HOSP), (icu, ICU)):
            for events in kinds:
                path = table(folder, events.table, optional=True)
                if path is None:
                    self.out.note(f"the table {events.table} is not there")
                    continue
                names = self._names(folder, events) if events.names else None
                for row in tables.read(path):
                    self._add(row, events, names)

    def text(self, stay: Stay, items: int) -> str:
        """The record, at most `items` lines a heading: the items taken most often, by name."""
        parts = [f"Patient: {stay.about}."]
        for heading in HEADINGS:
            courses = self.courses.get((stay.id, heading), {})
            chosen = sorted(courses, key=lambda name: (-courses[name].times, name))[:items]
            if chosen:
                lines = [_line(name, courses[name], stay) for name in sorted(chosen)]
                parts.append("\n".join([f"{heading}:", *lines]))
        return "\n".join(parts)

    def _names(self, folder: Path, events: Events) -> dict[str, str]:
        rows = tables.read(table(folder, events.names))
        kept = (row for row in rows if not events.keep or row.get("category") in events.keep)
        return {cell(row, "itemid", events.names): cell(row, "label", events.names) for row in kept}

    def _add(self, row: Mapping[str, str], events: Events, names: Mapping[str, str] | None) -> None:
        stays = self.by_patient.get(cell(row, "subject_id", events.table))
        if not stays:
            return
        item = cell(row, events.item, events.table)
        name = item if names is None else names.get(item, "")
        if not name:
            return
        time = moment(cell(row, events.time, events.table))
        if time is None:
            self.out.note(f"undated rows of {events.table}: excluded")
            return
        known = moment(row.get("storetime", "")) or time
        end = moment(row.get("endtime", "")) or time
        owner = row.get("hadm_id", "")
        whole = next((text for text in (row.get(column, "") for column in events.value) if text), "")
        for stay in stays:
            if owner in ("", stay.id) and stay.holds(time) and known < stay.stop:
                value = whole if end < stay.stop else ""  # an amount or a duration is known at its end
                held = self.courses.setdefault((stay.id, events.heading), {})
                if name in held:
                    held[name].add(time, value)
                else:
                    held[name] = Course((time, value), (time, value), row.get(events.unit, "") if value else "")


def _line(name: str, course: Course, stay: Stay) -> str:
    (begun, first), (_, last) = course.first, course.last
    hours = (begun - stay.start) / timedelta(hours=1)
    values = first if course.times == 1 or first == last else f"{first} -> {last}"
    count = f", {course.times} times" if course.times > 1 else ""
    return f"- {name}: {values} {course.unit}".rstrip(": ") + f" (from hour {hours:.1f}{count})"
