"""Native video reads, one request at a time, in a process of its own that may hang or die without harm.

Started by `reader` as `python -m assets.videos.decoder <descriptor>`; speaks pickled (function, arguments, seconds)
and ("value" | "refused", ...) over a socket pair that only its parent holds. decord aborts or hangs inside native code
with the interpreter's lock held, so nothing in this process could save it: an alarm ends it, the parent starts another.
"""

import math
import signal
import sys
from multiprocessing.connection import Connection

import numpy as np

# Containers that are a single file. FFmpeg also knows playlists, which would open what a hostile file names.
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegvideo,mpegts,asf,flv,live_flv,ogg,gif,mxf,nut,h264,hevc,m4v,"
    "ivf,dv,rm,yuv4mpegpipe,image2,mjpeg,png_pipe,jpeg_pipe,mp3,wav,aac,flac"
)
_LARGEST = 8192 * 4320  # pixels of one picture
_BATCH = 32_000_000  # pixels decoded before they are made smaller


class RefusedError(Exception):
    """A video that cannot be read, as a sentence "reason: remedy" for people."""


def demux(path: str) -> dict:
    """What the container says, without decoding more than its first frame.

    Returns:
        codec, width, height (before rotation), rotation (degrees clockwise), promised (frames by the header, 0 if it
        does not say), times (F,) f64 s: presentation timestamps of all packets, sorted.
    """
    with _open(path) as container:
        stream = container.streams.video[0]
        first = _first_frame(container, stream)
        found = {
            "codec": stream.codec_context.codec.canonical_name,
            "width": first.width,
            "height": first.height,
            "rotation": -first.rotation % 360,
            "promised": stream.frames,
        }
    with _open(path) as container:
        stream = container.streams.video[0]
        stamps = [_stamp(packet) for packet in container.demux(stream) if packet.size and not packet.is_discard]
        found["times"] = np.sort(np.array([s for s in stamps if s is not None], float) * float(stream.time_base))
    return found


def decode(path: str) -> dict:
    """Decode everything once: times (F,) f64 s, NaN where a frame has none, and the number of damaged packets."""
    times, damaged = [], [0]
    with _open(path) as container:
        for frame in _frames(container, damaged):
            stamp = _stamp(frame)
            times.append(math.nan if stamp is None else stamp * float(frame.time_base))
    return {"times": np.array(times, float), "damaged": damaged[0]}


def decord_times(path: str) -> np.ndarray:
    """(F,) timestamps as decord gives them, seconds; they may be wrong."""
    import decord

    reader = decord.VideoReader(path, num_threads=1)
    return np.asarray(reader.get_frame_timestamp(np.arange(len(reader))), float)[:, 0]


def read_decord(path: str, indices: np.ndarray, max_pixels: int) -> np.ndarray:
    """(T, h, w, 3) u8 frames at the given positions through decord, upright."""
    import decord

    reader = decord.VideoReader(path, num_threads=1)
    shape = reader[int(indices[0])].shape
    batch = max(1, _BATCH // (shape[0] * shape[1]))
    frames = []
    for begin in range(0, len(indices), batch):
        pictures = reader.get_batch(indices[begin : begin + batch]).asnumpy()
        frames += [shrink(picture, max_pixels) for picture in pictures]
    return np.stack(frames)


def read_pyav(path: str, indices: np.ndarray, max_pixels: int) -> np.ndarray:
    """(T, h, w, 3) u8 frames at the given positions through PyAV, upright; decodes up to the last of them."""
    wanted, frames = set(indices.tolist()), {}
    with _open(path) as container:
        for index, frame in enumerate(_frames(container, [0])):
            if index in wanted:
                picture = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4)
                frames[index] = shrink(picture, max_pixels)
            if len(frames) == len(wanted):
                break
    missing = wanted - frames.keys()
    if missing:
        raise RefusedError(f"Frame {min(missing)} did not decode a second time: the file changes, copy it again.")
    shapes = {picture.shape for picture in frames.values()}
    if len(shapes) > 1:
        raise RefusedError("The picture changes its size on the way: re-encode it to one size.")
    return np.stack([frames[index] for index in indices.tolist()])


def shrink(picture: np.ndarray, max_pixels: int) -> np.ndarray:
    """An (H, W, 3) u8 picture of at most max_pixels, its proportions kept; never larger than it was."""
    from PIL import Image

    height, width = picture.shape[:2]
    if height * width <= max_pixels:
        return np.ascontiguousarray(picture)
    scale = math.sqrt(max_pixels / (height * width))
    size = max(1, math.floor(width * scale)), max(1, math.floor(height * scale))
    # Pillow resamples in fixed point: the same bytes on every processor.
    return np.asarray(Image.fromarray(np.ascontiguousarray(picture)).resize(size, Image.Resampling.BICUBIC))


def _open(path: str):
    """An open container that has a video stream of a bearable size."""
    import av

    try:
        container = av.open(path, options={"format_whitelist": _FORMATS, "protocol_whitelist": "file"})
    except av.FFmpegError as error:
        raise RefusedError(
            f"Not a readable video ({error.strerror}): cut short, damaged or of an unknown format; fetch it again."
        ) from None
    if not container.streams.video:
        container.close()
        raise RefusedError("No video stream: the file holds only sound or data, or was cut short; fetch it again.")
    context = container.streams.video[0].codec_context
    if context.width * context.height > _LARGEST:
        size = f"{context.width}x{context.height}"
        container.close()
        raise RefusedError(f"A picture of {size} is larger than 8192x4320: scale it down first.")
    return container


def _first_frame(container, stream):
    """The first frame that decodes: it knows the rotation."""
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


FUNCTIONS = {f.__name__: f for f in (demux, decode, decord_times, read_decord, read_pyav)}


def serve(connection: Connection) -> None:
    """Answer requests until the parent closes its end."""
    while True:
        try:
            name, arguments, seconds = connection.recv()
        except EOFError:
            return
        # The parent waits `seconds`; the alarm ends this process should the parent itself be gone by then.
        signal.alarm(math.ceil(seconds) + 2)
        try:
            reply = ("value", FUNCTIONS[name](**arguments))
        except RefusedError as error:
            reply = ("refused", str(error))
        except Exception as error:
            reply = ("refused", f"The decoder failed ({type(error).__name__}): the file is damaged; fetch it again.")
        signal.alarm(0)
        connection.send(reply)


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
