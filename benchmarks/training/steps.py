"""Losses of the two forms, and an update from either."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from benchmarks.training import plain
from benchmarks.training.workload import packed
from models.batch import NO_TARGET, Tree, TreeBatch
from models.geometric_qwen import GeometricQwen
from models.loss import stage_loss
from models.parameters import TrainingParameters

PARAMETERS = TrainingParameters()

Losses = list[Callable[[], Tensor]]
"""What an update is made of: each computes its share of the loss, and the shares add up to the mean over the tokens of
all answers."""


def tree_loss(model: GeometricQwen, batch: TreeBatch, weight: float = 1.0) -> Tensor:
    """What the training itself minimises on videos: cross-entropy, every answer token weighing the same."""
    return weight * stage_loss(model, batch, "videos", PARAMETERS).total


def shared_losses(model: GeometricQwen, trees: Sequence[Tree]) -> Losses:
    """One share for each clip, its questions on one encoding of its video."""
    total = sum(_answer_tokens(tree) for tree in trees)
    return [partial(tree_loss, model, packed(model, [tree]), _answer_tokens(tree) / total) for tree in trees]


def plain_losses(model: GeometricQwen, trees: Sequence[Tree]) -> Losses:
    """One share for each question, in a sequence of its own, as the published recipe has it."""
    total = sum(_answer_tokens(tree) for tree in trees)
    return [partial(_plain_share, model, tree, place, total) for tree in trees for place in range(len(tree.branches))]


def _plain_share(model: GeometricQwen, tree: Tree, place: int, total: int) -> Tensor:
    return plain.question_loss(model, tree, tree.branches[place]) / total


def _answer_tokens(tree: Tree) -> int:
    return sum(target != NO_TARGET for branch in tree.branches for target in branch.targets)


def optimizer_of(model: GeometricQwen) -> torch.optim.AdamW:
    """AdamW over what is trained of a model, at a rate that hardly changes it."""
    return torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-5)


def update(losses: Losses, optimizer: torch.optim.Optimizer) -> None:
    """Forward and backward of each share in turn, then one step of the optimizer."""
    for share in losses:
        share().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
