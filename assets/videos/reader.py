"""Reading videos of unknown provenance: what a file is, its frames and their times.

Every native read happens in a child process (`decoder`) that is given a number of seconds. decord reads where its
frames agree in number and in time with the container's own packets; PyAV reads the rest. Times are presentation
timestamps, never an index divided by a rate.
"""

import atexit
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from multiprocessing import Pipe
from pathlib import Path

import numpy as np

# Neighbouring intervals that differ by more than this share make a rate variable.
_STEADY = 0.1


class ReaderError(ValueError):
    """A file cannot be used, as "reason: remedy" in whole words without any path."""


@dataclass(frozen=True)
class Probe:
    """What a video is.

    Attributes:
        reader: "decord" or "pyav": which of them reads this file's frames right.
        codec: FFmpeg's name.
        width: upright, pixels.
        height: upright, pixels.
        rotation: degrees clockwise that the container asks for, 0, 90, 180 or 270; already in width and height.
        indices: (F,) i64 positions, among all frames in presentation order, of those whose time is past the last one's.
        timestamps: (F,) f64 s from the first frame, strictly increasing.
        variable_rate: the intervals between frames differ.
        damaged: packets that could not be decoded.
    """

    reader: str
    codec: str
    width: int
    height: int
    rotation: int
    indices: np.ndarray
    timestamps: np.ndarray
    variable_rate: bool
    damaged: int

    @property
    def seconds(self) -> float:
        """From the first frame to the last."""
        return float(self.timestamps[-1])


def probe(path: Path, timeout_s: float, allow_decord: bool = True) -> Probe:
    """Find out what a file is, which reader reads it right, and when each of its frames is shown.

    Args:
        path: the file.
        timeout_s: seconds each native read may take.
        allow_decord: False goes straight to PyAV and decodes everything once.

    Raises:
        ReaderError: no clip can be made of the file.
    """
    found = _ask("demux", timeout_s, path=str(path))
    if allow_decord and _fit_for_decord(found):
        try:
            _ask("check_decord", timeout_s, path=str(path), times=found["times"])
            return _probe_of(found, "decord", found["times"], 0)
        except ReaderError:
            pass
    return _decoded(path, found, timeout_s)


def _decoded(path: Path, found: dict, timeout_s: float) -> Probe:
    """The probe of a file that PyAV reads: everything is decoded once."""
    decoded = _ask("decode", timeout_s, path=str(path))
    return _probe_of(found, "pyav", decoded["times"], decoded["damaged"])


def _fit_for_decord(found: dict) -> bool:
    """Whether decord may be given a file at all, by what its container says.

    A header that promises more frames than there are makes decord hang; it fails on or ignores rotations; and where
    the first packets need an earlier one that is missing, it counts frames that no picture belongs to.
    """
    whole = found["begins_whole"] and found["promised"] <= len(found["times"])
    return whole and found["rotation"] == 0 and len(found["times"]) >= 2


def _probe_of(found: dict, reader: str, times: np.ndarray, damaged: int) -> Probe:
    """A probe from what the container says and (F,) times of all frames in presentation order, NaN where unknown."""
    if len(times) == 1:
        raise ReaderError("One frame only: nothing can move in a still picture.")
    if damaged > len(times):
        raise ReaderError(f"{damaged} packets are damaged and only {len(times)} frames decode: fetch it again.")
    if np.isnan(times).all():
        raise ReaderError("No presentation timestamps: put it into a container that keeps them, such as MP4.")
    indices = _advancing(times)
    if len(indices) < 2:
        raise ReaderError("No time passes between its frames: its timestamps are all the same, encode it again.")
    times = np.round(times[indices] - times[indices[0]], 6)
    turned = found["rotation"] % 180 == 90
    width, height = (found["height"], found["width"]) if turned else (found["width"], found["height"])
    steps = np.diff(times)
    variable = bool(np.ptp(steps) > _STEADY * np.median(steps))
    return Probe(reader, found["codec"], width, height, found["rotation"], indices, times, variable, damaged)


def sample(probed: Probe, count: int) -> np.ndarray:
    """(T,) positions into probed.indices and probed.timestamps: at most count, uniform in time, ends included."""
    times = probed.timestamps
    if len(times) <= count:
        return np.arange(len(times))
    wanted = np.linspace(0, times[-1], count)
    after = np.clip(np.searchsorted(times, wanted), 1, len(times) - 1)
    earlier = wanted - times[after - 1] <= times[after] - wanted
    return np.unique(np.where(earlier, after - 1, after))


def read_frames(
    path: Path, indices: np.ndarray, max_pixels: int, reader: str, timeout_s: float = 60.0
) -> tuple[np.ndarray, np.ndarray]:
    """Frames of a file, upright and no larger than max_pixels, with their times.

    Args:
        path: the file.
        indices: (T,) increasing positions among all its frames in presentation order, as in Probe.indices.
        max_pixels: largest area of a frame; frames are never enlarged.
        reader: Probe.reader.
        timeout_s: seconds each native read may take.

    Returns:
        (T, h, w, 3) u8 RGB and (T,) f64 s from the clip's first frame, from presentation timestamps.

    Raises:
        ReaderError: the frames cannot be read.
    """
    probed = probe(path, timeout_s, allow_decord=reader == "decord")
    if probed.reader != reader:
        raise ReaderError(f"{reader} cannot read this file: read it with {probed.reader}.")
    places = np.searchsorted(probed.indices, indices)
    if len(indices) == 0 or places.max() >= len(probed.indices) or (probed.indices[places] != indices).any():
        raise ReaderError("Frames were asked for that the file does not have: probe it again.")
    return _read(path, probed, places, max_pixels, timeout_s), probed.timestamps[places]


