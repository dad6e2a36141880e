"""Orient Anything: which way a thing faces, read from one picture of it (Wang et al., arXiv 2412.18605).

A DINOv2 backbone and a small head over its class token. The head answers with three histograms of one degree per bin,
azimuth, polar and rotation, and with two logits of which the first says that the thing has a front at all. Module names
are those of the published checkpoint; only the backbone's attention is named as the installed transformers names it.

Azimuth counts from 0, polar from -90, rotation from -90 in checkpoints with 180 rotation bins (croplargeEX2) and from
-180 in those with 360 (ronormsigma1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling

from models.weights import load_into, locate, open_weights

AZIMUTH_BINS, POLAR_BINS = 360, 180
# The published repository holds several checkpoints, one folder each; this is the large one the paper evaluates.
PUBLISHED_FOLDER = "croplargeEX2"
# The thing fills this share of its square picture, as in the pictures the network learned from.
FILLED_SHARE = 0.85
# Published as facebook/dinov2-large's preprocessing: shorter side to 256, then the middle 224 x 224.
RESIZED, SEEN = 256, 224
PICTURES_AT_ONCE = 32
# How the published checkpoint names the parts of the backbone's attention, and how transformers 5 does.
ATTENTION_NAMES = {
    ".attention.attention.query.": ".attention.q_proj.",
    ".attention.attention.key.": ".attention.k_proj.",
    ".attention.attention.value.": ".attention.v_proj.",
    ".attention.output.dense.": ".attention.o_proj.",
}


@dataclass(frozen=True)
class OrientConfig:
    """Sizes of a checkpoint; the defaults are those of croplargeEX2 (DINOv2-large).

    Attributes:
        width, layers, heads: of the backbone.
        image_size: side in pixels of the pictures that the backbone's position embeddings were learned on.
        rotation_bins: 180 (-90 to 89 degrees) or 360 (-180 to 179).
    """

    width: int = 1024
    layers: int = 24
    heads: int = 16
    image_size: int = 518
    rotation_bins: int = 180

    @property
    def outputs(self) -> int:
        """Numbers per picture: three histograms and two logits."""
        return AZIMUTH_BINS + POLAR_BINS + self.rotation_bins + 2


@dataclass
class Orientation:
    """What the network says of K pictures; angles are NaN where a mask was empty.

    Attributes:
        azimuth_deg: (K,) f32, 0 to 359; 0 faces the camera, 90 faces the left edge of the picture.
        polar_deg: (K,) f32, -90 to 89; how far above the thing's horizon the camera stands.
        rotation_deg: (K,) f32; turn of the picture about the optical axis, counter-clockwise as one looks at it.
        confidence: (K,) f32, 0 to 1: that the thing has a front.
    """

    azimuth_deg: np.ndarray
    polar_deg: np.ndarray
    rotation_deg: np.ndarray
    confidence: np.ndarray


class OrientationHead(nn.Module):
    """Two linear layers with batch norm, both as wide as the answer."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.net1 = nn.Sequential(nn.Linear(channels, outputs), nn.BatchNorm1d(outputs), nn.ReLU())
        self.net2 = nn.Sequential(nn.Linear(outputs, outputs), nn.BatchNorm1d(outputs))

    def forward(self, tokens: Tensor) -> Tensor:
        """(K,channels) to (K,outputs)."""
        return self.net2(self.net1(tokens))


class OrientAnything(nn.Module):
    """The network and the pictures it wants."""

    def __init__(self, config: OrientConfig = OrientConfig()) -> None:
        super().__init__()
        self.config = config
        backbone = Dinov2Config(
            hidden_size=config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            image_size=config.image_size,
            patch_size=14,
        )
        self.dinov2 = Dinov2Model(backbone)
        self.down_sampler = OrientationHead(config.width, config.outputs)

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised pictures (K,3,224,224) to (K,outputs) f32.

        The head stays in single precision: half precision ties neighbouring bins.
        """
        tokens = self.dinov2(pixels.to(self.dinov2.dtype)).last_hidden_state[:, 0]
        return self.down_sampler(tokens.float())

    @torch.inference_mode()
    def orient(self, crops: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> Orientation:
        """Orientation of the thing under each mask, K in all.

        Args:
            crops: K pictures, (h,w,3) u8 RGB; whole frames or parts of them.
            masks: K masks, (h,w) bool, of the one thing that counts; what lies outside is never seen.

        Raises:
            ValueError: if a picture has no mask, or one of another size.
        """
        if len(crops) != len(masks):
            raise ValueError(f"{len(crops)} pictures and {len(masks)} masks: give one mask per picture")
        filled = [place for place, mask in enumerate(masks) if np.any(mask)]
        answers = np.full((4, len(masks)), np.nan, np.float32)
        answers[3] = 0.0
        for start in range(0, len(filled), PICTURES_AT_ONCE):
            places = filled[start : start + PICTURES_AT_ONCE]
            pixels = normalised([picture_of(crops[place], masks[place]) for place in places])
            answers[:, places] = decoded(self(pixels.to(self.dinov2.device)), self.config.rotation_bins)
        return Orientation(*answers)


def picture_of(crop: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The thing alone, (s,s,3) u8: black outside the mask, centred, filling 0.85 of a square.

    Args:
        crop: (h,w,3) u8.
        mask: (h,w) bool, not empty.

    Raises:
        ValueError: if the sizes differ.
    """
    if crop.shape[:2] != mask.shape:
        raise ValueError(f"a mask of {mask.shape} pixels for a picture of {crop.shape[:2]}: give them the same size")
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    window = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    thing = np.where(mask[window][..., None], crop[window], 0)
    height, width = thing.shape[:2]
    side = int(max(height, width) / FILLED_SHARE)
    top, left = (side - height) // 2, (side - width) // 2
    picture = np.zeros((side, side, 3), np.uint8)
    picture[top : top + height, left : left + width] = thing
    return picture


