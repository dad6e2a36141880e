"""Small videos written on the fly, and one tiny rendered shard."""

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from assets.videos.parameters import SampleWorldParameters, VideoParameters
from assets.videos.world import render_shard

TINY_WORLD = SampleWorldParameters(clips=6, width=96, height=72, fps=4, seconds=3)
QUICK = VideoParameters(frames=8, max_pixels=4096, timeout_s=20)


@pytest.fixture(scope="session")
def world_shard(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("raw") / "shard-000003"
    render_shard("shard-000003", TINY_WORLD, folder)
    return folder


def grey_frames(count: int, width: int = 64, height: int = 48) -> np.ndarray:
    """(T, H, W, 3) u8: the brightness of a frame tells its index, see `index_of`."""
    levels = (20 + 6 * np.arange(count)).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3)).copy()


def index_of(frames: np.ndarray) -> np.ndarray:
    """(T,) which of `grey_frames` each frame is."""
    return np.round((frames.mean(axis=(1, 2, 3)) - 20) / 6).astype(int)


def write_video(
    path: Path, frames: np.ndarray | None = None, times_ms: list[int] | None = None, **options: str
) -> Path:
    """Write frames (by default 20 grey ones) at the given times (by default 25 per second) as H.264."""
    frames = grey_frames(20) if frames is None else frames
    times_ms = list(range(0, 40 * len(frames), 40)) if times_ms is None else times_ms
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        stream.options = {"crf": "8", "g": "5"}
        for pixels, time in zip(frames, times_ms, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def turn(path: Path, clockwise: int) -> Path:
    """Ask for a rotation in the track header of an MP4 (ISO 14496-12, 8.3.2)."""
    a, b, c, d = {0: (1, 0, 0, 1), 90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}[clockwise]
    data = bytearray(path.read_bytes())
    begin = data.index(b"tkhd") + 4 + 40
    one = 1 << 16
    data[begin : begin + 36] = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path
