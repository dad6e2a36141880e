"""From video frames to the flattened patches that Qwen2.5-VL's vision tower reads.

transformers' own video processor needs torchvision; this is the same arithmetic in NumPy and Pillow, held
against transformers' image processor by a test.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

PATCH = 14
MERGE = 2
TEMPORAL_PATCH = 2
CLIP_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
CLIP_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


class FrameSizeError(ValueError):
    """Frames have a shape no patch grid can be laid over."""


@dataclass(frozen=True)
class Video:
    """What the vision tower and the position ids need to know of one clip.

    Attributes:
        patches: (t·h·w, 3·2·14·14) float32, windows of 2×2 patches kept together.
        grid: (t, h, w) patches; the language model sees t·h/2·w/2 tokens.
        seconds_per_slot: seconds from one temporal patch (two frames) to the next.
    """

    patches: np.ndarray
    grid: tuple[int, int, int]
    seconds_per_slot: float

    @property
    def tokens(self) -> int:
        """Vision tokens in the language model."""
        return self.grid[0] * self.grid[1] * self.grid[2] // MERGE**2


def target_size(height: int, width: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Height and width to resize to: multiples of 28 within the pixel budget, the aspect ratio nearly kept.

    Source: `smart_resize` of Qwen2-VL's image processor.

    Raises:
        FrameSizeError: if a side is 0 or one side is more than 200 times the other.
    """
    if min(height, width) < 1 or max(height, width) > 200 * min(height, width):
        raise FrameSizeError(f"frames of {height}x{width} pixels: sides must be positive and within 1:200")
    factor = PATCH * MERGE
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


def patchify(frames: np.ndarray) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Cut normalised frames (T,H,W,3) float32 into flattened patches (t·h·w, 3·2·14·14) and their grid.

    An odd last frame is repeated. Order: time, then windows of 2×2 patches row by row, then the patches of a
    window; inside a patch: channel, frame, row, column.
    """
    if len(frames) % TEMPORAL_PATCH:
        frames = np.concatenate([frames, frames[-1:]])
    count, height, width, _ = frames.shape
    t, h, w = count // TEMPORAL_PATCH, height // PATCH, width // PATCH
    blocks = frames.reshape(t, TEMPORAL_PATCH, h // MERGE, MERGE, PATCH, w // MERGE, MERGE, PATCH, 3)
    ordered = blocks.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)
    return np.ascontiguousarray(ordered).reshape(t * h * w, -1), (t, h, w)


def prepare_video(
    frames: np.ndarray, timestamps: np.ndarray, max_frames: int, min_pixels: int, max_pixels: int
) -> Video:
    """Everything the vision tower needs of one clip.

    Args:
        frames: (T,h,w,3) u8 RGB.
        timestamps: (T,) seconds, increasing.
        max_frames: at most so many frames are used, uniform over the clip.
        min_pixels: lower bound of height × width after resizing.
        max_pixels: upper bound of height × width after resizing.

    Raises:
        FrameSizeError: if there is no frame or its sides cannot be resized.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or len(frames) == 0 or len(frames) != len(timestamps):
        raise FrameSizeError(f"frames {frames.shape} with {len(timestamps)} timestamps: expected (T,h,w,3) and T")
    if len(frames) > max_frames:
        chosen = np.linspace(0, len(frames) - 1, max_frames).round().astype(int)
        frames, timestamps = frames[chosen], timestamps[chosen]
    resized = resize(frames, *target_size(*frames.shape[1:3], min_pixels, max_pixels))
    normalised = (resized.astype(np.float32) / np.float32(255) - CLIP_MEAN) / CLIP_STD
    patches, grid = patchify(normalised)
    interval = float(timestamps[-1] - timestamps[0]) / max(len(timestamps) - 1, 1)
    return Video(patches, grid, TEMPORAL_PATCH * interval)
