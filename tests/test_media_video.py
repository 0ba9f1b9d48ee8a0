"""Videos: which frames, which way up; and what is refused."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from PIL import Image
from tiny_media import load, write_video

from qoqmed.errors import MediaError

pytest.importorskip("av")


def numbers(pictures):
    """Which frames of `write_video` these are, from their middles."""
    return [round((float(one[one.shape[0] // 2, one.shape[1] // 2].mean()) - 20) / 10) for one in pictures]


def test_a_video_gives_evenly_spaced_frames(tmp_path):
    write_video(tmp_path / "v.mp4")
    shown = load(tmp_path, "v.mp4", "video")
    assert [one.shape for one in shown] == [(32, 32, 3)] * 4 and numbers(shown) == [2, 7, 12, 17]
    assert len(load(tmp_path, "v.mp4", "video", 50)) == 20
    assert numbers(load(tmp_path, "v.mp4", "video", frames=2)) == [5, 15]


@pytest.mark.parametrize("ending", ["mp4", "mkv", "avi"])
def test_a_stretch_of_a_video(tmp_path, ending):
    write_video(tmp_path / f"v.{ending}")  # ten frames a second: frame i at i / 10 s

    def shown(**options):
        return numbers(load(tmp_path, f"v.{ending}", "video", 50, **options))

    assert shown(start_s=0.5, stop_s=0.9) == [5, 6, 7, 8]  # stop_s not included
    assert shown(start_s=1.65) == [17, 18, 19] and shown(stop_s=0.2) == [0, 1]
    assert numbers(load(tmp_path, f"v.{ending}", "video", start_s=1, stop_s=1.8)) == [11, 13, 15, 17]
    with pytest.raises(MediaError, match="no frames from 7 s to 8 s"):
        shown(start_s=7, stop_s=8)


def rotate(path, degrees_clockwise):
    """Writes the display matrix of the track header (ISO 14496-12, 8.3.2: 16.16 fixed point) by hand."""
    whole = bytearray(path.read_bytes())
    start = whole.index(b"tkhd") + 4 + 40  # version 0
    c, s = (round(f(np.radians(degrees_clockwise))) for f in (np.cos, np.sin))
    assert struct.unpack_from(">i", whole, start) == (0x10000,)
    struct.pack_into(">9i", whole, start, c << 16, s << 16, 0, -s << 16, c << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(whole)


@pytest.mark.parametrize(("degrees", "strip"), [(0, "top"), (90, "right"), (180, "bottom"), (270, "left")])
def test_rotation_marks_are_applied(tmp_path, degrees, strip):
    """A phone held upright writes 90: the stored top is to be shown at the right."""
    write_video(tmp_path / "v.mp4", side=32, width=64)
    if degrees:
        rotate(tmp_path / "v.mp4", degrees)
    picture = load(tmp_path, "v.mp4", "video")[3].mean(-1)
    assert picture.shape == ((32, 64) if degrees % 180 == 0 else (64, 32))
    edges = {"top": picture[:4], "bottom": picture[-4:], "left": picture[:, :4], "right": picture[:, -4:]}
    assert min(edges, key=lambda edge: edges[edge].mean()) == strip and edges[strip].mean() < 30


def test_bad_videos_are_refused(tmp_path):
    write_video(tmp_path / "v.mp4")
    whole = (tmp_path / "v.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "holed.mp4").write_bytes(whole.replace(whole[len(whole) // 4 : len(whole) // 2], b"\0" * 50))
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXTINF:1,\nv.mp4\n#EXT-X-ENDLIST\n")
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile v.mp4\n")
    (tmp_path / "none.mp4").write_bytes(b"")
    (tmp_path / "folder.mp4").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "still.mp4", format="PNG")
    for name in ("cut.mp4", "holed.mp4", "list.m3u8", "list.mp4", "none.mp4", "folder.mp4", "still.mp4"):
        with pytest.raises(MediaError):
            load(tmp_path, name, "video")