def read_clip(path: Path, count: int, max_pixels: int, timeout_s: float) -> tuple[Probe, np.ndarray, np.ndarray]:
    """Probe a file and read at most count frames, uniform in time; PyAV takes over where decord fails on the way.

    Returns:
        The probe, (T, h, w, 3) u8 RGB frames and (T,) positions into probe.indices and probe.timestamps.

    Raises:
        ReaderError: no clip can be made of the file.
    """
    found = _ask("demux", timeout_s, path=str(path))
    if _fit_for_decord(found):
        try:
            probed = _probe_of(found, "decord", found["times"], 0)
            chosen = sample(probed, count)
            return probed, _read(path, probed, chosen, max_pixels, timeout_s), chosen
        except ReaderError:
            pass
    probed = _decoded(path, found, timeout_s)
    chosen = sample(probed, count)
    return probed, _read(path, probed, chosen, max_pixels, timeout_s), chosen


def _read(path: Path, probed: Probe, chosen: np.ndarray, max_pixels: int, timeout_s: float) -> np.ndarray:
    """(T, h, w, 3) u8 frames of a probed file at the given positions into its indices."""
    size = _bearable(probed, max_pixels)
    asked = {"path": str(path), "indices": probed.indices[chosen], "size": size}
    if probed.reader == "pyav":
        return _ask("read_pyav", timeout_s, **asked)
    # Only where all times advance does decord agree with them, so that they are the times of all frames.
    return _ask("read_decord", timeout_s, times=probed.timestamps, **asked)


def _bearable(probed: Probe, max_pixels: int) -> tuple[int, int]:
    """(width, height), as stored, of the largest frames of at most max_pixels; never larger than the video's."""
    stored = (probed.height, probed.width) if probed.rotation % 180 == 90 else (probed.width, probed.height)
    scale = min(1.0, math.sqrt(max_pixels / (probed.width * probed.height)))
    return max(1, math.floor(stored[0] * scale)), max(1, math.floor(stored[1] * scale))


def _advancing(times: np.ndarray) -> np.ndarray:
    """Positions of the frames whose time is known and later than every time before it."""
    known = np.flatnonzero(np.isfinite(times))
    latest = np.maximum.accumulate(times[known])
    return known[np.r_[True, times[known][1:] > latest[:-1]]]


class _Decoder:
    """The child process of this process, replaced when it hangs or dies."""

    def __init__(self):
        self._process: subprocess.Popen | None = None
        self._connection = None
        self._file = -1

    def ask(self, name: str, timeout_s: float, arguments: dict):
        """One request; ReaderError if it is refused, takes too long, or ends the child."""
        if self._process is None or self._process.poll() is not None:
            self._start()
        try:
            self._connection.send((name, arguments, timeout_s))
            if not self._connection.poll(timeout_s):
                self.stop()
                raise ReaderError(f"Reading took longer than {timeout_s:g} s: raise timeout_s or repair the file.")
            outcome, value = self._connection.recv()
        except (EOFError, OSError):
            self.stop()
            raise ReaderError("The decoder died on this file: it is damaged; re-encode or fetch it again.") from None
        if outcome == "refused":
            raise ReaderError(value)
        return self._lifted(value) if isinstance(value, tuple) else value

    def _lifted(self, shape: tuple[int, ...]) -> np.ndarray:
        """The pictures that the child laid into the file."""
        frames = np.empty(shape, np.uint8)
        rest = memoryview(frames).cast("B")
        while len(rest):
            count = os.preadv(self._file, [rest], frames.nbytes - len(rest))
            if count == 0:
                raise ReaderError("The decoder laid down too few pictures: read the file again.")
            rest = rest[count:]
        return frames

    def _start(self) -> None:
        self.stop()
        self._connection, theirs = Pipe()
        search = os.pathsep.join(part for part in sys.path if part)
        self._file = os.memfd_create("frames")
        with theirs:
            shared = [theirs.fileno(), self._file]
            self._process = subprocess.Popen(
                [sys.executable, "-m", "assets.videos.decoder", *map(str, shared)],
                pass_fds=shared,
                env={**os.environ, "PYTHONPATH": search},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )

    def stop(self) -> None:
        """End the child, whatever it is doing."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._connection.close()
            os.close(self._file)
        self._process = self._connection = None


_DECODERS: dict[int, _Decoder] = {}


def _ask(name: str, timeout_s: float, **arguments):
    """Ask this process's decoder; a forked process gets its own."""
    decoder = _DECODERS.get(os.getpid())
    if decoder is None:
        decoder = _DECODERS[os.getpid()] = _Decoder()
        atexit.register(decoder.stop)
    return decoder.ask(name, timeout_s, arguments)
