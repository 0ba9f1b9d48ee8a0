"""A manifest of 2.6 million rows: its index made and kept, opened again, drawn from; and `data check` on 100,000 rows.

The files are made in a temporary folder and removed. Each part runs in a process of its own, whose largest resident
memory is read at its end. `opened`: import, index from the cache, sampler with its first epoch shuffled. `drawn`: cases
read at random places of the file, in the sampler's order.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from record import keep, show

ROWS, CHECKED, DRAWN = 2_600_000, 100_000, 5_000
DOMAINS = {
    "chest_xray": 60,
    "pathology": 15,
    "dermoscopy": 8,
    "ct": 6,
    "mri": 5,
    "fundus": 3,
    "ecg": 2,
    "ultrasound": 1,
}
SPACE = [f"finding {number}" for number in range(14)]


def manifest(path: Path, rows: int, start: int = 0) -> None:
    """Rows as `data build` writes them: about 500 bytes each."""
    rng, names, weights, space = random.Random(start), list(DOMAINS), list(DOMAINS.values()), json.dumps(SPACE)
    with path.open("w", encoding="utf-8") as file:
        for number, domain in enumerate(rng.choices(names, weights, k=rows), start=start):
            first = rng.randrange(len(SPACE) - 1)
            labels = json.dumps(SPACE[first : first + 1 + number % 2])
            file.write(
                f'{{"id": "case-{number:08d}", "domain": "{domain}", "dataset": "{domain}-set", '
                f'"question": "This is a picture of the domain {domain}. Which of the findings does it show?", '
                f'"media": [{{"modality": "image", "path": "p{number // 1000:05d}/{number:08d}.png", "view": "PA"}}], '
                f'"labels": {labels}, "label_space": {space}, "patient": "{domain}-{number // 2}"}}\n'
            )


def media(folder: Path, rows: int, start: int = 0) -> None:
    """A file for every row, of 40 sizes: many contents have to be compared. All differ."""
    for number in range(start, start + rows):
        file = folder / f"p{number // 1000:05d}" / f"{number:08d}.png"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(f"{number:08d}".encode() * (64 + number % 40))


def memory_mb() -> float:
    """Largest resident memory of this process so far."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def scan(folder: str, more: dict[str, Any], out: Any) -> None:
    """Index, sampler, draws; `more` goes to the sampler."""
    started, cpu = time.perf_counter(), time.process_time()
    from qoqmed.datasets.jsonl import JsonLines
    from qoqmed.datasets.sampler import Sampler

    data = JsonLines("all.jsonl", root=folder)
    opened, spent = time.perf_counter(), time.process_time() - cpu
    sampler = Sampler([data], seed=1, **more)
    shuffled = time.perf_counter()
    places = sampler.draw(DRAWN)
    ids = {data[index].id for _, index in places}
    read = time.perf_counter()
    out.put(
        {
            "rows": len(data),
            "index s": opened - started,
            "its cpu s": spent,
            "shuffle s": shuffled - opened,
            "cases drawn a s": DRAWN / (read - shuffled),
            "distinct": len(ids),
            "peak MB": memory_mb(),
            "torch": "torch" in sys.modules,
        }
    )


def checked(folder: str, more: dict[str, Any], out: Any) -> None:
    """`data check` of a training file with a validation file of a tenth of it."""
    from qoqmed.checking.check import check

    cpu = time.process_time()
    report = check(Path(folder) / "train.jsonl", [Path(folder) / "valid.jsonl"], **more)
    found = {
        "rows": sum(report.rows.values()),
        "check s": report.seconds,
        "rows a s": sum(report.rows.values()) / report.seconds,
    }
    found["cpu s"] = time.process_time() - cpu
    out.put(found | {"errors": report.errors, "warnings": report.warnings, "peak MB": memory_mb()})


def alone(work: Any, folder: Path, more: dict[str, Any]) -> dict[str, Any]:
    """The result of a fresh process."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=work, args=(str(folder), more, queue))
    process.start()
    result: dict[str, Any] = queue.get()
    process.join()
    return result


def main(rows: int = ROWS, check_rows: int = CHECKED) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        manifest(folder / "all.jsonl", rows)
        size_mb = (folder / "all.jsonl").stat().st_size / 2**20
        ways = {
            "first time": {},
            "again": {},
            "again, balanced": {"balanced": True},
            "again, temperature 2": {"temperature": 2.0},
        }
        scans = [{"work": way} | alone(scan, folder, more) for way, more in ways.items()]
        show(f"a manifest of {rows:,} rows, {size_mb:,.0f} MB", scans)
        (folder / "all.jsonl").unlink()
        valid = check_rows // 10
        for split, count, start in (("train", check_rows - valid, 0), ("valid", valid, check_rows)):
            manifest(folder / f"{split}.jsonl", count, start)
            media(folder, count, start)
        checks = [{"work": "data check"} | alone(checked, folder, {})]
        show(f"data check of {check_rows:,} rows with as many media, not decoded", checks)
    settings = {"rows": rows, "manifest_mb": round(size_mb), "drawn": DRAWN, "checked": check_rows}
    print(f"kept in {keep('data_scale', [*scans, *checks], settings)}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
