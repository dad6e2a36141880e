"""Small models of each family and variant, and random trees for them, without any file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from benchmarks.training.resume import SMALLEST
from models.batch import NO_TARGET, VIDEO_TYPE, Branch, GeometryInputs, Prior, Tree, TreeBatch, pack
from models.configuration import geometry_config
from models.geometric_qwen import GeometricQwen, GeometricQwen3
from models.gsm import CELL_CHANNELS
from models.parameters import GeometryModelParameters, TinyModelParameters
from models.pixels import Video
from models.prompt import SPECIAL_TOKENS
from models.tiny import tiny_config, tiny_config3

IDS = {**{token: place for place, token in enumerate(SPECIAL_TOKENS)}, "vocabulary": 64}
START, END = IDS["<|vision_start|>"], IDS["<|vision_end|>"]
SIZES = TinyModelParameters(**SMALLEST)
FAMILIES = {"qwen2_5": (GeometricQwen, tiny_config), "qwen3": (GeometricQwen3, tiny_config3)}
VARIANTS = ("none", "addition", "concatenation", "gsm", "fused")
CHANNELS = CELL_CHANNELS
AS_PUBLISHED = {
    "heads": 0,
    "window": 0,
    "context": 1,
    "merge_time": 2,
    "merge_space": 2,
    "speak": False,
    "nobody": False,
}
"""The selection as the reference has it: the language model's heads, all keys, tokens read alone, 2x2x2 merged."""
WINDOWED = {**AS_PUBLISHED, "heads": 2, "window": 2, "context": 3, "merge_time": 1, "merge_space": 1, "speak": True}
"""The selection as the laptop profile has it, in small, without its place for nobody."""


def model_of(family: str, variant: str, seed: int = 0, **geometry):
    """A small model with weights large enough that everything matters, in evaluation mode."""
    torch.manual_seed(seed)
    kind, config = FAMILIES[family]
    chosen = GeometryModelParameters(**{"variant": variant, "queries": 3, "octaves": 1, **AS_PUBLISHED, **geometry})
    model = kind(config(SIZES, IDS, geometry_config(chosen, CHANNELS))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return model


def tree_of(model, seed: int, questions: int, slots: int = 2, with_video: bool = True, with_prior: bool = True) -> Tree:
    """A clip with some questions of different lengths."""
    rng = np.random.default_rng(seed)
    grid = (slots, 4, 6 - 2 * (seed % 2))
    patches = rng.normal(size=(np.prod(grid), 6 * model.patching.side**2)).astype(np.float32)
    video = Video(patches, grid, 1.0, tuple(range(slots)))
    cells = rng.normal(size=(3, 3 + seed % 2, 4, CHANNELS)).astype(np.float32)
    prior = Prior(cells, np.arange(3) + 0.5) if with_prior and model.reads_prior else None
    branches = []
    for number in range(questions):
        words = rng.integers(10, 64, 4 + number).tolist()
        lead = [END] if with_video else []
        tokens = [*lead, *words, 7]
        targets = [NO_TARGET] * (len(tokens) - 2) + [int(rng.integers(10, 64)), 2]
        branches.append(Branch(tokens, targets, words, len(tokens) - 1))
    if not with_video:
        return Tree([1, 8], None, prior, branches)
    stamped = model.timestamps
    between = [[END, *rng.integers(10, 64, 2).tolist(), START] for _ in range(slots - 1)] if stamped else []
    return Tree([1, 8, 9, START], video, prior, branches, between)


def packed(model, trees: Sequence[Tree]) -> TreeBatch:
    return pack(trees, model.config.video_token_id, model.geometry_tokens, model.tokens_per_second, model.prior_merge)


def one_by_one(trees: Sequence[Tree]) -> list[Tree]:
    return [replace(tree, branches=[branch]) for tree in trees for branch in tree.branches]


def sequences(model, trees: Sequence[Tree]) -> tuple[dict, GeometryInputs | None]:
    """One plain left-padded sequence for each question, as a processor would give them, and the geometry of all."""
    singles = one_by_one(trees)
    rows = [packed(model, [tree]) for tree in singles]
    length = max(row.tokens.shape[1] for row in rows)

    def padded(values, filler: int) -> torch.Tensor:
        return torch.stack([torch.nn.functional.pad(v[0], (length - v.shape[1], 0), value=filler) for v in values])

    whole = packed(model, singles)
    inputs = {
        "input_ids": padded([row.tokens for row in rows], IDS["<|endoftext|>"]),
        "attention_mask": padded([torch.ones_like(row.tokens) for row in rows], 0),
        "mm_token_type_ids": padded([row.video_slots.int() * VIDEO_TYPE for row in rows], 0),
    }
    if whole.patches is not None:
        inputs |= {"pixel_values_videos": whole.patches, "video_grid_thw": whole.video_grid}
        if not model.timestamps:
            seconds = [tree.video.seconds_per_slot for tree in singles if tree.video]
            inputs["second_per_grid_ts"] = torch.tensor(seconds)
    return inputs, whole.geometry


def without_geometry(model):
    """The plain class of transformers with the same base weights."""
    plain = type(model).__mro__[2](model.config).eval()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith(("gsm.", "fusion."))})
    return plain
