"""The cache of decoded media: the same arrays as without it, within its bound, one decode at a time."""

from __future__ import annotations

import copy
import os
import pickle
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from qoqmed.encoders.ecg_conv import EcgConv
from qoqmed.errors import MediaError
from qoqmed.media import frames, masks
from qoqmed.media.cache import CacheCounts, MediaCache
from qoqmed.media.paths import resolve
from qoqmed.types import Mask, Medium

MB = 2**20
SIDE = 16
PICTURE_BYTES = SIDE * SIDE * 3


class Recorder:
    """An encoder whose `load` is counted, may wait for `go`, and fails while `broken`."""

    def __init__(self, samples=100):
        self.samples, self.loads, self.broken = samples, [], False
        self.go = threading.Event()
        self.go.set()

    def load(self, path, options):
        self.loads.append((path.name, dict(options)))
        assert self.go.wait(60)
        if self.broken:
            raise MediaError([])
        return np.zeros((1, self.samples), dtype=np.float32)


def write_picture(path, grey=7):
    Image.fromarray(np.full((SIDE, SIDE, 3), grey, dtype=np.uint8)).save(path)
    return path


def write_record(folder, name="r", scale=1.0):
    wfdb = pytest.importorskip("wfdb")
    signals = scale * np.random.default_rng(0).normal(size=(2500, 12))
    leads = ["I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6"]
    arguments = {"fs": 250, "units": ["mV"] * 12, "sig_name": leads, "fmt": ["16"] * 12, "write_dir": str(folder)}
    wfdb.wrsamp(name, p_signal=signals, adc_gain=[1000.0] * 12, baseline=[0] * 12, **arguments)


def write_volume(path, slices=6, seed=0):
    nibabel = pytest.importorskip("nibabel")
    values = np.random.default_rng(seed).integers(0, 1000, (8, 9, slices)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)


def later(path, seconds=10):
    """As if the file had been written again: its size stays."""
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + seconds * 10**9))


def equal(first, second):
    return len(first) == len(second) and all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_pictures_are_those_of_the_loader_and_decoded_once(tmp_path):
    write_picture(tmp_path / "a.png")
    write_volume(tmp_path / "v.nii.gz")
    cache = MediaCache(MB)
    for medium in (Medium("image", "a.png"), Medium("volume", "v.nii.gz")):
        plain = frames.load(medium, tmp_path, 4)
        first, second = cache.pictures(medium, tmp_path, 4), cache.pictures(medium, tmp_path, 4)
        assert equal(first, plain) and all(a is b for a, b in zip(first, second, strict=True))
        assert not any(picture.flags.writeable for picture in first)
    assert cache.counts == CacheCounts(hits=2, misses=2, held=2, held_bytes=PICTURE_BYTES + 4 * 8 * 9 * 3)


def test_series_are_those_of_the_encoder_and_the_callers_own(tmp_path):
    write_record(tmp_path)
    cache, encoder, path = MediaCache(MB), EcgConv(width=8, num_tokens=2), resolve(tmp_path, "r")
    first = cache.series(encoder, path, {})
    assert np.array_equal(first, encoder.load(path, {}))
    first[:] = 0  # what an encoder does with its input does not reach the cache
    again = cache.series(encoder, path, {})
    assert np.abs(again).max() > 0 and again.flags.writeable
    assert (cache.counts.hits, cache.counts.misses) == (1, 1)
    cache.series(EcgConv(width=8, num_tokens=2, window_s=5.0), path, {})
    assert cache.counts.misses == 2  # another encoder may read the file otherwise


def test_masks_are_those_of_their_loader(tmp_path):
    write_picture(tmp_path / "m.png")
    cache, mask = MediaCache(MB), Mask("m.png")
    assert np.array_equal(cache.mask(mask, tmp_path), masks.load(mask, tmp_path))
    assert cache.mask(mask, tmp_path) is cache.mask(mask, tmp_path)
    cache.pictures(Medium("image", "m.png"), tmp_path, 1)
    assert (cache.counts.hits, cache.counts.misses) == (2, 2)


