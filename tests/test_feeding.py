"""Loader threads: what is fed does not depend on them, a resumed run neither, and they end with their work."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import test_bad_input as bad
import test_cache as files
import test_parallel as ranks
import torch
from tiny_run import Place, command, evaluations, metrics, place, read, same, weights

from qoqmed import checkpoint
from qoqmed.actor import sort_out
from qoqmed.build import build_actor
from qoqmed.config import load
from qoqmed.datasets.jsonl import JsonLines
from qoqmed.errors import DataError, MediaError
from qoqmed.feeding import Feeder, resident_mb
from qoqmed.fit import fit
from qoqmed.media.cache import MediaCache

EVERY = ["evaluation.every=2", "trainer.checkpoint_every=2"]
WORKERS = (0, 1, 3)


class Numbers:
    """Data set of its own indices, which counts what is built of it, where, and may hold a build back."""

    domains = ("fundus",)

    def __init__(self) -> None:
        self.built: Counter[int] = Counter()
        self.threads: set[str] = set()
        self.go = threading.Event()
        self.go.set()

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> Any:
        assert self.go.wait(60)
        self.built[index] += 1
        self.threads.add(threading.current_thread().name)
        return index


def admit(place: tuple[Any, int]) -> int:
    dataset, index = place
    if index == 13:
        raise RuntimeError("a reader is not installed")
    return -int(dataset[index])


def places(dataset: Any, *indices: int) -> list[tuple[Any, int]]:
    return [(dataset, index) for index in indices]


def feeder(workers: int, **changes: Any) -> Feeder[Any]:
    return Feeder(**{"admit": admit, "workers": workers, "media": MediaCache()} | changes)


def loaders() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("qoqmed-loader")]


def test_a_batch_is_loaded_while_the_one_before_is_in_use() -> None:
    numbers = Numbers()
    with feeder(2) as feed:
        assert feed.take(places(numbers, 3, 1, 2)) == [-3, -1, -2]
        feed.ahead(places(numbers, 5, 4))
        files.wait_until(lambda: numbers.built[4] and numbers.built[5])
        assert feed.take(places(numbers, 5, 4)) == [-5, -4]
    assert numbers.built == Counter([1, 2, 3, 4, 5]) and all("qoqmed-loader" in name for name in numbers.threads)


def test_without_workers_a_batch_is_loaded_where_and_when_it_is_asked_for() -> None:
    numbers = Numbers()
    with feeder(0) as feed:
        feed.ahead(places(numbers, 1))
        assert not numbers.built
        assert feed.take(places(numbers, 1)) == [-1]
    assert numbers.threads == {threading.current_thread().name}


@pytest.mark.parametrize("workers", WORKERS)
def test_what_was_begun_ahead_does_not_matter(workers: int) -> None:
    numbers, others = Numbers(), Numbers()
    with feeder(workers) as feed:
        feed.ahead(places(others, 1, 2))
        assert feed.take(places(numbers, 1, 2)) == [-1, -2]
        assert numbers.built == Counter([1, 2])  # of its own data set
        feed.ahead(places(numbers, 7, 8))
        feed.ahead(places(numbers, 8, 7))
        assert feed.take(places(numbers, 8, 7)) == [-8, -7]
        assert feed.take([]) == []
        assert list(feed.each([places(numbers, 1), [], places(numbers, 2, 3)])) == [[-1], [], [-2, -3]]


@pytest.mark.parametrize("workers", WORKERS)
def test_an_error_is_raised_where_its_batch_is_taken(workers: int) -> None:
    numbers = Numbers()
    with feeder(workers) as feed:
        feed.ahead(places(numbers, 1, 13, 2))
        if workers:
            files.wait_until(lambda: numbers.built[2])
        with pytest.raises(RuntimeError, match="a reader is not installed"):
            feed.take(places(numbers, 1, 13, 2))
        assert feed.take(places(numbers, 4)) == [-4]


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, RuntimeError])
def test_threads_end_and_what_has_not_begun_is_left_undone(error: type[BaseException] | None) -> None:
    numbers = Numbers()
    numbers.go.clear()

    def work() -> None:
        with feeder(2) as feed:
            feed.ahead(places(numbers, *range(10)))
            files.wait_until(lambda: len(loaders()) == 2)
            threading.Timer(0.05, numbers.go.set).start()
            if error:
                raise error

    if error:
        with pytest.raises(error):
            work()
    else:
        work()
    assert not loaders() and len(numbers.built) < 10


def test_a_loader_takes_one_thread_of_torch_and_leaves_the_caller_his() -> None:
    mine = torch.get_num_threads()
    torch.set_num_threads(2)
    with feeder(1, admit=lambda place: torch.get_num_threads()) as feed:
        assert feed.take(places(Numbers(), 1)) == [1]
        assert torch.get_num_threads() == 2
    torch.set_num_threads(mine)


def test_figures_of_a_step(tmp_path: Path) -> None:
    path = files.write_picture(tmp_path / "a.png")
    cache, reader = MediaCache(files.MB), files.Recorder()

    def read(place: tuple[Any, int]) -> None:
        time.sleep(0.01)
        cache.series(reader, path, {})

    with feeder(0, admit=read, media=cache) as feed:
        feed.take(places(Numbers(), 1, 2, 3, 4))
        first = feed.figures()
        feed.take(places(Numbers(), 1))
        assert [first["data/cache_hits"], feed.figures()["data/cache_hits"]] == [0.75, 1.0]
        assert feed.figures()["data/cache_hits"] == 1.0  # nothing was asked for since
    assert first["data/wait_s"] >= 0.04 and 1 < first["data/rss_mb"] < 1e6
    assert resident_mb() == pytest.approx(first["data/rss_mb"], rel=0.5)


# ---- real cases


@pytest.fixture
def here(tiny: None, tmp_path: Path) -> Place:
    """Rows of every kind of medium, some twice, one with a mask, one that is bad."""
    pytest.importorskip("wfdb")
    rows = [bad.row(number) for number in range(8)]
    files.write_volume(tmp_path / "v.nii.gz")
    files.write_record(tmp_path)
    rows[1] |= {"media": {"volume": "v.nii.gz"}, "domain": "mri"}
    rows[2] |= {"media": {"ecg": "r"}, "domain": "ecg"}
    rows[3] |= {"media": [*rows[3]["media"], {"modality": "ecg", "path": "r"}], "mask": "0.png"}
    rows[4] |= {"media": [{"modality": "image", "path": "5.png"}] * 2}
    rows[6] |= {"media": [{"modality": "image", "path": "nowhere.png"}]}
    return bad.with_rows(tmp_path, rows)


@pytest.mark.parametrize("cache_bytes", [0, 20_000, 2**20])
def test_cases_and_prompts_are_the_same_for_any_workers_and_cache(here: Place, cache_bytes: int) -> None:
    actor, _ = build_actor(load(here.recipe))
    dataset = JsonLines("rows.jsonl", str(here.folder))
    batches = [places(dataset, 0, 1, 2, 3), places(dataset, 4, 5, 6, 7, 3), places(dataset, 1, 2)] * 2
    plain = [actor.admit(batch) for batch in batches]
    media = actor.prompter.processor.media = MediaCache(cache_bytes)
    cached = replace(actor, media=media)
    for workers in WORKERS:
        with Feeder(cached.admit_one, workers, media) as feed:
            fed = [sort_out(outcomes) for outcomes in feed.each(batches)]
        for mine, theirs in zip(fed, plain, strict=True):
            assert mine.kept == theirs.kept
            assert [str(error) for error in mine.refused] == [str(error) for error in theirs.refused]
            assert [case.id for case in mine.cases] == [case.id for case in theirs.cases]
            assert all(equal(*pair) for pair in zip(mine.prompts, theirs.prompts, strict=True))
            masks = [(a.target.mask, b.target.mask) for a, b in zip(mine.cases, theirs.cases, strict=True)]
            assert all(a is b or (a.array == b.array).all() for a, b in masks)
            assert [a.target.boxes for a in mine.cases] == [b.target.boxes for b in theirs.cases]
    assert media.counts.held_bytes <= cache_bytes and (media.counts.hits > 0) == (cache_bytes > 0)


def equal(first: Any, second: Any) -> bool:
    """Of two prompts, tensors and all."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[name], second[name]) for name in first)
    if hasattr(first, "__dataclass_fields__"):
        return all(equal(getattr(first, f.name), getattr(second, f.name)) for f in fields(first))
    return bool(first == second)


