"""Floating-point operations that an update needs by its definition, and what a GPU could do: model FLOP utilisation.

MFU (Chowdhery et al. 2022, PaLM, appendix B) counts each matrix product of the forward pass, that for the gradient of
its input where something in front of it learns, and that for the gradient of its weight where the weight learns: 2
operations for each weight and row, each time. Attention counts the pairs of slots that may see each other, so a causal
half counts half, and twice as much backward as forward. What gradient checkpointing computes again, what a kernel
computes and masks out, norms, rotations and the optimizer count nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from models.batch import NO_TARGET, Branch, Tree
from models.geometric_qwen import GeometricQwen

DENSE_BF16 = (
    ("B200", 2.25e15),
    ("H200", 9.89e14),
    ("H100 PCIe", 7.56e14),
    ("H100", 9.89e14),
    ("A100", 3.12e14),
    ("L40S", 3.62e14),
)
"""Operations per second without sparsity by part of a device's name, the first that fits (the vendor's data sheets).
Lightning's own table does not know the plain name NVIDIA H200 and gives that chip's rate with sparsity."""


def peak_rate(device_name: str) -> float | None:
    """Dense bf16 operations per second of a GPU; None for one that is not in the table."""
    return next((rate for part, rate in DENSE_BF16 if part in device_name), None)


@dataclass(frozen=True)
class Flops:
    """Operations in products with weights, and in attention between slots."""

    products: float
    attention: float

    @property
    def total(self) -> float:
        """Both."""
        return self.products + self.attention

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.products + other.products, self.attention + other.attention)


def update_flops(model: GeometricQwen, trees: Sequence[Tree], shared: bool) -> Flops:
    """Operations of one update from the questions of some clips.

    Args:
        model: its `requires_grad` decide what is counted backward; the vision tower up to its merger is frozen.
        trees: clips with video and prior.
        shared: whether the questions of a clip share an encoding, or have a sequence each.
    """
    sequences = [
        (tree, branches)
        for tree in trees
        for branches in ([tree.branches] if shared else [[branch] for branch in tree.branches])
    ]
    return sum((_sequence(model, tree, branches) for tree, branches in sequences), Flops(0, 0))


def row_tokens(model: GeometricQwen, tree: Tree, branches: Sequence[Branch]) -> tuple[int, list[int]]:
    """Slots of the prefix, and of each branch with its geometry tokens."""
    return len(tree.prefix) + tree.video.tokens, [model.geometry_tokens + len(branch.tokens) for branch in branches]


def _sequence(model: GeometricQwen, tree: Tree, branches: Sequence[Branch]) -> Flops:
    return _vision(model, tree) + _geometry(model, tree, branches) + _language(model, tree, branches)


def _language(model: GeometricQwen, tree: Tree, branches: Sequence[Branch]) -> Flops:
    prefix, lengths = row_tokens(model, tree, branches)
    answers = sum(target != NO_TARGET for branch in branches for target in branch.targets)
    products = _products(model.model.language_model.layers, prefix + sum(lengths)) + _products(model.lm_head, answers)
    pairs = prefix * (prefix + 1) / 2 + sum(length * prefix + length * (length + 1) / 2 for length in lengths)
    text = model.config.text_config
    return Flops(products, 3 * 4 * text.num_hidden_layers * text.hidden_size * pairs)


def _vision(model: GeometricQwen, tree: Tree) -> Flops:
    tower, vision = model.model.visual, model.config.vision_config
    t, h, w = tree.video.grid
    window, whole = vision.window_size // vision.patch_size, len(vision.fullatt_block_indexes)
    pairs = whole * t * (h * w) ** 2 + (vision.depth - whole) * t * _squares(h, window) * _squares(w, window)
    frozen = sum(_products(part, t * h * w, False) for part in (tower.patch_embed, tower.blocks))
    return Flops(frozen + _products(tower.merger.mlp, tree.video.tokens), 4 * vision.hidden_size * pairs)


def _squares(side: int, window: int) -> int:
    """Sum of the squared lengths of the pieces when a side is cut into windows."""
    return side // window * window**2 + (side % window) ** 2


def _geometry(model: GeometricQwen, tree: Tree, branches: Sequence[Branch]) -> Flops:
    gsm = model.gsm
    if gsm is None:
        return Flops(0, 0)
    keys = tree.prior.features.size // (gsm.prior.channels * math.prod(gsm.prior.merge))
    total = Flops(_products(gsm.prior.mlp, keys), 0)
    for branch in branches:
        total += sum((_block(block, len(gsm.queries), len(branch.question)) for block in gsm.condenser), Flops(0, 0))
        # A clip's keys and values are projected once for all its questions.
        once = branch is branches[0]
        total += sum((_block(block, len(gsm.queries), keys, once) for block in gsm.selector), Flops(0, 0))
        if gsm.speech is not None:
            total += Flops(_products(gsm.speech, len(gsm.queries)), 0)
    return total


def _block(block: nn.Module, queries: int, keys: int, projects_keys: bool = True) -> Flops:
    """One Q-Former block for one question."""
    attention = block.attention
    products = sum(_products(module, queries) for module in (attention.q_proj, attention.o_proj, block.mlp))
    if projects_keys:
        products += sum(_products(module, keys) for module in (attention.k_proj, attention.v_proj))
    return Flops(products, 3 * 4 * attention.q_proj.out_features * queries * keys)


def _products(module: nn.Module, rows: int, learns_before: bool = True) -> float:
    """All matrices of a module on so many rows; `learns_before` says whether what comes in needs a gradient."""
    return sum(
        2.0 * weight.numel() * rows * (1 + learns_before + weight.requires_grad)
        for weight in module.parameters()
        if weight.ndim > 1
    )
