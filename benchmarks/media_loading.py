"""Loading throughput by kind of medium and number of loader threads: decoded anew, and from the cache.

Two amounts of work a case: `decode` (file to pictures or signal) and `admit` (all that a training step needs: decoded,
resized, normalised, put into tokens). Threads are the feeder's own; beside them two forked processes that do the same
and send the arrays back, which is what threads were chosen over. The best of a few interleaved repeats is kept: other
work on the machine only ever adds time.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from clinical_files import KINDS, files
from record import keep, show

WORKERS = (0, 1, 2, 4)
CACHE_BYTES = 2**30


class Cases:
    """Data set of one medium a case."""

    def __init__(self, media: list[Any]) -> None:
        from qoqmed.types import Case, Target

        target = Target(labels=("yes",))
        spaces = {"dataset": "files", "task": "diagnosis", "text": "Which is it?", "label_space": ("yes", "no")}
        self.cases = [
            Case(id=str(i), domain="ct", media=(medium,), target=target, **spaces) for i, medium in enumerate(media)
        ]
        self.domains = ["ct"] * len(self.cases)

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> Any:
        return self.cases[index]


def actor(media: Any, root: Path, **data: Any) -> Any:
    """Of the tiny policy, reading files under `root` through the cache `media`. data: keys of the recipe's."""
    from qoqmed import config
    from qoqmed.build import build_actor

    stage = {"name": "none", "objective": "sft", "data": {"train": [{"name": "synthetic", "size": 1}]}}
    recipe = {"name": "loading", "model": {"name": "tiny"}, "encoders": {"ecg": "ecg_conv"}, "stages": [stage]}
    made, _ = build_actor(config.load(recipe | {"data": {"root": str(root)} | data}))
    made.prompter.processor.media = media
    return replace(made, media=media)


def worker(work: str, made: Any, root: Path) -> Callable[[Any], Any]:
    """What is done with a drawn case."""
    processor = made.prompter.processor

    def decode(place: Any) -> Any:
        (medium,) = place[0][place[1]].media
        return processor.pictures(medium, root) if medium.modality != "ecg" else processor.prepare(medium, root)

    return decode if work == "decode" else made.admit_one


def per_second(admit: Callable[[Any], Any], places: list[Any], workers: int, media: Any) -> float:
    """Cases a second through the feeder."""
    from qoqmed.feeding import Feeder

    with Feeder(admit, workers, media) as feeder:
        feeder.take(places[: max(workers, 1)])  # starts the threads
        started = time.perf_counter()
        out = feeder.take(places)
        seconds = time.perf_counter() - started
    refused = [item for item in out if isinstance(item, Exception)]
    if refused:
        raise refused[0]
    return len(places) / seconds


def in_process(number: int) -> Any:
    """In a forked child, which has inherited `WORK`."""
    return WORK["admit"](WORK["places"][number])


WORK: dict[str, Any] = {}


def by_processes(admit: Callable[[Any], Any], places: list[Any], count: int = 2) -> float:
    WORK.update(admit=admit, places=places)
    with ProcessPoolExecutor(count, multiprocessing.get_context("fork")) as pool:
        list(pool.map(in_process, range(count)))
        started = time.perf_counter()
        list(pool.map(in_process, range(len(places))))
        return len(places) / (time.perf_counter() - started)


def measure(work: str, actors: Any, dataset: Any, root: Path, repeats: int, seconds: float) -> dict[str, float]:
    """Cases a second: "workers N" without a cache, "cached" from a full one in the caller's thread, "2 processes".

    actors: without a cache, and with one.
    """
    (cold, anew), (warm, cached) = ((made.media, worker(work, made, root)) for made in actors)
    each = [(dataset, index) for index in range(len(dataset))]
    best: dict[str, float] = {}

    def note(name: str, value: float) -> None:
        best[name] = max(best.get(name, 0.0), value)

    places = each * max(1, round(seconds * per_second(anew, each, 0, cold) / len(each)))
    per_second(cached, each, 0, warm)
    fast = each * max(1, round(seconds * per_second(cached, each, 0, warm) / len(each)))
    for _ in range(repeats):
        note("2 processes", by_processes(anew, places))
        for workers in WORKERS:
            note(f"workers {workers}", per_second(anew, places, workers, cold))
        note("cached", per_second(cached, fast, 0, warm))
    return best


def main(repeats: int = 5, seconds: float = 0.5) -> None:
    import torch

    from qoqmed.media.cache import MediaCache
    from qoqmed.types import Medium

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root, found, source = files(Path(folder))
        actors = [actor(MediaCache(limit), root) for limit in (0, CACHE_BYTES)]
        tables: dict[str, list[dict[str, Any]]] = {"decode": [], "admit": []}
        for work, rows in tables.items():
            for kind in KINDS:
                dataset = Cases([Medium(modality, path) for modality, path in found[kind]])
                best = measure(work, actors, dataset, root, repeats, seconds)
                rates = {f"workers {workers}": best[f"workers {workers}"] for workers in WORKERS}
                plain = best["workers 0"]
                ratios = {"2 threads x": best["workers 2"] / plain, "2 processes x": best["2 processes"] / plain}
                cached = {"cached": best["cached"], "cached x": best["cached"] / plain}
                rows.append({"kind": kind, "files": len(dataset), **rates, **ratios, **cached})
    for work, rows in tables.items():
        show(f"{work}: cases a second (best of {repeats}; files: {source}); x: times one thread without a cache", rows)
    rows = [{"work": work} | row for work, rows in tables.items() for row in rows]
    settings = {"repeats": repeats, "seconds": seconds, "files": source, "frames": 4, "max_pixels": 524_288}
    print(f"kept in {keep('media_loading', rows, settings)}")


if __name__ == "__main__":
    main()
