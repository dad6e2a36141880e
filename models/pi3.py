"""π³: cameras and points of a clip from its frames alone, with no frame singled out as the reference.

Wang et al., "π³: Scalable Permutation-Equivariant Visual Geometry Learning", arXiv 2507.13347. A DINOv2 ViT-L/14 with
registers encodes each frame; a decoder alternates attention within frames and across all of them; three small
transformers turn its features into local points, their confidence, and camera poses. Module names follow the keys of
the published weights (`yyfz233/Pi3`), which load as they are.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.weights import WeightsError, load_into, open_weights, read_json

PATCH = 14
ENCODER_REGISTERS = 4
DECODER_REGISTERS = 5
ROTARY_BASE = 100.0
MAX_PIXELS = 255_000
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Pi3Config:
    """Sizes of the network; the published ones by default.

    Attributes:
        width: channels of a token, the same in encoder, decoder and the three task decoders.
        heads: attention heads; `width / heads` must be a multiple of 4 (two axes, each turned in pairs).
        encoder_depth: blocks of the encoder.
        decoder_depth: blocks of the cross-frame decoder, at least 2.
        task_depth: blocks of each task decoder.
        camera_width: channels of the camera head.
        position_grid: side, in patches, of the square that the position embeddings were learned on.
    """

    width: int = 1024
    heads: int = 16
    encoder_depth: int = 24
    decoder_depth: int = 36
    task_depth: int = 5
    camera_width: int = 512
    position_grid: int = 37

    def __post_init__(self) -> None:
        for field in fields(self):
            size = getattr(self, field.name)
            if type(size) is not int or not 1 <= size <= 8192:
                raise ValueError(f"{field.name} is {size!r}: give a whole number from 1 to 8192")
        if self.width % (4 * self.heads) or self.decoder_depth < 2:
            raise ValueError(
                f"width {self.width}, heads {self.heads}, decoder_depth {self.decoder_depth}: "
                "width must be a multiple of 4 × heads, decoder_depth at least 2"
            )


@dataclass
class Reconstruction:
    """What the network says about B clips of T frames of H×W pixels (h×w patches).

    Scale and world frame are the network's own: poses are right up to one similarity transform per clip.

    Attributes:
        local_points: (B,T,H,W,3) f32, the point seen at each pixel, in that frame's camera (OpenCV: x right, y down,
            z forward).
        confidence: (B,T,H,W) f32 logits.
        world_from_camera: (B,T,4,4) f32, camera-to-world.
        encoder_tokens: (B,T,h,w,C), of each frame alone.
        decoder_tokens: (B,T,h,w,2C), of all frames together: the last two decoder blocks side by side.
    """

    local_points: Tensor
    confidence: Tensor
    world_from_camera: Tensor
    encoder_tokens: Tensor
    decoder_tokens: Tensor


class Attention(nn.Module):
    """Multi-head self-attention, optionally with normed queries and keys and rotary positions."""

    def __init__(self, width: int, heads: int, normed: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = nn.LayerNorm(width // heads) if normed else nn.Identity()
        self.k_norm = nn.LayerNorm(width // heads) if normed else nn.Identity()
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor, rotary: tuple[Tensor, Tensor] | None) -> Tensor:
        """Tokens (N,L,C) that have read each other; `rotary` as `rotary_tables` gives it."""
        q, k, v = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        if rotary is not None:
            q, k = rotate(q, *rotary), rotate(k, *rotary)
        return self.proj(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class LayerScale(nn.Module):
    """One learned factor per channel (Touvron et al. 2021)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (...,C), scaled."""
        return tokens * self.gamma


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int, normed: bool = False, scaled: bool = False) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads, normed)
        self.ls1 = LayerScale(width) if scaled else nn.Identity()
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(
            OrderedDict(fc1=nn.Linear(width, 4 * width), act=nn.GELU(), fc2=nn.Linear(4 * width, width))
        )
        self.ls2 = LayerScale(width) if scaled else nn.Identity()

    def forward(self, tokens: Tensor, rotary: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Tokens (N,L,C) to tokens (N,L,C)."""
        tokens = tokens + self.ls1(self.attn(self.norm1(tokens), rotary))
        return tokens + self.ls2(self.mlp(self.norm2(tokens)))


