"""From video frames to the flattened patches that Qwen's vision towers read, and the marks drawn on them.

transformers' own video processor needs torchvision; this is the same arithmetic in NumPy and Pillow, held
against transformers' image processor by a test.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

MERGE = 2
TEMPORAL_PATCH = 2
CLIP_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
CLIP_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
HALF = np.full(3, 0.5, np.float32)
# Sides of a picture up to this many pixels carry marks of single dots; the dots grow with the picture.
PIXELS_PER_DOT = 168
LARGEST_MARK = 999
# Rows of 5 dots, 7 to a digit, the leftmost dot the highest bit. A font's own would not be the same bytes everywhere.
DIGITS = (
    (0x0E, 0x11, 0x11, 0x11, 0x11, 0x11, 0x0E),
    (0x04, 0x0C, 0x04, 0x04, 0x04, 0x04, 0x0E),
    (0x0E, 0x11, 0x01, 0x02, 0x04, 0x08, 0x1F),
    (0x0E, 0x11, 0x01, 0x06, 0x01, 0x11, 0x0E),
    (0x02, 0x06, 0x0A, 0x12, 0x1F, 0x02, 0x02),
    (0x1F, 0x10, 0x1E, 0x01, 0x01, 0x11, 0x0E),
    (0x06, 0x08, 0x10, 0x1E, 0x11, 0x11, 0x0E),
    (0x1F, 0x01, 0x02, 0x04, 0x08, 0x08, 0x08),
    (0x0E, 0x11, 0x11, 0x0E, 0x11, 0x11, 0x0E),
    (0x0E, 0x11, 0x11, 0x0F, 0x01, 0x02, 0x0C),
)


class FrameSizeError(ValueError):
    """Frames have a shape no patch grid can be laid over."""


@dataclass(frozen=True)
class Patching:
    """How a vision tower wants its pixels: patches of `side`×`side` pixels, normalised by `mean` and `std` (3,)."""

    side: int
    mean: np.ndarray
    std: np.ndarray


QWEN2_5_PATCHING = Patching(14, CLIP_MEAN, CLIP_STD)
QWEN3_PATCHING = Patching(16, HALF, HALF)


@dataclass(frozen=True)
class Video:
    """What the vision tower, the position ids and the timestamps need to know of one clip.

    Attributes:
        patches: (t·h·w, 3·2·side·side) float32, windows of 2×2 patches kept together.
        grid: (t, h, w) patches; the language model sees t·h/2·w/2 tokens.
        seconds_per_slot: seconds from one temporal patch (two frames) to the next.
        moments: t times in seconds, each the middle of its temporal patch's two frames.
    """

    patches: np.ndarray
    grid: tuple[int, int, int]
    seconds_per_slot: float
    moments: tuple[float, ...] = ()

    @property
    def tokens(self) -> int:
        """Vision tokens in the language model."""
        return self.grid[0] * self.grid[1] * self.grid[2] // MERGE**2


@dataclass(frozen=True)
class Marks:
    """Numbers by which questions point at things of a clip.

    Attributes:
        numbers: N whole numbers, 1 to ``LARGEST_MARK``.
        boxes: (N, T, 4) x1, y1, x2, y2 as shares of the picture's width and height, NaN where a thing is not seen.
    """

    numbers: tuple[int, ...]
    boxes: np.ndarray

    def at(self, frames: np.ndarray) -> Marks:
        """The marks of some of the frames, by index or by (T,) bool."""
        return replace(self, boxes=self.boxes[:, frames])


def target_size(
    height: int, width: int, min_pixels: int, max_pixels: int, side: int = QWEN2_5_PATCHING.side
) -> tuple[int, int]:
    """Height and width to resize to: multiples of 2·`side` within the pixel budget, the aspect ratio nearly kept.

    Source: `smart_resize` of Qwen2-VL's image processor.

    Raises:
        FrameSizeError: if a side is 0 or one side is more than 200 times the other.
    """
    if min(height, width) < 1 or max(height, width) > 200 * min(height, width):
        raise FrameSizeError(f"frames of {height}x{width} pixels: sides must be positive and within 1:200")
    factor = side * MERGE
    rounded = round(height / factor) * factor, round(width / factor) * factor
    if rounded[0] * rounded[1] > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        return tuple(max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width))
    if rounded[0] * rounded[1] < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        return tuple(math.ceil(side * grow / factor) * factor for side in (height, width))
    return rounded


def resize(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bicubic resize of (T,h,w,3) u8 frames to (T,height,width,3) u8, as transformers does with Pillow."""
    from PIL import Image

    if frames.shape[1:3] == (height, width):
        return frames
    images = [Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC) for frame in frames]
    return np.stack([np.asarray(image) for image in images])