def normalised(pictures: Sequence[np.ndarray]) -> Tensor:
    """(K,3,224,224) f32 as DINOv2 wants it, from square (s,s,3) u8 pictures of any sizes."""
    processor = BitImageProcessorPil(
        size={"shortest_edge": RESIZED},
        crop_size={"height": SEEN, "width": SEEN},
        resample=PILImageResampling.BICUBIC,
        image_mean=IMAGENET_DEFAULT_MEAN,
        image_std=IMAGENET_DEFAULT_STD,
    )
    # Told where the channels are, for a picture three pixels high looks like one with its channels first.
    return processor(images=list(pictures), input_data_format="channels_last", return_tensors="pt")["pixel_values"]


def decoded(outputs: Tensor, rotation_bins: int) -> np.ndarray:
    """(4,K) f32: azimuth, polar, rotation in degrees and confidence, from (K,outputs).

    The most likely bin of each histogram; the first of the two softmaxed logits.
    """
    azimuth, polar, rotation, front = outputs.float().split([AZIMUTH_BINS, POLAR_BINS, rotation_bins, 2], dim=1)
    rows = [
        azimuth.argmax(1),
        polar.argmax(1) - POLAR_BINS // 2,
        rotation.argmax(1) - rotation_bins // 2,
        front.softmax(1)[:, 0],
    ]
    return torch.stack([row.float() for row in rows]).cpu().numpy()


def forward_in_camera(azimuth_deg: np.ndarray, polar_deg: np.ndarray, rotation_deg: np.ndarray) -> np.ndarray:
    """Unit vectors along which things face, (K,3) in the camera frame (x right, y down, z forward); NaN stays NaN.

    A thing that faces the camera looks along -z. Azimuth turns it about y (at 90 it looks along -x), polar then about x
    (a camera above it sees it face downwards), rotation then turns the picture counter-clockwise.

    Source: paper section 1.3 for azimuth and polar, whose matrices turn the frame, not the vector. For rotation the
    network's own axis drawing is followed; the paper's code turns the other way, which an upright camera hides.

    Args:
        azimuth_deg: (K,) degrees, as `Orientation` has them.
        polar_deg: the same.
        rotation_deg: the same.
    """
    azimuth, polar, rotation = (np.radians(np.asarray(a, float)) for a in (azimuth_deg, polar_deg, rotation_deg))
    x, y, z = -np.sin(azimuth), np.cos(azimuth) * np.sin(polar), -np.cos(azimuth) * np.cos(polar)
    cosine, sine = np.cos(rotation), np.sin(rotation)
    return np.stack([x * cosine + y * sine, y * cosine - x * sine, z], axis=-1)


def published_name(key: str) -> str:
    """The name that the module here gives to a tensor of the published checkpoint."""
    for published, here in ATTENTION_NAMES.items():
        key = key.replace(published, here)
    return key


def load_orient_anything(
    location: str,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    config: OrientConfig = OrientConfig(),
) -> tuple[OrientAnything, str]:
    """The network in eval mode and the sha256 of its weights.

    Args:
        location: folder or file of a checkpoint (`dino_weight.pt`, or the same tensors as safetensors), or a hub id.
        device: where it runs.
        dtype: of the backbone.
        config: sizes of the checkpoint.

    Raises:
        WeightsError: if there are no such weights or they do not fit the sizes.
    """
    weights = open_weights(str(checkpoint_of(location)))
    with torch.device("meta"):
        model = OrientAnything(config)
    load_into(model, weights, published_name)
    model.dinov2.to(dtype)
    return model.to(device).eval(), weights.sha256


def checkpoint_of(location: str) -> Path:
    """Folder or file of the checkpoint that a location stands for; a hub id stands for croplargeEX2's."""
    path = locate(location, (f"{PUBLISHED_FOLDER}/*.pt",))
    inner = path / PUBLISHED_FOLDER
    return inner if inner.is_dir() else path
