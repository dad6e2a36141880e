"""Packs questions onto shared prefixes: one row per clip, a tree of branches on one encoding of its video.

    [system · video] ─┬─ [geometry(q1) · q1 · answer1]
                      ├─ [geometry(q2) · q2 · answer2]
                      └─ …

A branch sees the prefix and itself, and its positions continue from the prefix, so every question gets the
same logits and gradients as alone in a sequence, to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from models.pixels import MERGE, Video

PREFIX, PADDING = -1, -2
NO_TARGET = -100


@dataclass(frozen=True)
class Prior:
    """Prior features of one clip, as far as they may be seen: (T',h',w',C) float32 and (T',) seconds."""

    features: np.ndarray
    times: np.ndarray


@dataclass(frozen=True)
class Branch:
    """One question.

    Attributes:
        tokens: ids after the geometry tokens: the rest of the prompt and, in training, the answer.
        targets: for each of `tokens` the id of the answer that it has to predict, or NO_TARGET.
        text_targets: the same for the prompt's own words, which only the reading stage learns.
        question: ids of the question's own text, which the geometry selection reads.
        prompt_length: how many of `tokens` belong to the prompt.
    """

    tokens: list[int]
    targets: list[int]
    text_targets: list[int]
    question: list[int]
    prompt_length: int


@dataclass(frozen=True)
class Tree:
    """The questions of one clip that share what may be seen of it.

    Attributes:
        prefix: ids before the vision tokens.
        video: None for a blind tree.
        prior: None for a tree without geometry tokens.
        branches: the questions.
    """

    prefix: list[int]
    video: Video | None
    prior: Prior | None
    branches: list[Branch]


@dataclass
class TreeBatch:
    """B trees as tensors, padded to the longest row L; Q questions in row-major order, R rows with a prior.

    Attributes:
        tokens: (B,L) ids; vision and geometry slots hold the video pad.
        targets: (B,L) id of the answer to predict from each slot, or NO_TARGET.
        text_targets: (B,L) the same for the words of the prompt.
        positions: (3,B,L) time, height and width positions.
        branch: (B,L) PREFIX, PADDING or the number of the branch in its row.
        prompt_end: (B,L) bool, true at the last slot of each question's prompt.
        video_slots, geometry_slots: (B,L) bool.
        patches, video_grid: (sum of t·h·w, 1176) and (V,3), or None.
        prior, prior_grid, prior_times: (R,T',h',w',C), (R,3) and (R,T'), or None.
        question, question_visible: (Q,Lq) ids and mask, or None without a prior.
        owner: (Q,) row of `prior` of each question, or None.
    """

    tokens: Tensor
    targets: Tensor
    text_targets: Tensor
    positions: Tensor
    branch: Tensor
    prompt_end: Tensor
    video_slots: Tensor
    geometry_slots: Tensor
    patches: Tensor | None
    video_grid: Tensor | None
    prior: Tensor | None
    prior_grid: Tensor | None
    prior_times: Tensor | None
    question: Tensor | None
    question_visible: Tensor | None
    owner: Tensor | None

    def attention_mask(self, dtype: torch.dtype) -> Tensor:
        """Additive mask (B,1,L,L): 0 where a slot sees another, the lowest number of `dtype` elsewhere.

        A slot sees itself and what lies before it in the prefix and in its own branch. Padding sees itself
        only: a row of nothing but forbidden slots would become NaN.
        """
        length = self.branch.shape[1]
        mine, other = self.branch[:, :, None], self.branch[:, None, :]
        past = torch.ones(length, length, dtype=torch.bool, device=mine.device).tril()
        itself = torch.eye(length, dtype=torch.bool, device=mine.device)
        seen = (((other == mine) | (other == PREFIX)) & (mine != PADDING) & past) | itself
        mask = torch.zeros(seen.shape, dtype=dtype, device=mine.device)
        return mask.masked_fill(~seen, torch.finfo(dtype).min)[:, None]

    def to(self, device: torch.device | str, **options: bool) -> TreeBatch:
        """The same batch on another device."""
        moved = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return TreeBatch(**{k: v if v is None else v.to(device, **options) for k, v in moved.items()})


def video_positions(grid: tuple[int, int, int], time_step: float, start: int) -> tuple[np.ndarray, int]:
    """Three-axis positions of a video's tokens, (3,n), and the position at which text continues.

    As transformers' `get_rope_index` has it: the time axis counts `time_step` (positions per temporal patch,
    rounded down), text continues after the longer side of the grid. A test holds the two together.
    """
    t, h, w = grid[0], grid[1] // MERGE, grid[2] // MERGE
    moments = np.floor(np.arange(t) * np.float32(time_step)).astype(np.int64)
    axes = np.meshgrid(moments, np.arange(h), np.arange(w), indexing="ij")
    return np.stack(axes).reshape(3, -1) + start, start + max(h, w)


def pack(trees: Sequence[Tree], pad: int, geometry_tokens: int, tokens_per_second: float) -> TreeBatch:
    """Lay trees out as one batch.

    Args:
        trees: the rows; trees with and without video, and with and without prior, may be mixed.
        pad: id put where an embedding is put in or nothing is (the video pad).
        geometry_tokens: slots in front of each branch of a tree with a prior.
        tokens_per_second: positions on the time axis per second of video.
    """
    rows = [_row(tree, pad, geometry_tokens, tokens_per_second) for tree in trees]
    filler = {"tokens": pad, "targets": NO_TARGET, "text_targets": NO_TARGET, "branch": PADDING}
    columns = {name: _stacked([row[name] for row in rows], filler.get(name, 0)) for name in rows[0]}
    columns["positions"] = columns["positions"].permute(2, 0, 1).contiguous()
    videos = [tree.video for tree in trees if tree.video is not None]
    return TreeBatch(
        **columns,
        patches=torch.from_numpy(np.concatenate([video.patches for video in videos])) if videos else None,
        video_grid=torch.tensor([video.grid for video in videos]) if videos else None,
        **_geometry(trees),
    )


def _row(tree: Tree, pad: int, geometry_tokens: int, tokens_per_second: float) -> dict[str, np.ndarray]:
    lead = np.arange(len(tree.prefix))
    seen = tree.video.tokens if tree.video else 0
    positions, start = [np.stack([lead] * 3)], len(lead)
    if tree.video:
        step = tokens_per_second * tree.video.seconds_per_slot
        placed, start = video_positions(tree.video.grid, step, start)
        positions.append(placed)
    tokens = [*tree.prefix, *[pad] * seen]
    targets, text_targets = [NO_TARGET] * len(tokens), [NO_TARGET] * len(tokens)
    video = [False] * len(lead) + [True] * seen
    geometry, ends = [False] * len(tokens), [False] * len(tokens)
    branch = [PREFIX] * len(tokens)
    slots = geometry_tokens if tree.prior is not None else 0
    for number, item in enumerate(tree.branches):
        length = slots + len(item.tokens)
        tokens += [pad] * slots + item.tokens
        targets += [NO_TARGET] * slots + item.targets
        text_targets += [NO_TARGET] * slots + item.text_targets
        video += [False] * length
        geometry += [True] * slots + [False] * len(item.tokens)
        ends += [place == slots + item.prompt_length - 1 for place in range(length)]
        branch += [number] * length
        positions.append(np.stack([np.arange(start, start + length)] * 3))
    return {
        "tokens": np.array(tokens),
        "targets": np.array(targets),
        "text_targets": np.array(text_targets),
        "positions": np.concatenate(positions, 1).T,
        "branch": np.array(branch),
        "prompt_end": np.array(ends),
        "video_slots": np.array(video),
        "geometry_slots": np.array(geometry),
    }


def _geometry(trees: Sequence[Tree]) -> dict[str, Tensor | None]:
    names = ("prior", "prior_grid", "prior_times", "question", "question_visible", "owner")
    asking = [tree for tree in trees if tree.prior is not None]
    if not asking:
        return dict.fromkeys(names)
    questions = [np.array(branch.question) for tree in asking for branch in tree.branches]
    return {
        "prior": _stacked([tree.prior.features for tree in asking], 0),
        "prior_grid": torch.tensor([tree.prior.features.shape[:3] for tree in asking]),
        "prior_times": _stacked([tree.prior.times.astype(np.float32) for tree in asking], 0),
        "question": _stacked(questions, 0),
        "question_visible": _stacked([np.ones(len(question), bool) for question in questions], False),
        "owner": torch.tensor([row for row, tree in enumerate(asking) for _ in tree.branches]),
    }


def _stacked(arrays: Sequence[np.ndarray], filler: int | bool) -> Tensor:
    """Arrays of one rank, padded at the end of each axis to a common shape and stacked."""
    shape = tuple(np.max([array.shape for array in arrays], axis=0))
    stacked = np.full((len(arrays), *shape), filler, arrays[0].dtype)
    for target, array in zip(stacked, arrays, strict=True):
        target[tuple(slice(size) for size in array.shape)] = array
    return torch.from_numpy(stacked)