def draw_marks(frames: np.ndarray, marks: Marks) -> np.ndarray:
    """Frames (T,h,w,3) u8 with a disc that holds its number at every thing that is marked and seen.

    The disc lies in the thing's box, top centre; on top of the box where it would cover much of the thing; always
    within the picture. It is at least 11 pixels high and about a fifteenth of a larger picture. The same frames and
    marks give the same bytes on every machine.
    """
    height, width = frames.shape[1:3]
    dot = max(1, round(min(height, width) / PIXELS_PER_DOT))
    drawn = frames.copy()
    corners = np.clip(marks.boxes, 0, 1) * [width, height, width, height]
    # Comparisons with NaN are false.
    shown = (corners[..., 0] < corners[..., 2]) & (corners[..., 1] < corners[..., 3])
    for thing, moment in np.argwhere(shown):
        disc, covers = _disc(marks.numbers[thing], dot)
        size = len(disc)
        left, top, right, bottom = corners[thing, moment]
        inside = right - left >= size and bottom - top >= 2 * size
        x = min(max(round((left + right - size) / 2), 0), max(width - size, 0))
        y = min(max(round(top if inside else top - size), 0), max(height - size, 0))
        place = drawn[moment, y : y + size, x : x + size]
        rows, columns = place.shape[:2]
        np.copyto(place, disc[:rows, :columns], where=covers[:rows, :columns])
    return drawn


@lru_cache(maxsize=128)
def _disc(number: int, dot: int) -> tuple[np.ndarray, np.ndarray]:
    """(d,d,3) u8 white digits on black with a white rim, and which pixels of it belong to the disc, (d,d,1) bool."""
    digits = [[[row >> bit & 1 for bit in range(4, -1, -1)] for row in DIGITS[int(digit)]] for digit in str(number)]
    spaced = np.concatenate([np.pad(np.array(digit, bool), ((0, 0), (0, 1))) for digit in digits], axis=1)[:, :-1]
    text = np.kron(spaced, np.ones((dot, dot), bool))
    # Odd in dots, as the text is, so that it lies in the middle.
    size = dot * ((math.ceil(math.hypot(*spaced.shape)) + 2) | 1)
    # Twice the pixels' distances from the middle are whole numbers, which compare alike everywhere.
    across = 2 * np.arange(size) - size + 1
    distance = across[:, None] ** 2 + across**2
    disc = np.where(distance > (size - 2 * dot) ** 2, 255, 0).astype(np.uint8)
    top, left = (size - text.shape[0]) // 2, (size - text.shape[1]) // 2
    disc[top : top + text.shape[0], left : left + text.shape[1]][text] = 255
    return np.repeat(disc[..., None], 3, axis=2), (distance <= size**2)[..., None]


def patchify(frames: np.ndarray, side: int = QWEN2_5_PATCHING.side) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Cut normalised frames (T,H,W,3) float32 into flattened patches (t·h·w, 3·2·side·side) and their grid.

    An odd last frame is repeated. Order: time, then windows of 2×2 patches row by row, then the patches of a
    window; inside a patch: channel, frame, row, column.
    """
    if len(frames) % TEMPORAL_PATCH:
        frames = np.concatenate([frames, frames[-1:]])
    count, height, width, _ = frames.shape
    t, h, w = count // TEMPORAL_PATCH, height // side, width // side
    blocks = frames.reshape(t, TEMPORAL_PATCH, h // MERGE, MERGE, side, w // MERGE, MERGE, side, 3)
    ordered = blocks.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)
    return np.ascontiguousarray(ordered).reshape(t * h * w, -1), (t, h, w)


def prepare_video(
    frames: np.ndarray,
    timestamps: np.ndarray,
    max_frames: int,
    min_pixels: int,
    max_pixels: int,
    marks: Marks | None = None,
    patching: Patching = QWEN2_5_PATCHING,
) -> Video:
    """Everything the vision tower needs of one clip.

    Args:
        frames: (T,h,w,3) u8 RGB.
        timestamps: (T,) seconds, increasing.
        max_frames: at most so many frames are used, uniform over the clip.
        min_pixels: lower bound of height × width after resizing.
        max_pixels: upper bound of height × width after resizing.
        marks: what is drawn on the frames after resizing, so that it stays readable; None for nothing.
        patching: of the vision tower that reads the patches.

    Raises:
        FrameSizeError: if there is no frame or its sides cannot be resized.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or len(frames) == 0 or len(frames) != len(timestamps):
        raise FrameSizeError(f"frames {frames.shape} with {len(timestamps)} timestamps: expected (T,h,w,3) and T")
    if len(frames) > max_frames:
        chosen = np.linspace(0, len(frames) - 1, max_frames).round().astype(int)
        frames, timestamps, marks = frames[chosen], timestamps[chosen], marks and marks.at(chosen)
    resized = resize(frames, *target_size(*frames.shape[1:3], min_pixels, max_pixels, patching.side))
    if marks is not None:
        resized = draw_marks(resized, marks)
    normalised = (resized.astype(np.float32) / np.float32(255) - patching.mean) / patching.std
    patches, grid = patchify(normalised, patching.side)
    interval = float(timestamps[-1] - timestamps[0]) / max(len(timestamps) - 1, 1)
    return Video(patches, grid, TEMPORAL_PATCH * interval, _moments(timestamps))


def _moments(timestamps: np.ndarray) -> tuple[float, ...]:
    """The middle of each pair of frames; an odd last frame is a pair with itself."""
    even = np.append(timestamps, timestamps[-1:]) if len(timestamps) % TEMPORAL_PATCH else timestamps
    return tuple(even.reshape(-1, TEMPORAL_PATCH).mean(1).tolist())