def test_a_refused_case_is_an_outcome_of_its_own(here: Place) -> None:
    actor, _ = build_actor(load(here.recipe))
    dataset = JsonLines("rows.jsonl", str(here.folder))
    with Feeder(actor.admit_one, 2, actor.media) as feed:
        feed.ahead(places(dataset, 5, 6, 7))
        admitted = sort_out(feed.take(places(dataset, 5, 6, 7)))
    assert admitted.kept == (0, 2) and [type(error) for error in admitted.refused] == [MediaError]
    assert isinstance(admitted.refused[0], DataError) and "eye-6" in str(admitted.refused[0])


# ---- whole runs


@pytest.fixture(scope="module")
def whole(tiny: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run in one thread that nobody stopped."""
    return fit(place(tmp_path_factory.mktemp("whole")).recipe, EVERY).folder


def assert_equal_runs(run: Path, whole: Path) -> None:
    assert same(weights(run), weights(whole))
    assert metrics(run) == metrics(whole) and evaluations(run) == evaluations(whole)
    traces = [path.name for path in sorted((whole / "traces").iterdir())]
    assert [path.name for path in sorted((run / "traces").iterdir())] == traces
    assert all(read(run / "traces" / name) == read(whole / "traces" / name) for name in traces)


@pytest.mark.parametrize("arguments", ["at: 2", "at: 3, crash: true", "when: sft"])
def test_workers_do_not_change_a_run_that_is_stopped_and_resumed(
    tiny: None, tmp_path: Path, whole: Path, arguments: str
) -> None:
    """`at: 2` leaves step 3 loaded and not consumed; the checkpoint does not know of it."""
    here, words = place(tmp_path), [*EVERY, "data.workers=2"]
    with pytest.raises((KeyboardInterrupt, RuntimeError)):
        fit(here.recipe, [*words, f"callbacks=[{{name: stop, {arguments}}}]"])
    saved = checkpoint.load(sorted((here.run / "checkpoints").glob("step-*"))[-1])
    training = saved.state["training"]
    assert saved.state["sampler"]["position"] == 4 * (training["step"] or 3)
    assert not loaders()
    assert fit(here.recipe, words, resume="auto").finished
    assert_equal_runs(here.run, whole)
    assert not loaders()


@pytest.mark.slow
def test_each_of_two_processes_feeds_itself(tiny: None, tmp_path: Path, site: Path) -> None:
    runs = []
    for workers in (0, 2):
        (tmp_path / str(workers)).mkdir()
        here = place(tmp_path / str(workers), stages=ranks.STAGES, data=ranks.DATA)
        words = ["trainer.strategy=fsdp2", "trainer.devices=2", f"data.workers={workers}"]
        ranks.finish(ranks.start(site, *ranks.TORCHRUN, "fit", here.recipe, *words))
        runs.append(here.run)
    assert_equal_runs(*runs)


def test_bad_data_that_was_loaded_ahead_stops_the_step_that_needs_it(tiny: None, tmp_path: Path) -> None:
    """With the file mended the run ends as if it had never been bad."""
    (tmp_path / "good").mkdir()
    words = ["rollout.prompts=1", "stages.0.steps=4", "stages.1.steps=4"]
    rows = [bad.row(number) for number in range(4)]
    good = bad.with_rows(tmp_path / "good", rows)
    assert command("fit", good.recipe, *words) == 0
    order = [line["case"] for path in sorted((good.run / "traces").iterdir())[:4] for line in read(path)]
    here = bad.with_rows(tmp_path, rows)
    picture = tmp_path / f"{order[2].removeprefix('eye-')}.png"
    mended = picture.read_bytes()
    picture.write_bytes(b"")
    assert command("fit", here.recipe, *words, "data.workers=2") == 2
    assert [path.name for path in sorted((here.run / "checkpoints").glob("step-*"))] == ["step-00000002"]
    assert not loaders()
    picture.write_bytes(mended)
    assert command("fit", here.recipe, *words, "data.workers=2", "--resume", "auto") == 0
    assert same(weights(here.run), weights(good.run))


def test_bad_data_that_was_loaded_ahead_and_is_skipped(tiny: None, tmp_path: Path) -> None:
    runs = []
    for workers in (0, 2):
        folder = tmp_path / str(workers)
        folder.mkdir()
        here = bad.with_rows(folder, [bad.row(number) for number in range(6)])
        (folder / "3.png").unlink()
        words = ["data.on_error=skip", "rollout.prompts=2", "stages.0.steps=3", f"data.workers={workers}"]
        assert command("fit", here.recipe, *words, "data.valid=[{name: jsonl, path: rows.jsonl}]") == 0
        runs.append(here.run)
        assert [line["where"].split(" ")[0] for line in read(here.run / "skipped.jsonl")] == ["eye-3"]
    assert_equal_runs(*runs)
    assert [row["skipped_cases"] for row in read(runs[0] / "metrics.jsonl") if "lr" in row][-1] >= 1


def test_a_step_logs_how_its_data_came(tiny: None, tmp_path: Path) -> None:
    here = bad.with_rows(tmp_path, [bad.row(number, mask=f"{number}.png") for number in range(2)])
    words = ["stages.0.epochs=3", "stages.0.steps=3", "data.workers=1"]
    assert fit(here.recipe, words).finished
    rows = [row for row in read(here.run / "metrics.jsonl") if "lr" in row]
    assert all(row["data/wait_s"] >= 0 and row["data/rss_mb"] > 1 for row in rows)
    assert rows[2]["data/cache_hits"] == 1.0  # the third epoch of the same two pictures
    assert fit(here.recipe, [*words, "data.cache_mb=0"]).finished
    (other,) = [run for run in here.run.parent.iterdir() if run != here.run]
    assert [row["data/cache_hits"] for row in read(other / "metrics.jsonl") if "lr" in row] == [0.0] * 4
