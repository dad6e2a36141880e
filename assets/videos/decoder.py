"""Native video reads, one request at a time, in a process of its own that may hang or die without harm.

Started by `reader` as `python -m assets.videos.decoder <connection> <frames>`: it speaks pickled (function, arguments,
seconds) and ("value" | "refused", ...) over a socket pair that only its parent holds, and lays pictures into a file in
memory that both have open, since a socket would take about as long to carry them as decord takes to decode a small
clip. decord aborts or hangs inside native code with the interpreter's lock held, so nothing in this process could save
it: an alarm ends it, the parent starts another.
"""

import math
import os
import signal
import sys
from multiprocessing.connection import Connection

import numpy as np

# Containers that are a single file. FFmpeg also knows playlists, which would open what a hostile file names.
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegvideo,mpegts,asf,flv,live_flv,ogg,gif,mxf,nut,h264,hevc,m4v,"
    "ivf,dv,rm,yuv4mpegpipe,image2,mjpeg,png_pipe,jpeg_pipe,mp3,wav,aac,flac"
)
_LOG = -1  # the reading end of what native code writes to standard error, once this process serves
_LARGEST = 8192 * 4320  # pixels of one picture
_LIKE_DECORD = "BILINEAR"  # swscale's filter in decord; it widens with the reduction, so nothing is skipped


class RefusedError(Exception):
    """A video that cannot be read, as a sentence "reason: remedy" for people."""


def demux(path: str) -> dict:
    """What the container says, from one pass over its packets; only the first picture is decoded.

    Returns:
        codec, width, height (before rotation), rotation (degrees clockwise), promised (frames by the header, 0 if it
        does not say), begins_whole (the first packet stands on its own), times (F,) f64 s: presentation timestamps of
        all packets, sorted.
    """
    stamps, first, begins_whole = [], None, None
    with _open(path) as container:
        stream = container.streams.video[0]
        for packet in _packets(container):
            if begins_whole is None:
                first, begins_whole = _picture(packet), packet.is_keyframe
            if not packet.is_discard:
                stamps.append(_stamp(packet))
        first = first or _first_frame(path)
        return {
            "codec": stream.codec_context.codec.canonical_name,
            "width": first.width,
            "height": first.height,
            "rotation": -first.rotation % 360,
            "promised": stream.frames,
            "begins_whole": bool(begins_whole),
            "times": np.sort(np.array([s for s in stamps if s is not None], float) * float(stream.time_base)),
        }


def decode(path: str) -> dict:
    """Decode everything once: times (F,) f64 s, NaN where a frame has none, and the number of damaged packets."""
    times, damaged = [], [0]
    with _open(path) as container:
        for frame in _frames(container, damaged):
            stamp = _stamp(frame)
            times.append(math.nan if stamp is None else stamp * float(frame.time_base))
    return {"times": np.array(times, float), "damaged": damaged[0]}


def check_decord(path: str, times: np.ndarray) -> None:
    """Refuse a file whose frames decord does not show at `times` (F,) s, the container's own."""
    _decord(path, times)


