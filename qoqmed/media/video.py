"""Videos through PyAV: a few evenly spaced frames, holding no more than those in memory.

Rules: frames by `window.evenly` over the container's packets in the order of their times (counted without decoding),
those from `start_s` up to but not including `stop_s` where the row restricts them; a file from which a chosen frame
does not come is refused as cut short. Rotation marks of quarter turns are applied, mirrors are not. Playlists are
refused: they name files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from qoqmed.media.options import Options
from qoqmed.media.planes import MAX_PIXELS
from qoqmed.media.refusals import decoding, need, refused
from qoqmed.media.window import Pixels, evenly

CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,asf,gif"
OPTIONS = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
ODD_ANGLE = 5  # degrees from a quarter turn


def load(path: Path, count: int, options: Options | None = None) -> Pixels:
    """At most `count` frames -> [N, H, W, 3]."""
    options = options or Options()
    with decoding("video", path):
        stretch = _positions(path, options)
        wanted = [stretch[place] for place in evenly(len(stretch), count)]
        if not wanted:
            raise refused("the video has no frames" + _told(options), path)
        taken: list[Pixels] = []
        with _opened(path) as container:
            for position, frame in enumerate(container.decode(video=0)):
                if position == wanted[len(taken)]:
                    taken.append(_upright(frame, path))
                    if len(taken) == len(wanted):
                        return np.stack(taken)
        raise refused(f"the video is cut short: {len(taken)} of {len(wanted)} chosen frames decode", path)


def _told(options: Options) -> str:
    if options.stop_s is None and not options.start_s:
        return ""
    return f" from {options.start_s:g} s" + (f" to {options.stop_s:g} s" if options.stop_s is not None else "")


def _opened(path: Path) -> Any:
    container = need("av", "video").open(str(path), options=OPTIONS)
    if not container.streams.video:
        container.close()
        raise refused("the file has no video in it", path)
    stream = container.streams.video[0]
    if stream.width * stream.height > MAX_PIXELS:
        container.close()
        raise refused(f"a frame has {stream.width} x {stream.height} pixels", path, f"at most {MAX_PIXELS}")
    stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}  # the stream's own headers may claim more
    return container


def _positions(path: Path, options: Options) -> range:
    """The frames, of those that the container announces and shows, that lie in the stretch."""
    with _opened(path) as container:
        stream = container.streams.video[0]
        times = [packet.pts for packet in container.demux(video=0) if packet.size and not packet.is_discard]
        if options.stop_s is None and not options.start_s:
            return range(len(times))
        if not times or None in times or not stream.time_base:
            raise refused("the video's frames have no times", path, mend="leave out 'start_s' and 'stop_s'")
        seconds = [float((time - min(times)) * stream.time_base) for time in sorted(times)]
    stop_s = float("inf") if options.stop_s is None else options.stop_s
    before = sum(time < options.start_s for time in seconds)
    return range(before, before + sum(options.start_s <= time < stop_s for time in seconds))


def _upright(frame: Any, path: Path) -> Pixels:
    turns, odd = divmod(frame.rotation, 90)
    if ODD_ANGLE < odd < 90 - ODD_ANGLE:
        raise refused(f"the video is to be turned by {frame.rotation} degrees", path, "a quarter turn")
    turned = np.rot90(frame.to_ndarray(format="rgb24"), turns + (odd > ODD_ANGLE))  # both count counterclockwise
    return np.ascontiguousarray(turned)
