"""ECGs as plain tables: CSV text, and NumPy's NPY (never a pickle). Only the window of the wanted leads is kept.

CSV: columns are leads, named by a first line, or by the row's option `leads` where there is no such line. Fields are
divided by commas, semicolons or tabs, with decimal points. A column `time_s` or `time_ms`, evenly spaced, gives the
rate. NPY: [L, T] or [T, L], whichever of the two has as many leads as there are names.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from qoqmed.media.ecg_request import Request
from qoqmed.media.refusals import refused

MAX_TEXT_BYTES = 2**27
MAX_FIRST_LINE = 2**16
TIME_S = {"time_s": 1.0, "time_ms": 1e-3}
ROUGH = 1000  # steps of the time column that tell about how many lines the window takes

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?(nan|inf|infinity)", re.IGNORECASE)


def read_csv(request: Request) -> tuple[npt.NDArray[Any], float]:
    """-> the window of the wanted leads [L, T] in millivolts, and its rate in Hz."""
    size = request.path.stat().st_size
    if size > MAX_TEXT_BYTES:
        raise refused(
            f"the file has {size} bytes", request.path, f"at most {MAX_TEXT_BYTES}", "store it as WFDB or NPY"
        )
    with request.path.open(encoding="utf-8-sig") as file:
        first = file.readline(MAX_FIRST_LINE)
    delimiter = max(",;\t", key=first.count)
    cells = [cell.strip() for cell in next(csv.reader([first], delimiter=delimiter), [])]
    named = not all(_NUMBER.fullmatch(cell) for cell in cells)
    if len(cells) > 1 and cells in ([str(i + origin) for i in range(len(cells))] for origin in (0, 1)):
        raise refused("the first line counts its columns", request.path, "lead names, or samples")
    held = request.held(cells if named else None)
    if len(held) != len(cells):
        mend = "give names to all columns (option leads; time_s or time_ms where it is the time)"
        raise refused(f"the file has {len(cells)} columns and no line of names", request.path, mend=mend)
    columns, clock = request.columns(held), [i for i, name in enumerate(held) if name.casefold() in TIME_S]
    scales = [request.scale(None, lead) for lead in request.leads]
    rows = _rows(request, delimiter, named, clock, held)
    table = _table(request, delimiter, named, [*columns, *clock[:1]], rows)
    rate_hz = request.rate(_rate(request, table[:, -1] * TIME_S[held[clock[0]].casefold()]) if clock else None)
    start, stop = request.span(rate_hz, len(table))
    return table[start:stop, : len(columns)].T * np.array(scales)[:, None], rate_hz


def _rows(request: Request, delimiter: str, named: bool, clock: Sequence[int], held: Sequence[str]) -> int:
    """How many lines to read: those up to the window's end, and some more where the rate is only guessed."""
    if len(clock) > 1:
        raise refused("the file has several time columns", request.path, "time_s or time_ms")
    end_s = request.start_s + request.window_s
    if not clock:
        return math.ceil(end_s * request.rate(None)) + 1
    times = _table(request, delimiter, named, clock, ROUGH + 1)[:, 0] * TIME_S[held[clock[0]].casefold()]
    return math.ceil(1.1 * end_s * request.rate(_rate(request, times))) + 2


def _table(request: Request, delimiter: str, named: bool, columns: Sequence[int], rows: int) -> npt.NDArray[np.float64]:
    """[rows, columns] of the text."""
    with request.path.open(encoding="utf-8-sig") as file:
        lines = file if not named else (line for i, line in enumerate(file) if i)
        return np.loadtxt(
            lines, delimiter=delimiter, usecols=columns, max_rows=rows, ndmin=2, comments=None, quotechar='"'
        )


def _rate(request: Request, times: npt.NDArray[np.float64]) -> float:
    """Hz of a time column [T] in seconds. Rounded times pass; a missing or doubled sample does not."""
    steps = np.diff(times)
    mean = float(steps.mean()) if len(steps) else 0.0
    if not (mean > 0 and steps.min() > 0.45 * mean and steps.max() < 1.55 * mean):
        raise refused("the time column is not evenly spaced", request.path, mend="resample it, or leave it out")
    return 1 / mean


def read_npy(request: Request) -> tuple[npt.NDArray[Any], float]:
    """-> the window of the wanted leads [L, T] in millivolts, and its rate in Hz."""
    array = np.lib.format.open_memmap(request.path, mode="r")  # refuses pickles, and shapes beyond the file's size
    if array.ndim != 2 or array.dtype.kind not in "iuf":
        raise refused(f"the array is {array.dtype} {array.shape}", request.path, "numbers [L, T] or [T, L]")
    if array.dtype.kind != "f" and request.unit is None:
        mend = "give the row's medium a 'unit'"
        raise refused("the array holds whole numbers and nothing says their unit", request.path, mend=mend)
    held = request.held(None)
    axes = [axis for axis in (0, 1) if array.shape[axis] == len(held)]
    if len(axes) != 1:
        expected = f"{len(held)} leads on one axis, and on one only"
        raise refused(f"the array is {array.shape}", request.path, expected, "name all its leads (option leads)")
    signal = array if axes == [0] else array.T
    columns, rate_hz = request.columns(held), request.rate(None)
    start, stop = request.span(rate_hz, signal.shape[1])
    scales = [request.scale(None, lead) for lead in request.leads]
    return np.asarray(signal[:, start:stop][columns], dtype=np.float64) * np.array(scales)[:, None], rate_hz