def read_decord(path: str, times: np.ndarray, indices: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(T, h, w, 3) u8 frames of that size (w, h) at the given positions through decord, checked as by check_decord.

    decord counts the pictures that come out, so that one its decoder drops shifts all that follow. That happens to
    damaged packets only, of which nothing but FFmpeg's log tells.
    """
    _complaints()
    frames = _decord(path, times, size).get_batch(indices).asnumpy()
    if complaint := _complaints():
        raise RefusedError(f"decord meets damage ({complaint}): read it with PyAV.")
    return frames


def read_pyav(path: str, indices: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(T, h, w, 3) u8 upright frames at the given positions through PyAV, of that size (w, h) before they are turned.

    Decodes up to the last of them.
    """
    wanted, frames, shapes = set(indices.tolist()), {}, set()
    with _open(path) as container:
        for index, frame in enumerate(_frames(container, [0])):
            if index in wanted:
                shapes.add((frame.width, frame.height, frame.rotation))
                picture = frame.to_ndarray(format="rgb24", width=size[0], height=size[1], interpolation=_LIKE_DECORD)
                frames[index] = np.rot90(picture, round(frame.rotation / 90) % 4)
            if len(frames) == len(wanted):
                break
    missing = wanted - frames.keys()
    if missing:
        raise RefusedError(f"Frame {min(missing)} did not decode a second time: the file changes, copy it again.")
    if len(shapes) > 1:
        raise RefusedError("The picture changes its size on the way: re-encode it to one size.")
    return np.stack([frames[index] for index in indices.tolist()])


def _decord(path: str, times: np.ndarray, size: tuple[int, int] = (-1, -1)):
    """Decord's reader of a file, if its frames agree in number and in time with `times`; it scales as it decodes."""
    import decord

    reader = decord.VideoReader(path, num_threads=1, width=size[0], height=size[1])
    if len(reader) != len(times):
        raise RefusedError(f"decord sees {len(reader)} frames and the container {len(times)}: read it with PyAV.")
    seen = np.asarray(reader.get_frame_timestamp(np.arange(len(times))), float)[:, 0]
    late = np.abs((seen - seen[0]) - (times - times[0])).max()
    if not late < 0.25 * np.diff(times).min():  # also where decord's times are no numbers
        raise RefusedError(f"decord is up to {late:g} s off the container's timestamps: read it with PyAV.")
    return reader


def _complaints() -> str:
    """The first line that native code has written to standard error since the last call, empty if there is none."""
    try:
        return os.read(_LOG, 1 << 20).decode("utf-8", "replace").partition("\n")[0]
    except BlockingIOError:
        return ""


def _open(path: str):
    """An open container that has a video stream of a bearable size."""
    import av

    try:
        options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
        container = av.open(path, options=options, metadata_errors="replace")
    except av.FFmpegError as error:
        raise RefusedError(
            f"Not a readable video ({error.strerror}): cut short, damaged or of an unknown format; fetch it again."
        ) from None
    if not container.streams.video:
        container.close()
        raise RefusedError("No video stream: the file holds only sound or data, or was cut short; fetch it again.")
    context = container.streams.video[0].codec_context
    if context is None:
        container.close()
        raise RefusedError("The codec is unknown: re-encode it, to H.264 for example.")
    if context.width * context.height > _LARGEST:
        size = f"{context.width}x{context.height}"
        container.close()
        raise RefusedError(f"A picture of {size} is larger than 8192x4320: scale it down first.")
    return container


def _packets(container):
    """Packets of the video stream, up to where the container is damaged."""
    import av

    try:
        for packet in container.demux(container.streams.video[0]):
            if packet.size:
                yield packet
    except av.FFmpegError:
        return


def _picture(packet):
    """The picture in a packet, None if there is none; its decoder is of no use for the packets that follow."""
    import av

    context = packet.stream.codec_context
    context.thread_count = 1
    try:
        # Without the flush a decoder that reorders pictures would want some more packets first.
        return next(iter([*packet.decode(), *context.decode(None)]), None)
    except av.FFmpegError:
        return None


def _first_frame(path: str):
    """The first frame that decodes: it knows the rotation."""
    with _open(path) as container:
        for frame in _frames(container, [0]):
            return frame
    raise RefusedError("No frame can be decoded: the file is damaged or its codec unknown; fetch it again.")


def _frames(container, damaged: list[int]):
    """Frames in presentation order; packets that do not decode are counted in damaged[0] and passed over."""
    import av

    stream = container.streams.video[0]
    stream.codec_context.thread_count = 1
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError:
            damaged[0] += 1
            return
        if packet is None:
            return
        try:
            yield from packet.decode()
        except av.FFmpegError:
            damaged[0] += 1


def _stamp(thing) -> int | None:
    """Presentation timestamp of a packet or frame in ticks; its decoding timestamp where it has none."""
    return thing.dts if thing.pts is None else thing.pts


FUNCTIONS = {f.__name__: f for f in (demux, decode, check_decord, read_decord, read_pyav)}


def lay_down(frames: np.ndarray, descriptor: int) -> tuple[int, ...]:
    """Write an array into a file from its beginning; returns the array's shape."""
    rest = memoryview(np.ascontiguousarray(frames)).cast("B")
    os.ftruncate(descriptor, len(rest))
    while len(rest):
        rest = rest[os.pwrite(descriptor, rest, frames.nbytes - len(rest)) :]
    return frames.shape


def serve(connection: Connection, descriptor: int) -> None:
    """Answer requests until the parent closes its end; pictures go into the file, and their shape is the answer."""
    while True:
        try:
            name, arguments, seconds = connection.recv()
        except EOFError:
            return
        # The parent waits `seconds`; the alarm ends this process should the parent itself be gone by then.
        signal.alarm(math.ceil(seconds) + 2)
        try:
            value = FUNCTIONS[name](**arguments)
            reply = ("value", lay_down(value, descriptor) if isinstance(value, np.ndarray) else value)
        except RefusedError as error:
            reply = ("refused", str(error))
        except Exception as error:
            reply = ("refused", f"The decoder failed ({type(error).__name__}): the file is damaged; fetch it again.")
        signal.alarm(0)
        connection.send(reply)


if __name__ == "__main__":
    # A pipe that never blocks holds the beginning of a log, however long a damaged file makes it.
    _LOG, written = os.pipe()
    os.set_blocking(_LOG, False)
    os.set_blocking(written, False)
    os.dup2(written, sys.stderr.fileno())
    serve(Connection(int(sys.argv[1])), int(sys.argv[2]))
