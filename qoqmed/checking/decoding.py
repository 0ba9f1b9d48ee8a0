"""Media and masks decoded as training decodes them, in processes: a decoder that crashes takes no other with it.

Images, volumes and videos through `media.frames`, ECGs through `media.ecg`; other modalities have readers of their own
(encoders), which are not called here.
"""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from qoqmed.checking.findings import ERROR, WARNING, Findings
from qoqmed.checking.rows import Row
from qoqmed.errors import MediaError, Problem, UserError
from qoqmed.media import ecg, frames, masks
from qoqmed.media.paths import resolve
from qoqmed.types import SPATIAL, Mask, Medium

CHUNK = 32  # rows that a process takes at a time
Told = tuple[str, str, Problem]  # kind, severity, problem


@dataclass(frozen=True)
class Job:
    """One row's media. stated: the width and height that its boxes were measured by."""

    where: str
    media: tuple[Medium, ...]
    mask: Mask | None
    stated: tuple[float, float] | None
    root: str
    frames: int


def decode(rows: Sequence[Row], root: Path, findings: Findings, frames: int = 4, workers: int = 1) -> int:
    """How many rows' media could all be read. workers: processes; 1: this one."""
    jobs = [
        Job(row.where, row.case.media, row.case.target.mask, row.sized, str(root), frames)
        for row in rows
        if row.case.media
    ]
    good = 0
    for told in map(examine, jobs) if workers <= 1 else _spread(jobs, workers):
        for kind, severity, problem in told:
            findings.add(kind, severity, problem)
        good += not any(severity == ERROR for _, severity, _ in told)
    return good


def _spread(jobs: Sequence[Job], workers: int) -> Iterator[list[Told]]:
    """In the order of the jobs. A process that dies is told with the rows that it may have died of."""
    done = 0
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        try:
            for told in pool.map(examine, jobs, chunksize=CHUNK):
                done += 1
                yield told
        except BrokenProcessPool:
            near = [job.where for job in jobs[done : done + workers * CHUNK]]
            what = "a decoder crashed; the rows after this one are not decoded"
            mend = "--workers 1 shows which row it is, as it stops there"
            yield [("unreadable", ERROR, Problem(what, near[0] if near else "", f"one of {len(near)} rows", mend=mend))]


def examine(job: Job) -> list[Told]:
    """What is wrong with one row's media and mask."""
    told: list[Told] = []
    sizes: dict[int, tuple[int, int]] = {}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for place, medium in enumerate(job.media):
            try:
                size = _size(medium, job)
                sizes |= {place: size} if size else {}
            except MediaError as error:
                told += [("unreadable", ERROR, _of(job, problem)) for problem in error.problems]
            except UserError as error:  # a missing extra is no fault of the row
                told += [("unreadable", ERROR, _of(job, error.problems[0]))]
        told += _mask(job, sizes)
    told += [("privacy", WARNING, Problem(str(one.message), job.where)) for one in said if "DICOM" in str(one.message)]
    first = next((place for place, medium in enumerate(job.media) if medium.modality in SPATIAL), 0)
    if job.stated and first in sizes and job.stated != tuple(map(float, sizes[first])):
        what = "the row's width and height are not its picture's, so its boxes lie elsewhere"
        got, real = ("{:g} x {:g}".format(*size) for size in (job.stated, sizes[first]))
        told.append(("box", ERROR, Problem(what, job.where, got, real, "give the size of the stored picture")))
    return told


def _size(medium: Medium, job: Job) -> tuple[int, int] | None:
    """Width and height of its pictures; None for a series."""
    if medium.modality in SPATIAL:
        height, width = frames.load(medium, job.root, job.frames)[0].shape[:2]
        return width, height
    if medium.modality == "ecg" and medium.path is not None:
        ecg.load(resolve(job.root, medium.path), options=medium.options)
    return None


def _mask(job: Job, sizes: dict[int, tuple[int, int]]) -> list[Told]:
    if job.mask is None:
        return []
    try:
        inside = masks.load(job.mask, job.root, job.media[job.mask.medium] if job.media else None)
        if job.mask.medium in sizes:
            inside = masks.fit(inside, *sizes[job.mask.medium], job.mask.path or "mask")
    except MediaError as error:
        return [("mask", ERROR, _of(job, problem)) for problem in error.problems]
    if inside.any():
        return []
    return [
        ("mask", WARNING, Problem("the mask is empty: rewards of boxes do not apply", job.where, str(job.mask.path)))
    ]


def _of(job: Job, problem: Problem) -> Problem:
    return Problem(problem.what, job.where, problem.got, problem.expected, problem.mend)
