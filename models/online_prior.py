"""Prior features while the model runs: from a clip's frames, not from a cache.

Two networks can make them: π³'s encoder, which sees each frame alone (what the reference model reads), and with it
π³'s decoder, which sees all frames together (which the reference leaves unused). Both end as a geometry cache keeps
them, in one of two forms: `stacked` or `pooled`.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.pi3 import DECODER_REGISTERS, IMAGENET_MEAN, IMAGENET_STD, MAX_PIXELS, PATCH, Encoder, Pi3, as_images
from models.pixels import CLIP_STD, MERGE, TEMPORAL_PATCH

REFERENCE_CLIP_MEAN = (0.48145466, 0.4576275, 0.40821073)
"""What the reference undoes the pixels' normalisation with; CLIP's own green is 0.4578275. Its weights learned so."""


class OnlinePrior(nn.Module):
    """Prior features of one clip as the geometry cache would hold them."""

    def __init__(
        self,
        network: Pi3,
        kind: Literal["encoder", "decoder"] = "encoder",
        merge: Literal["stack", "mean"] = "stack",
        side: int = 16,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        """Choose what is computed.

        Args:
            network: in evaluation mode; its parameters get no gradients here.
            kind: tokens of each frame alone, or of all frames together.
            merge: 2×2×2 tokens side by side, or their means on a coarse grid.
            side: longest side of the coarse grid.
            max_pixels: frames are resized to at most this area.
        """
        super().__init__()
        if kind not in ("encoder", "decoder") or merge not in ("stack", "mean"):
            raise ValueError(f"prior {kind!r}, merge {merge!r}: choose encoder or decoder, and stack or mean")
        self.network, self.kind, self.merge, self.side, self.max_pixels = network, kind, merge, side, max_pixels

    @torch.no_grad()
    def forward(self, frames: np.ndarray) -> Tensor:
        """(T',h',w',C) float32 with bfloat16's digits from (T,H,W,3) u8 frames.

        Raises:
            ValueError: for another shape or dtype.
        """
        images = as_images(frames, self.max_pixels).to(self.network.image_mean.device)
        tokens = self.network.encode(images)
        if self.kind == "decoder":
            features = self.network.decode(tokens)[:, :, DECODER_REGISTERS:]
            tokens = features.unflatten(2, tokens.shape[2:4])
        merged = stacked(tokens[0]) if self.merge == "stack" else pooled(tokens[0], self.side)
        return merged.to(torch.bfloat16).float()


class PatchPrior(nn.Module):
    """Prior features from the patches that the vision tower reads, as the reference makes them.

    The encoder sees the very frames that Qwen sees, so there are as many keys as vision tokens. Each video and each
    image of a batch has its own grid; a still image is read as a video of one slot.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    @torch.no_grad()
    def forward(self, patches: Tensor, grids: Tensor) -> list[Tensor]:
        """Features (t,h/2,w/2,8C) of each video.

        Args:
            patches: (sum of t·h·w, 1176) as `models.pixels.Video` has them.
            grids: (V,3) t, h, w in patches.

        Raises:
            ValueError: if patches and grids do not fit each other.
        """
        sizes = grids.prod(-1).tolist()
        if sum(sizes) != len(patches):
            raise ValueError(f"{len(patches)} patches for grids of {sum(sizes)}: give the patches of these videos")
        videos = zip(patches.split(sizes), grids.tolist(), strict=True)
        return [stacked(self.encoder(_images(video, grid))) for video, grid in videos]


def _images(patches: Tensor, grid: list[int]) -> Tensor:
    """Frames (2t,3,14h,14w), normalised for DINOv2, from one video's patches."""
    slots, rows, columns = grid
    windows = (slots, rows // MERGE, columns // MERGE, MERGE, MERGE)
    # window row, window column, row in it, column in it, colour, frame, pixel row, pixel column
    pixels = patches.reshape(*windows, 3, TEMPORAL_PATCH, PATCH, PATCH)
    frames = pixels.permute(0, 6, 5, 1, 3, 7, 2, 4, 8).reshape(slots * TEMPORAL_PATCH, 3, rows * PATCH, columns * PATCH)
    clip_std, clip_mean, std, mean = (
        frames.new_tensor(values)[:, None, None]
        for values in (CLIP_STD, REFERENCE_CLIP_MEAN, IMAGENET_STD, IMAGENET_MEAN)
    )
    return (frames * clip_std + clip_mean - mean) / std


def stacked(tokens: Tensor) -> Tensor:
    """Tokens as the published model reads them: 2 frames × 2 × 2 neighbours side by side, zeros beyond the edge.

    Args:
        tokens: (T,h,w,C).

    Returns:
        (ceil(T/2), ceil(h/2), ceil(w/2), 8C), channels in the order frame, row, column, token channel.
    """
    frames, rows, columns = tokens.shape[:3]
    padded = functional.pad(tokens, (0, 0, 0, columns % 2, 0, rows % 2, 0, frames % 2))
    blocks = padded.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).unflatten(0, (-1, 2))
    return blocks.permute(0, 2, 4, 1, 3, 5, 6).flatten(3)


def pooled(tokens: Tensor, side: int) -> Tensor:
    """Means of (T,h,w,C) tokens over 2 frames and the cells of a grid with longest side `side`.

    Returns:
        (ceil(T/2),h',w',C) float32; an odd last frame stands alone.
    """
    scale = min(1.0, side / max(tokens.shape[1:3]))
    grid = tuple(max(1, round(length * scale)) for length in tokens.shape[1:3])
    cells = functional.adaptive_avg_pool2d(tokens.float().permute(0, 3, 1, 2), grid)
    cells = torch.cat([cells, cells[-1:]]) if len(cells) % 2 else cells
    return cells.unflatten(0, (-1, 2)).mean(1).permute(0, 2, 3, 1)