def test_a_mask_is_cut_as_its_volume_is_shown(tmp_path):
    write_volume(tmp_path / "v.nii")
    cache, mask = MediaCache(MB), Mask("v.nii")
    media = [Medium("volume", "v.nii", options={"axis": axis}) for axis in ("axial", "sagittal")]
    for medium in [*media, *media]:
        assert np.array_equal(cache.mask(mask, tmp_path, medium), masks.load(mask, tmp_path, medium))
    assert (cache.counts.hits, cache.counts.misses) == (2, 2)


def test_a_copy_is_empty_and_of_the_same_bound(tmp_path):
    """A processor is copied where it is saved."""
    path, cache = write_picture(tmp_path / "a.png"), MediaCache(1000)
    cache.series(Recorder(), path, {})
    for other in (copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))):
        assert other.counts == CacheCounts() and other.limit_bytes == 1000


def test_arrays_in_memory_are_handed_through(tmp_path):
    array = np.zeros((4, 4, 3), dtype=np.uint8)
    cache = MediaCache(MB)
    (picture,) = cache.pictures(Medium("image", array=array), tmp_path, 1)
    assert np.array_equal(picture, array) and array.flags.writeable
    assert cache.mask(Mask(array=array[..., 0]), tmp_path).shape == (4, 4)
    assert cache.counts == CacheCounts()


def test_options_and_frames_are_parts_of_the_key(tmp_path):
    write_volume(tmp_path / "v.nii")
    write_picture(tmp_path / "a.png")
    cache, encoder = MediaCache(MB), Recorder()
    assert [len(cache.pictures(Medium("volume", "v.nii"), tmp_path, count)) for count in (2, 3, 2)] == [2, 3, 2]
    for options in ({"rate_hz": 100, "window": [1, 2]}, {"rate_hz": 200}, {"window": [1, 2], "rate_hz": 100}):
        cache.series(encoder, tmp_path / "a.png", options)
    assert [options["rate_hz"] for _, options in encoder.loads] == [100, 200]
    assert (cache.counts.hits, cache.counts.misses) == (2, 4)


def test_a_changed_file_is_decoded_anew(tmp_path):
    pytest.importorskip("wfdb")
    cache, medium = MediaCache(MB), Medium("image", "a.png")
    write_picture(tmp_path / "a.png", 7)
    assert cache.pictures(medium, tmp_path, 1)[0].max() == 7
    write_picture(tmp_path / "a.png", 9)
    later(tmp_path / "a.png")
    assert cache.pictures(medium, tmp_path, 1)[0].max() == 9

    write_record(tmp_path, scale=1.0)
    write_record(tmp_path, "r2")  # a neighbour, not one of its files
    encoder, path = EcgConv(width=8, num_tokens=2), resolve(tmp_path, "r")
    before = cache.series(encoder, path, {})
    later(tmp_path / "r2.dat")
    cache.series(encoder, path, {})
    assert cache.counts.hits == 1
    write_record(tmp_path, scale=2.0)
    later(tmp_path / "r.dat")  # the header is as it was
    np.testing.assert_allclose(cache.series(encoder, path, {}), 2 * before, atol=2e-3)  # of 1 microvolt steps


def test_a_changed_file_of_a_folder_is_noticed(tmp_path):
    (tmp_path / "series").mkdir()
    for name in "ab":
        (tmp_path / "series" / name).write_bytes(b"x")
    cache, encoder = MediaCache(MB), Recorder()
    for _ in range(2):
        cache.series(encoder, tmp_path / "series", {})
    assert len(encoder.loads) == 1
    later(tmp_path / "series" / "b")
    cache.series(encoder, tmp_path / "series", {})
    assert len(encoder.loads) == 2


def test_the_least_recently_used_goes_first(tmp_path):
    paths = [write_picture(tmp_path / f"{name}.png") for name in "abc"]
    cache, encoder = MediaCache(1000), Recorder(samples=100)  # 400 bytes each: two fit
    for index in (0, 1, 0, 2):  # the third makes room by the second
        cache.series(encoder, paths[index], {})
    assert cache.counts == CacheCounts(hits=1, misses=3, held=2, held_bytes=800)
    cache.series(encoder, paths[0], {})
    assert len(encoder.loads) == 3
    cache.series(encoder, paths[1], {})
    assert len(encoder.loads) == 4


