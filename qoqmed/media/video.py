"""Videos through PyAV: a few evenly spaced frames, holding no more than those in memory.

Rules: frames by `window.evenly` over the container's packets (counted without decoding); a file from which a chosen
frame does not come is refused as cut short. Rotation marks are not applied. Playlists are refused: they name files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from qoqmed.media.image import MAX_PIXELS
from qoqmed.media.refusals import decoding, need, refused
from qoqmed.media.window import Pixels, evenly

CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,asf,gif"
OPTIONS = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}


def load(path: Path, count: int) -> Pixels:
    """At most `count` frames -> [N, H, W, 3]."""
    with decoding("video", path):
        wanted = evenly(_length(path), count)
        if not wanted:
            raise refused("the video has no frames", path)
        taken: list[Pixels] = []
        with _opened(path) as container:
            for position, frame in enumerate(container.decode(video=0)):
                if position == wanted[len(taken)]:
                    taken.append(frame.to_ndarray(format="rgb24"))
                    if len(taken) == len(wanted):
                        return np.stack(taken)
        raise refused(f"the video is cut short: {len(taken)} of {len(wanted)} chosen frames decode", path)


def _opened(path: Path) -> Any:
    container = need("av", "video").open(str(path), options=OPTIONS)
    if not container.streams.video:
        container.close()
        raise refused("the file has no video in it", path)
    stream = container.streams.video[0]
    if stream.width * stream.height > MAX_PIXELS:
        container.close()
        raise refused(f"a frame has {stream.width} x {stream.height} pixels", path, f"at most {MAX_PIXELS}")
    return container


def _length(path: Path) -> int:
    """Frames that the container announces and shows."""
    with _opened(path) as container:
        return sum(1 for packet in container.demux(video=0) if packet.size and not packet.is_discard)