class Encoder(nn.Module):
    """DINOv2 with registers (Oquab et al. 2023, Darcet et al. 2023)."""

    def __init__(self, config: Pi3Config) -> None:
        super().__init__()
        width = config.width
        self.grid = config.position_grid
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.grid**2, width))
        self.register_tokens = nn.Parameter(torch.zeros(1, ENCODER_REGISTERS, width))
        self.patch_embed = nn.Sequential(OrderedDict(proj=nn.Conv2d(3, width, PATCH, PATCH)))
        self.blocks = nn.ModuleList(Block(width, config.heads, scaled=True) for _ in range(config.encoder_depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N,3,H,W) to patch tokens (N,h,w,C)."""
        patches = self.patch_embed(images)
        rows, columns = patches.shape[2:]
        patches = patches.flatten(2).mT + self._positions(rows, columns)
        single = torch.cat([self.cls_token + self.pos_embed[:, :1], self.register_tokens], 1)
        tokens = torch.cat([single.expand(len(patches), -1, -1), patches], 1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)[:, single.shape[1] :].unflatten(1, (rows, columns))

    def _positions(self, rows: int, columns: int) -> Tensor:
        """Position embeddings (1, rows·columns, C), resampled as DINOv2 with registers does: antialiased, no offset."""
        square = self.pos_embed[:, 1:].mT.unflatten(2, (self.grid, self.grid))
        return functional.interpolate(square, (rows, columns), mode="bicubic", antialias=True).flatten(2).mT


class TaskDecoder(nn.Module):
    """A few blocks that look at one frame at a time, between two projections."""

    def __init__(self, config: Pi3Config, out_width: int) -> None:
        super().__init__()
        self.projects = nn.Linear(2 * config.width, config.width)
        self.blocks = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.task_depth))
        self.linear_out = nn.Linear(config.width, out_width)

    def forward(self, features: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """Features (N,L,2C) to the float32 patch tokens (N,hw,C') that a head reads."""
        tokens = self.projects(features)
        for block in self.blocks:
            tokens = block(tokens, rotary)
        return self.linear_out(tokens)[:, DECODER_REGISTERS:].float()


class PixelHead(nn.Module):
    """A linear layer from a patch token to a value (of some channels) for each of its pixels."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.proj = nn.Linear(width, channels * PATCH**2)

    def forward(self, tokens: Tensor, rows: int, columns: int) -> Tensor:
        """Tokens (N,h·w,C) to values (N,H,W,channels)."""
        blocks = self.proj(tokens).unflatten(2, (self.channels, PATCH, PATCH)).unflatten(1, (rows, columns))
        return blocks.permute(0, 1, 4, 2, 5, 3).flatten(3, 4).flatten(1, 2)


class Residual(nn.Sequential):
    """Layers whose output is added to their input."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (...,C) to tokens (...,C)."""
        return tokens + super().forward(tokens)


class CameraHead(nn.Module):
    """The pose of a frame from the mean of its patch tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.res_conv = nn.ModuleList(self._residual(width) for _ in range(2))
        self.more_mlps = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.fc_t = nn.Linear(width, 3)
        self.fc_rot = nn.Linear(width, 9)

    @staticmethod
    def _residual(width: int) -> Residual:
        layers = OrderedDict()
        for number in (1, 2, 3):
            layers[f"res_conv{number}"] = nn.Linear(width, width)
            layers[f"act{number}"] = nn.ReLU()
        return Residual(layers)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (N,hw,C) to camera-to-world poses (N,4,4)."""
        for layers in self.res_conv:
            tokens = layers(tokens)
        pooled = self.more_mlps(tokens.mean(1))
        pose = torch.eye(4, device=tokens.device).repeat(len(tokens), 1, 1)
        pose[:, :3, :3] = nearest_rotation(self.fc_rot(pooled).unflatten(1, (3, 3)))
        pose[:, :3, 3] = self.fc_t(pooled)
        return pose


class Pi3(nn.Module):
    """The network; float32 unless `compute_in` says otherwise."""

    def __init__(self, config: Pi3Config | None = None) -> None:
        super().__init__()
        config = config or Pi3Config()
        self.config = config
        self.encoder = Encoder(config)
        self.register_token = nn.Parameter(torch.zeros(1, 1, DECODER_REGISTERS, config.width))
        self.decoder = nn.ModuleList(
            Block(config.width, config.heads, normed=True, scaled=True) for _ in range(config.decoder_depth)
        )
        self.point_decoder = TaskDecoder(config, config.width)
        self.point_head = PixelHead(config.width, 3)
        self.conf_decoder = TaskDecoder(config, config.width)
        self.conf_head = PixelHead(config.width, 1)
        self.camera_decoder = TaskDecoder(config, config.camera_width)
        self.camera_head = CameraHead(config.camera_width)
        self.register_buffer("image_mean", torch.tensor(IMAGENET_MEAN).reshape(1, 3, 1, 1))
        self.register_buffer("image_std", torch.tensor(IMAGENET_STD).reshape(1, 3, 1, 1))

    @property
    def dtype(self) -> torch.dtype:
        """What matrices are multiplied in."""
        return self.encoder.patch_embed.proj.weight.dtype

    def compute_in(self, dtype: torch.dtype) -> Pi3:
        """Multiply matrices in float32 or bfloat16; norms, encoder and decoder sums, and the heads stay float32.

        For bfloat16 this is what the published code does by autocast, at half its memory: the matrices are stored as
        autocast would round them at each use.

        Raises:
            ValueError: for any other dtype.
        """
        if dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(f"π³ computes in torch.float32 or torch.bfloat16, not {dtype}")
        for part in (self.encoder, self.decoder, self.point_decoder, self.conf_decoder, self.camera_decoder):
            for layer in part.modules():
                if isinstance(layer, nn.Linear | nn.Conv2d):
                    layer.to(dtype)
        return self

    def encode(self, images: Tensor) -> Tensor:
        """Patch tokens of each frame alone.

        Args:
            images: (B,T,3,H,W) in 0..1, H and W multiples of 14.

        Returns:
            (B,T,h,w,C).

        Raises:
            ValueError: for another shape.
        """
        if images.ndim != 5 or images.shape[2] != 3 or 0 in images.shape or any(n % PATCH for n in images.shape[3:]):
            raise ValueError(f"images {tuple(images.shape)}: give (B,T,3,H,W) with sides that are multiples of {PATCH}")
        normalised = (images.flatten(0, 1) - self.image_mean) / self.image_std
        with self._precision(images.device):
            return self.encoder(normalised).unflatten(0, images.shape[:2])

    def decode(self, tokens: Tensor) -> Tensor:
        """Features of all frames together.

        Args:
            tokens: (B,T,h,w,C) as `encode` gives them.

        Returns:
            (B,T,5+h·w,2C): the last two blocks (within frames, across frames) side by side; the first 5 tokens of a
            frame are registers, which belong to no patch.
        """
        clips, frames, rows, columns, _ = tokens.shape
        within = rotary_tables(rows, columns, self._head_width, tokens.device, self.dtype)
        across = tuple(table.repeat(frames, 1, 1) for table in within)
        registers = self.register_token.expand(clips, frames, -1, -1)
        hidden = torch.cat([registers, tokens.flatten(2, 3)], 2)
        with self._precision(tokens.device):
            for index, block in enumerate(self.decoder):
                previous = hidden
                if index % 2:
                    hidden = block(previous.flatten(1, 2), across).reshape(previous.shape)
                else:
                    hidden = block(previous.flatten(0, 1), within).reshape(previous.shape)
        return torch.cat([previous, hidden], -1)

    def forward(self, images: Tensor) -> Reconstruction:
        """Reconstruct clips; for `images` and errors see `encode`."""
        tokens = self.encode(images)
        clip_shape, (rows, columns) = tokens.shape[:2], tokens.shape[2:4]
        features = self.decode(tokens)
        sequences = features.flatten(0, 1)
        rotary = rotary_tables(rows, columns, self._head_width, tokens.device, self.dtype)
        with self._precision(tokens.device):
            point_tokens = self.point_decoder(sequences, rotary)
            confidence_tokens = self.conf_decoder(sequences, rotary)
            camera_tokens = self.camera_decoder(sequences, rotary)
        with torch.autocast(tokens.device.type, enabled=False):
            over_z, log_z = self.point_head(point_tokens, rows, columns).split([2, 1], -1)
            depth = log_z.exp()
            confidence = self.conf_head(confidence_tokens, rows, columns)[..., 0]
            poses = self.camera_head(camera_tokens)
        return Reconstruction(
            local_points=torch.cat([over_z * depth, depth], -1).unflatten(0, clip_shape),
            confidence=confidence.unflatten(0, clip_shape),
            world_from_camera=poses.unflatten(0, clip_shape),
            encoder_tokens=tokens,
            decoder_tokens=features[:, :, DECODER_REGISTERS:].unflatten(2, (rows, columns)),
        )

    @property
    def _head_width(self) -> int:
        return self.config.width // self.config.heads

    def _precision(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.dtype is torch.bfloat16)


def rotary_tables(
    rows: int, columns: int, width: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each (registers + rows·columns, 2, width / 4), that say where a frame's tokens lie.

    Half of a head's channels turn with the row, half with the column, both counted from 1; registers lie at 0 and do
    not turn (RoPE, Su et al. 2021, in 2D with base 100 as in CroCo v2). The published code rounds the angles to the
    dtype it computes in, and its weights have been used so; hence the angles, too, are in `dtype`.
    """
    frequencies = ROTARY_BASE ** -(torch.arange(0, width // 2, 2, device=device) / (width // 2))
    row, column = (torch.arange(1, side + 1, device=device) for side in (rows, columns))
    patches = torch.cartesian_prod(row, column)
    positions = torch.cat([patches.new_zeros(DECODER_REGISTERS, 2), patches])
    angles = (positions[..., None] * frequencies).to(dtype)
    return angles.cos(), angles.sin()


def rotate(heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn channel pairs of (N,heads,L,width) by the angles of `rotary_tables`: channel i with i + width/4."""
    first, second = heads.unflatten(-1, (2, 2, -1)).unbind(-2)
    return torch.stack([first * cosine - second * sine, second * cosine + first * sine], -2).flatten(-3)


def nearest_rotation(matrices: Tensor) -> Tensor:
    """The rotations (N,3,3) nearest to matrices (N,3,3) whose rows are first scaled to length 1.

    Symmetric orthogonalisation by SVD (Levinson et al. 2020, "An Analysis of SVD for Deep Rotation Estimation").
    """
    u, _, vh = torch.linalg.svd(functional.normalize(matrices, dim=-1))
    sign = torch.linalg.det(u @ vh)
    return torch.cat([u[:, :, :2], u[:, :, 2:] * sign[:, None, None]], -1) @ vh


def load_pi3(location: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> tuple[Pi3, str]:
    """The network with published weights, in eval mode, and the sha256 of the weights.

    Sizes are the published ones unless a config.json beside the weights states others under the names of `Pi3Config`
    (the published config.json states none of these).

    Raises:
        WeightsError: if the weights cannot be had or do not fit.
    """
    weights = open_weights(location)
    path = weights.folder / "config.json"
    stated = read_json(path) if path.is_file() else {}
    try:
        config = Pi3Config(**{field.name: stated[field.name] for field in fields(Pi3Config) if field.name in stated})
    except ValueError as error:
        raise WeightsError(f"{path}: {error}") from error
    with torch.device("meta"):
        model = Pi3(config)
    load_into(model, weights)
    return model.compute_in(dtype).to(device).eval().requires_grad_(False), weights.sha256


def as_images(frames: np.ndarray, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Frames as the network reads them, resized (up or down) by Lanczos with Pillow, as the reference does.

    Args:
        frames: (T,H,W,3) u8 RGB.
        max_pixels: upper bound of the area of a resized frame.

    Returns:
        (1,T,3,h,w) f32 in 0..1, h and w multiples of 14 as near to the frames' aspect as the area allows.

    Raises:
        ValueError: for another shape or dtype, or if not even one patch fits.
    """
    from PIL import Image

    if frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape or frames.dtype != np.uint8:
        raise ValueError(f"frames {frames.shape} of {frames.dtype}: give (T,H,W,3) of uint8")
    height, width = image_size(*frames.shape[1:3], max_pixels)
    resized = [Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS) for frame in frames]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2)[None].float() / 255


def image_size(height: int, width: int, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Height and width to resize to: multiples of 14, area just within max_pixels, aspect nearly kept.

    The reference's rule: scale to the area, round, shorten the side that is too long; a side is never under one patch.

    Raises:
        ValueError: if max_pixels is less than one patch.
    """
    if max_pixels < PATCH**2:
        raise ValueError(f"max_pixels {max_pixels}: one patch has {PATCH**2} pixels; allow at least that")
    scale = math.sqrt(max_pixels / (height * width)) / PATCH
    rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
    while rows * columns * PATCH**2 > max_pixels:
        if rows == 1 or (columns > 1 and columns / rows > width / height):
            columns -= 1
        else:
            rows -= 1
    return rows * PATCH, columns * PATCH


def valid_points(
    confidence_logits: Tensor, local_points: Tensor, min_confidence: float = 0.1, edge_rtol: float = 0.03
) -> Tensor:
    """Which points to trust: finite, confident, and not on a depth edge.

    A pixel is on an edge if the depths in its 3×3 neighbourhood span more than edge_rtol of its own depth
    (`depth_edge` of MoGe, Wang et al. 2024, which the reference uses).

    Args:
        confidence_logits: (...,H,W).
        local_points: (...,H,W,3), camera frame.
        min_confidence: bound for the sigmoid of the logits.
        edge_rtol: bound for the span over the depth.

    Returns:
        (...,H,W) bool.
    """
    depth = local_points[..., 2]
    planes = depth.reshape(-1, 1, *depth.shape[-2:])
    span = functional.max_pool2d(planes, 3, 1, 1) + functional.max_pool2d(-planes, 3, 1, 1)
    edge = (span > edge_rtol * planes).reshape(depth.shape)
    return (confidence_logits.sigmoid() > min_confidence) & ~edge & local_points.isfinite().all(-1)
