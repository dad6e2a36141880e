"""Random models and random questions of given sizes: what a training step costs does not depend on what is learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from models.batch import NO_TARGET, Branch, Prior, Tree, TreeBatch, pack
from models.configuration import GeometricQwenConfig, geometry_config
from models.geometric_qwen import GeometricQwen
from models.parameters import GeometryModelParameters
from models.pixels import MERGE, QWEN2_5_PATCHING, TEMPORAL_PATCH, Video

TOKENS_PER_SECOND = 2
ANSWER_TOKENS = 2
FRAME_SECONDS = 0.5


@dataclass(frozen=True)
class Shape:
    """Sizes of a Qwen2.5-VL with its geometry module, and of one clip with its questions.

    Attributes:
        grid: t, h, w patches of the video; the language model sees t·h/2·w/2 tokens of it.
        prior_channels: of the cached features, of which there are as many as vision tokens: 1,024 of the encoder's for
            each of 2×2 patches of 2 frames, as the reference lays them side by side.
        prefix_tokens: in front of the video.
        text_tokens: of one question with its answer.
        wrapping_tokens: those of them that are neither answer nor question.
        full_attention: blocks of the vision tower that see a whole frame; the others see windows.
    """

    hidden_size: int
    layers: int
    heads: int
    key_value_heads: int
    intermediate_size: int
    vocabulary: int
    vision_depth: int
    vision_width: int
    vision_heads: int
    vision_intermediate: int
    full_attention: tuple[int, ...]
    grid: tuple[int, int, int]
    prior_channels: int
    queries: int
    prefix_tokens: int
    text_tokens: int
    wrapping_tokens: int
    questions: int

    @property
    def vision_tokens(self) -> int:
        """Tokens of one clip in the language model."""
        return self.grid[0] * self.grid[1] * self.grid[2] // MERGE**2


SEVEN_B = Shape(
    hidden_size=3584,
    layers=28,
    heads=28,
    key_value_heads=4,
    intermediate_size=18944,
    vocabulary=152064,
    vision_depth=32,
    vision_width=1280,
    vision_heads=16,
    vision_intermediate=3420,
    full_attention=(7, 15, 23, 31),
    grid=(16, 24, 44),
    prior_channels=8192,
    queries=32,
    prefix_tokens=16,
    text_tokens=200,
    wrapping_tokens=8,
    questions=5,
)
"""Qwen2.5-VL-7B with the published module on 32 frames of 616×336 pixels (230,400 allow that): 4,224 vision tokens."""


def geometry_of(shape: Shape) -> dict | None:
    """The `geometry_config` of the published module; None for a shape without queries."""
    as_published = {"heads": 0, "window": 0, "context": 1, "condenser_depth": 1, "merge_time": 1, "merge_space": 1}
    as_published |= {"nobody": False, "speak": False}
    parameters = GeometryModelParameters(queries=shape.queries, prior="tokens", **as_published)
    config = geometry_config(parameters, shape.prior_channels)
    return config and {**config, "projection_width": shape.prior_channels, "mlp_bias": True}


def configuration(shape: Shape) -> GeometricQwenConfig:
    """A Qwen2.5-VL of these sizes; the last four entries of its vocabulary are the special ones."""
    eighth = shape.hidden_size // shape.heads // 16
    first_special = shape.vocabulary - 4
    return GeometricQwenConfig(
        text_config={
            "vocab_size": shape.vocabulary,
            "hidden_size": shape.hidden_size,
            "intermediate_size": shape.intermediate_size,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.key_value_heads,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [2 * eighth, 3 * eighth, 3 * eighth],
            },
            "bos_token_id": first_special,
            "eos_token_id": first_special,
        },
        vision_config={
            "depth": shape.vision_depth,
            "hidden_size": shape.vision_width,
            "intermediate_size": shape.vision_intermediate,
            "num_heads": shape.vision_heads,
            "out_hidden_size": shape.hidden_size,
            "fullatt_block_indexes": list(shape.full_attention),
            "tokens_per_second": TOKENS_PER_SECOND,
        },
        image_token_id=first_special,
        video_token_id=first_special + 1,
        vision_start_token_id=first_special + 2,
        vision_end_token_id=first_special + 3,
        geometry_config=geometry_of(shape),
    )


def model_of(shape: Shape, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0) -> GeometricQwen:
    """A model with random weights made on the device, in training mode, its vision tower frozen up to the merger."""
    torch.manual_seed(seed)
    with torch.device(device):
        model = GeometricQwen._from_config(configuration(shape), dtype=dtype)
    model.model.visual.requires_grad_(False)
    model.model.visual.merger.requires_grad_(True)
    return model.train()


def random_tree(shape: Shape, seed: int) -> Tree:
    """One clip with its questions: noise for pixels and features, random ids for words."""
    rng = np.random.default_rng(seed)
    t, h, w = shape.grid
    patches = rng.standard_normal((t * h * w, 3 * TEMPORAL_PATCH * QWEN2_5_PATCHING.side**2), np.float32)
    features = rng.standard_normal((t, h // MERGE, w // MERGE, shape.prior_channels), np.float32)
    seconds_per_slot = TEMPORAL_PATCH * FRAME_SECONDS
    prior = Prior(features, np.arange(t) * seconds_per_slot) if shape.queries else None
    return Tree(
        prefix=_words(rng, shape, shape.prefix_tokens),
        video=Video(patches, shape.grid, seconds_per_slot),
        prior=prior,
        branches=[random_branch(rng, shape, shape.text_tokens, ANSWER_TOKENS) for _ in range(shape.questions)],
    )


def random_branch(rng: np.random.Generator, shape: Shape, length: int, answer: int) -> Branch:
    """A question of `length` tokens, the last `answer` of which are to be predicted."""
    tokens = _words(rng, shape, length)
    prompt = length - answer
    # A slot predicts the token after it, so the last of the prompt predicts the first of the answer.
    targets = [NO_TARGET] * (prompt - 1) + tokens[prompt:] + [NO_TARGET]
    return Branch(tokens, targets, tokens[: prompt - shape.wrapping_tokens], prompt)


def _words(rng: np.random.Generator, shape: Shape, count: int) -> list[int]:
    return rng.integers(shape.vocabulary - 4, size=count).tolist()


def packed(model: GeometricQwen, trees: Sequence[Tree]) -> TreeBatch:
    """Trees as one batch on the device of a model, what it reads of them in the precision of its weights."""
    batch = pack(trees, model.config.video_token_id, model.geometry_tokens, TOKENS_PER_SECOND).to(model.device)
    return replace(batch, prior=None if batch.prior is None else batch.prior.to(model.dtype))


def without_geometry(shape: Shape) -> Shape:
    """The same sizes for a model without a geometry module."""
    return replace(shape, queries=0)