def test_what_is_larger_than_the_bound_is_not_kept_and_drives_nothing_out(tmp_path):
    paths = [write_picture(tmp_path / f"{name}.png") for name in "ab"]
    cache, small, large = MediaCache(1000), Recorder(samples=100), Recorder(samples=251)
    cache.series(small, paths[0], {})
    assert cache.series(large, paths[1], {}).shape == (1, 251)
    assert cache.counts == CacheCounts(hits=0, misses=2, held=1, held_bytes=400)


def test_without_a_bound_nothing_is_kept_or_counted(tmp_path):
    path = write_picture(tmp_path / "a.png")
    cache, encoder = MediaCache(0), Recorder()
    for _ in range(2):
        cache.series(encoder, path, {})
    assert len(encoder.loads) == 2 and cache.counts == CacheCounts()


def test_a_view_does_not_keep_what_it_was_cut_from(tmp_path):
    """Slices of a volume are rows of one stack; what is counted is what is held."""
    write_volume(tmp_path / "v.nii", slices=50)
    for picture in MediaCache(MB).pictures(Medium("volume", "v.nii"), tmp_path, 3):
        assert picture.flags.owndata


def test_threads_that_want_one_file_wait_for_one_decode(tmp_path):
    path = write_picture(tmp_path / "a.png")
    cache, encoder = MediaCache(MB), Recorder()
    encoder.go.clear()
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(cache.series, encoder, path, {}) for _ in range(8)]
        wait_until(lambda: cache.counts.hits == 7)
        encoder.go.set()
        arrays = [future.result() for future in futures]
    assert len(encoder.loads) == 1
    assert len({id(array) for array in arrays}) == 8 and equal(arrays, [arrays[0]] * 8)


def test_a_failed_decode_is_told_to_all_who_wait_and_tried_again(tmp_path):
    path = write_picture(tmp_path / "a.png")
    cache, encoder = MediaCache(MB), Recorder()
    encoder.broken = True
    encoder.go.clear()
    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(cache.series, encoder, path, {}) for _ in range(3)]
        wait_until(lambda: cache.counts.hits == 2)
        encoder.go.set()
        assert all(isinstance(future.exception(), MediaError) for future in futures)
    assert len(encoder.loads) == 1 and cache.counts.held == 0
    encoder.broken = False
    assert cache.series(encoder, path, {}).shape == (1, 100)


def test_the_bound_holds_under_many_threads_and_a_larger_workload(tmp_path):
    paths = [write_picture(tmp_path / f"{index}.png") for index in range(40)]
    encoders = [Recorder(samples) for samples in (10, 100, 300)]  # 40, 400 and 1200 bytes
    cache, most = MediaCache(8000), []

    def work(seed):
        draw = random.Random(seed)
        for _ in range(300):
            encoder = draw.choice(encoders)
            assert cache.series(encoder, draw.choice(paths), {}).shape == (1, encoder.samples)
            most.append(cache.counts.held_bytes)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    counts = cache.counts
    assert 4000 < max(most) <= 8000 and counts.hits + counts.misses == 2400
    assert counts.misses == sum(len(encoder.loads) for encoder in encoders) and counts.hits > 0
    assert counts.held_bytes == sum(sum(a.nbytes for a in arrays) for arrays in cache._held.values())
    assert not cache._under_way


def test_a_path_is_checked_at_each_request(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    write_picture(root / "a.png")
    write_picture(tmp_path / "out.png")
    (root / "link.png").symlink_to(root / "a.png")
    cache, medium = MediaCache(MB), Medium("image", "link.png")
    cache.pictures(medium, root, 1)
    (root / "link.png").unlink()
    with pytest.raises(MediaError, match="does not exist"):
        cache.pictures(medium, root, 1)
    (root / "link.png").symlink_to(tmp_path / "out.png")
    with pytest.raises(MediaError, match="leaves the data root"):
        cache.pictures(medium, root, 1)


def wait_until(true, seconds=60):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.001)
