"""What is asked of an ECG file, and what its row says where the file itself is silent (a medium's `options`).

A file's own word on rate, unit and names is never overruled: a row that says something else is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qoqmed.errors import MediaError, Problem, near
from qoqmed.media.ecg_leads import LEADS, columns, key
from qoqmed.media.refusals import refused

OPTIONS = ("rate_hz", "unit", "leads", "start_s")
RATES_HZ = (1.0, 1e5)
MAX_START_S = 1e7
MAX_LEADS = 256
MILLIVOLTS = {"mv": 1.0, "uv": 1e-3, "\u03bcv": 1e-3, "nv": 1e-6, "v": 1e3}  # of casefolded names


@dataclass(frozen=True)
class Request:
    """leads: in the order wanted. window_s: its length, from start_s on. rate_hz, unit, names: by the row, or None."""

    path: Path
    leads: tuple[str, ...]
    window_s: float
    start_s: float = 0.0
    rate_hz: float | None = None
    unit: str | None = None
    names: tuple[str, ...] | None = None

    def rate(self, stated: float | None) -> float:
        """The file's rate in Hz."""
        rate_hz = self.rate_hz if stated is None else stated
        if rate_hz is None:
            raise refused("nothing says the file's rate", self.path, mend="give the row's medium a 'rate_hz'")
        if not RATES_HZ[0] <= rate_hz <= RATES_HZ[1]:
            raise refused(f"the file is at {rate_hz:g} Hz", self.path, "{:g} to {:g} Hz".format(*RATES_HZ))
        if self.rate_hz is not None and not math.isclose(rate_hz, self.rate_hz, rel_tol=1e-3):
            raise refused(f"the file is at {rate_hz:g} Hz, and its row says {self.rate_hz:g} Hz", self.path)
        return float(rate_hz)

    def scale(self, stated: str | None, lead: str) -> float:
        """Millivolts of one unit of a lead. Where neither file nor row says a unit, it is mV."""
        unit = str(stated or self.unit or "mV").strip()
        scale = MILLIVOLTS.get(unit.casefold())
        if scale is None:
            raise refused(f"lead {lead} is in {unit!r}", self.path, expected="mV, uV, nV or V")
        if self.unit is not None and scale != MILLIVOLTS[self.unit.casefold()]:
            raise refused(f"lead {lead} is in {unit}, and its row says {self.unit}", self.path)
        return scale

    def held(self, stated: Sequence[str] | None) -> tuple[str, ...]:
        """The names of the file's channels; the twelve standard leads where neither file nor row names them."""
        names = self.names or LEADS if stated is None else tuple(str(name) for name in stated)
        if self.names is not None and [key(name) for name in names] != [key(name) for name in self.names]:
            raise refused("the file names its leads otherwise than its row does", self.path, mend="leave out 'leads'")
        return names

    def columns(self, held: Sequence[str]) -> list[int]:
        """Where each wanted lead stands among the file's channels."""
        return columns(held, self.leads, self.path)

    def span(self, rate_hz: float, samples: int) -> tuple[int, int]:
        """The samples to read, first and end, of a file that holds `samples` a lead."""
        start = round(self.start_s * rate_hz)
        if start >= samples:
            what = f"the record ends at {samples / rate_hz:g} s and the window begins at {self.start_s:g} s"
            raise refused(what, self.path, mend="mend the option start_s" if samples else "")
        return start, min(samples, start + math.ceil(self.window_s * rate_hz))


def request(path: Path, leads: Sequence[str], window_s: float, options: Mapping[str, Any]) -> Request:
    """Checks the options of a medium; all that is wrong with them is told at once."""
    problems = [
        Problem(f"an ECG has no option {name!r}", "", str(path), f"some of {', '.join(OPTIONS)}", near(name, OPTIONS))
        for name in map(str, options)
        if name not in OPTIONS
    ]
    rate_hz, unit, names, start_s = (options.get(name) for name in OPTIONS)
    wrong = []
    if rate_hz is not None and not (_number(rate_hz) and RATES_HZ[0] <= rate_hz <= RATES_HZ[1]):
        wrong.append(("rate_hz", rate_hz, "a number, {:g} to {:g}".format(*RATES_HZ)))
    if unit is not None and not (isinstance(unit, str) and unit.casefold() in MILLIVOLTS):
        wrong.append(("unit", unit, "mV, uV, nV or V"))
    if names is not None and not _names(names):
        wrong.append(("leads", names, f"a list of names, none twice, at most {MAX_LEADS}"))
    if start_s is not None and not (_number(start_s) and 0 <= start_s <= MAX_START_S):
        wrong.append(("start_s", start_s, "seconds, 0 or more"))
    problems += [Problem(f"option {n} is {str(v)[:80]!r}", "", str(path), expected) for n, v, expected in wrong]
    if problems:
        raise MediaError(problems)
    return Request(path, tuple(leads), window_s, start_s or 0.0, rate_hz, unit, tuple(names) if names else None)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _names(value: object) -> bool:
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        return False
    return 0 < len({key(name) for name in value}) == len(value) <= MAX_LEADS
