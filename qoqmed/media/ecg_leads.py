"""Which channel of an ECG file is which lead. Case does not matter, nor do the usual ways to write a lead's name:
"aVR" and "AVR", "V1", "Lead V1", "ECG V1", "MDC_ECG_LEAD_V1" (IEEE 11073), "Lead I (Einthoven)" (SCP-ECG), "DII".

"-aVR" is not aVR, and numbers ("1", "lead_1") are no names: files count leads from 0 or from 1.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from qoqmed.media.refusals import refused

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
SHOWN = 24  # names in a message

_WRITTEN = re.compile(r"(?:mdc_ecg_lead_|(?:(?:ecg|ekg)[ _])?(?:lead[ _]?)?d?)(i{1,3}|av[rlf]|v[1-9])(?: \(.*\))?")


def key(name: str) -> str:
    """Equal for two names of one lead."""
    plain = " ".join(str(name).casefold().split())
    match = _WRITTEN.fullmatch(plain)
    return match[1] if match else plain


def columns(held: Sequence[str], leads: Sequence[str], path: Path) -> list[int]:
    """Where each lead stands among the channels that the file holds. Missing and doubled leads are refused."""
    keys = [key(name) for name in held]
    shown = ", ".join(str(name)[:SHOWN] for name in held[:SHOWN]) + (", .." if len(held) > SHOWN else "")
    missing = [lead for lead in leads if key(lead) not in keys]
    if missing:
        what = f"leads are missing: {', '.join(missing)} (the record has {shown})"
        raise refused(what, path, mend="leave the row out (unless)")
    counts = Counter(keys)
    doubled = [lead for lead in leads if counts[key(lead)] > 1]
    if doubled:
        raise refused(f"leads are there more than once: {', '.join(doubled)} (the record has {shown})", path)
    return [keys.index(key(lead)) for lead in leads]
