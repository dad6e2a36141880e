"""Packs questions onto shared prefixes: one row per clip, a tree of branches on one encoding of its video.

    [system · video] ─┬─ [geometry(q1) · q1 · answer1]
                      ├─ [geometry(q2) · q2 · answer2]
                      └─ …

A branch sees the prefix and itself, and its positions continue from the prefix, so every question gets the
same logits and gradients as alone in a sequence, to rounding.

Qwen2.5-VL's vision tokens lie in one piece; Qwen3-VL says the time in front of each temporal patch. Where geometry
is concatenated without selection, its cells follow the vision tokens inside the prefix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from models.gsm import merged_size
from models.guide import UNKNOWN, Guide, Notes, Things, guide_of
from models.pixels import MERGE, Video

PREFIX, PADDING = -1, -2
NO_TARGET = -100
NO_VIDEO = -1
Moved = TypeVar("Moved")
TEXT_TYPE, VIDEO_TYPE = 0, 2
"""What `mm_token_type_ids` calls text and vision tokens of a video."""


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
        question: ids of the question's own text, which the geometry selection reads.
        prompt_length: how many of `tokens` belong to the prompt.
        notes: what a guided training knows of the question beyond that, or None.
    """

    tokens: list[int]
    targets: list[int]
    question: list[int]
    prompt_length: int
    notes: Notes | None = None


@dataclass(frozen=True)
class Tree:
    """The questions of one clip that share what may be seen of it.

    Attributes:
        prefix: ids before the vision tokens.
        video: None for a blind tree.
        prior: None for a tree without geometry.
        branches: the questions.
        between: Qwen3-VL's ids in front of every temporal patch but the first; empty where nothing parts them.
        things: what a guided training knows of the clip, or None.
        stated: slots in front of each branch that hold stated facts in place of geometry, in the reading stage.
    """

    prefix: list[int]
    video: Video | None
    prior: Prior | None
    branches: list[Branch]
    between: Sequence[Sequence[int]] = ()
    things: Things | None = None
    stated: int = 0


@dataclass(frozen=True)
class TreeLayout:
    """Where the prefix and the branches of B rows lie: Q branches at most, W slots in the longest.

    Attributes:
        prefix: (B,) slots of each prefix.
        slots: (B,Q,W) the slots of each branch, 0 behind its end.
        place: (B,L) where each slot stands in the longest prefix followed by the Q·W of `slots`; 0 for padding.
    """

    prefix: Tensor
    slots: Tensor
    place: Tensor

    @classmethod
    def of(cls, branch: Tensor) -> TreeLayout:
        """From (B,L) as `TreeBatch` has it: a prefix, then the branches one behind the other, then padding."""
        prefix = (branch == PREFIX).sum(1)
        branches = max(int(branch.max()) + 1, 1)
        counts = (branch[..., None] == torch.arange(branches, device=branch.device)).sum(1)
        starts = prefix[:, None] + counts.cumsum(1) - counts
        width = max(int(counts.max()), 1)
        step = torch.arange(width, device=branch.device)
        slots = (starts[..., None] + step).where(step < counts[..., None], 0)
        slot = torch.arange(branch.shape[1], device=branch.device)
        own = branch.clamp(min=0)
        behind = int(prefix.max()) + own * width + slot - starts.gather(1, own)
        return cls(prefix, slots, slot.where(branch == PREFIX, behind.where(branch >= 0, 0)))

    def apart(self, each: Tensor) -> Tensor:
        """(B,H,L,e) of the rows as (B·Q,H,W,e) of the branches."""
        return _picked(each, self.slots.flatten(1)).unflatten(2, self.slots.shape[1:]).transpose(1, 2).flatten(0, 1)

    def together(self, prefix: Tensor, branches: Tensor) -> Tensor:
        """(B,H,P,e) of the prefixes and (B·Q,H,W,e) of the branches as (B,H,L,e) of the rows."""
        behind = branches.unflatten(0, self.slots.shape[:2]).transpose(1, 2).flatten(2, 3)
        return _picked(torch.cat([prefix, behind], 2), self.place)


def _picked(each: Tensor, slots: Tensor) -> Tensor:
    """(B,H,L,e) at (B,n) slots, (B,H,n,e)."""
    rows, length = len(each), each.shape[2]
    numbers = (slots + length * torch.arange(rows, device=slots.device)[:, None]).flatten()
    laid_out = each.transpose(1, 2).flatten(0, 1).index_select(0, numbers)
    return laid_out.unflatten(0, slots.shape).transpose(1, 2)


@dataclass(frozen=True)
class GeometryInputs:
    """What the geometry module reads: the prior features of R clips and the words of Q questions.

    Attributes:
        prior: (R,T',h',w',C) zero-padded to a common size.
        prior_grid: (R,3) the size T', h', w' that is filled in each row.
        prior_times: (R,T') seconds.
        question: (Q,Lq) ids of the questions' own words.
        question_visible: (Q,Lq) bool, false on padding.
        owner: (Q,) row of `prior` that each question is about.
    """

    prior: Tensor
    prior_grid: Tensor
    prior_times: Tensor
    question: Tensor
    question_visible: Tensor
    owner: Tensor

    def with_row_per_question(self) -> GeometryInputs:
        """The same questions, each with a row of `prior` of its own: R becomes Q."""
        return replace(
            self,
            prior=self.prior[self.owner],
            prior_grid=self.prior_grid[self.owner],
            prior_times=self.prior_times[self.owner],
            owner=torch.arange(len(self.owner), device=self.owner.device),
        )

    def to(self, device: torch.device | str, **options: bool) -> GeometryInputs:
        """The same on another device."""
        return _moved(self, device, options)


@dataclass
class TreeBatch:
    """B trees as tensors, padded to the longest row L; Q questions in row-major order, R rows with a prior.

    Attributes:
        tokens: (B,L) ids; vision and geometry slots hold the video pad.
        targets: (B,L) id of the answer to predict from each slot, or NO_TARGET.
        positions: (3,B,L) time, height and width positions.
        branch: (B,L) PREFIX, PADDING or the number of the branch in its row.
        prompt_end: (B,L) bool, true at the last slot of each question's prompt.
        video_slots, geometry_slots: (B,L) bool.
        patches, video_grid: (sum of t·h·w, 3·2·side·side) and (V,3), or None.
        prior, prior_grid, prior_times, question, question_visible, owner: as in `GeometryInputs`, or None.
        prior_video: (R,) row of `video_grid` that each prior belongs to, NO_VIDEO without one; or None.
        guide: what a guided training knows beyond that, or None.
    """

    tokens: Tensor
    targets: Tensor
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
    prior_video: Tensor | None
    guide: Guide | None = None

    @property
    def geometry(self) -> GeometryInputs | None:
        """What the geometry module reads; None where no tree has a prior."""
        if self.prior is None:
            return None
        return GeometryInputs(**{entry.name: getattr(self, entry.name) for entry in fields(GeometryInputs)})

    def seeing(self) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
        """Whether, in a row and for a head, a slot sees another: a function of four indices, as FlexAttention asks.

        A slot sees itself and what lies before it in the prefix and in its own branch. Padding sees itself
        only: a row of nothing but forbidden slots would become NaN.
        """
        branch = self.branch

        def sees(row: Tensor, head: Tensor, slot: Tensor, other: Tensor) -> Tensor:
            mine, its = branch[row, slot], branch[row, other]
            return (((its == mine) | (its == PREFIX)) & (mine != PADDING) & (other <= slot)) | (other == slot)

        return sees

    def attention_mask(self, dtype: torch.dtype) -> Tensor:
        """Additive mask (B,1,L,L): 0 where a slot sees another, the lowest number of `dtype` elsewhere."""
        rows, length = self.branch.shape
        row, place = (torch.arange(n, device=self.branch.device) for n in (rows, length))
        seen = self.seeing()(row[:, None, None], row[:1], place[:, None], place)
        mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
        return mask.masked_fill(~seen, torch.finfo(dtype).min)[:, None]

    def layout(self) -> TreeLayout:
        """The same as the places of prefixes and branches, for attention that goes branch by branch."""
        return TreeLayout.of(self.branch)

    def block_mask(self) -> BlockMask:
        """The same for FlexAttention, which skips the blocks in which nothing is seen."""
        rows, length = self.branch.shape
        device = self.branch.device
        # Compiled, the mask is never laid out in full; that pays where long rows are.
        return create_block_mask(self.seeing(), rows, None, length, length, device, _compile=device.type == "cuda")

    def to(self, device: torch.device | str, **options: bool) -> TreeBatch:
        """The same batch on another device."""
        return _moved(self, device, options)


def _moved(whole: Moved, device: torch.device | str, options: Mapping[str, bool]) -> Moved:
    """A dataclass of tensors, or of what moves as they do, on another device; what is None stays so."""
    held = {entry.name: getattr(whole, entry.name) for entry in fields(whole)}
    return replace(whole, **{name: part.to(device, **options) for name, part in held.items() if part is not None})


def video_positions(grid: tuple[int, int, int], time_step: float, start: int) -> tuple[np.ndarray, int]:
    """Three-axis positions of a video's tokens, (3,n), and the position at which text continues.

    As transformers' `get_rope_index` has it: the time axis counts `time_step` (positions per temporal patch,
    rounded down), text continues after the longer side of the grid. A test holds the two together.
    """
    t, h, w = grid[0], grid[1] // MERGE, grid[2] // MERGE
    moments = np.floor(np.arange(t) * np.float32(time_step)).astype(np.int64)
    axes = np.meshgrid(moments, np.arange(h), np.arange(w), indexing="ij")
    return np.stack(axes).reshape(3, -1) + start, start + max(h, w)


def pack(
    trees: Sequence[Tree],
    pad: int,
    geometry_tokens: int,
    tokens_per_second: float,
    prior_merge: tuple[int, int, int] | None = None,
    words: Callable[[str], list[int]] | None = None,
) -> TreeBatch:
    """Lay trees out as one batch.

    Args:
        trees: the rows; trees with and without video, and with and without prior, may be mixed.
        pad: id put where an embedding is put in or nothing is (the video pad).
        geometry_tokens: slots in front of each branch of a tree with a prior.
        tokens_per_second: positions on the time axis per second of video.
        prior_merge: features merged into one cell along time, height and width, where all cells of a clip follow
            its vision tokens in the prefix; None where they do not.
        words: ids of a text, needed where branches have notes.

    Raises:
        ValueError: if a tree's `between` does not part its temporal patches.
    """
    rows = [_row(tree, pad, geometry_tokens, tokens_per_second, prior_merge) for tree in trees]
    filler = {"tokens": pad, "targets": NO_TARGET, "branch": PADDING, "agrees": UNKNOWN}
    columns = {name: _stacked([row[name] for row in rows], filler.get(name, 0)) for name in rows[0]}
    columns["positions"] = columns["positions"].permute(2, 0, 1).contiguous()
    option_ends, agrees = columns.pop("option_ends"), columns.pop("agrees")
    videos = [tree.video for tree in trees if tree.video is not None]
    batch = TreeBatch(
        **columns,
        patches=torch.from_numpy(np.concatenate([video.patches for video in videos])) if videos else None,
        video_grid=torch.tensor([video.grid for video in videos]) if videos else None,
        **_geometry(trees),
    )
    notes = [branch.notes for tree in trees for branch in tree.branches]
    if words is None or None in notes:
        return batch
    tokens = max(geometry_tokens, *(tree.stated for tree in trees))
    size = (0, 0, 0, 0) if batch.prior is None else (*batch.prior.shape[1:4], batch.question.shape[1])
    things = [tree.things for tree in trees if tree.prior is not None]
    return replace(batch, guide=guide_of(notes, things, option_ends, words, tokens, size, agrees))


def _row(
    tree: Tree, pad: int, geometry_tokens: int, tokens_per_second: float, prior_merge: tuple[int, int, int] | None
) -> dict[str, np.ndarray]:
    tokens, positions, video, start = _prefix(tree, pad, tokens_per_second)
    cells = math.prod(merged_size(tree.prior.features.shape[:3], prior_merge)) if tree.prior and prior_merge else 0
    tokens += [pad] * cells
    positions.append(np.stack([np.arange(start, start + cells)] * 3))
    start += cells
    video += [False] * cells
    geometry = [False] * (len(tokens) - cells) + [True] * cells
    targets, options = [NO_TARGET] * len(tokens), [False] * len(tokens)
    ends, branch, agrees = [False] * len(tokens), [PREFIX] * len(tokens), [UNKNOWN] * len(tokens)
    slots = geometry_tokens if tree.prior is not None else tree.stated
    for number, item in enumerate(tree.branches):
        length = slots + len(item.tokens)
        tokens += [pad] * slots + item.tokens
        targets += [NO_TARGET] * slots + item.targets
        marked = item.notes.option_ends if item.notes is not None else ()
        options += [place - slots in marked for place in range(length)]
        agreeing = dict(item.notes.agrees) if item.notes is not None else {}
        agrees += [int(agreeing.get(place - slots, UNKNOWN)) for place in range(length)]
        video += [False] * length
        geometry += [True] * slots + [False] * len(item.tokens)
        ends += [place == slots + item.prompt_length - 1 for place in range(length)]
        branch += [number] * length
        positions.append(np.stack([np.arange(start, start + length)] * 3))
    return {
        "tokens": np.array(tokens),
        "targets": np.array(targets),
        "positions": np.concatenate(positions, 1).T,
        "branch": np.array(branch),
        "prompt_end": np.array(ends),
        "option_ends": np.array(options),
        "agrees": np.array(agrees),
        "video_slots": np.array(video),
        "geometry_slots": np.array(geometry),
    }


def _prefix(tree: Tree, pad: int, tokens_per_second: float) -> tuple[list[int], list[np.ndarray], list[bool], int]:
    """Ids, pieces of positions (3,n), which slots are vision tokens, and the position at which the text goes on."""
    tokens, video, start = list(tree.prefix), [False] * len(tree.prefix), len(tree.prefix)
    positions = [np.stack([np.arange(start)] * 3)]
    if tree.video is None:
        return tokens, positions, video, start
    t, h, w = tree.video.grid
    if tree.between and len(tree.between) != t - 1:
        raise ValueError(f"{len(tree.between)} timestamps between {t} temporal patches: expected {t - 1}")
    step = tokens_per_second * tree.video.seconds_per_slot
    pieces = [(1, h, w)] * t if tree.between else [(t, h, w)]
    for lead, grid in zip([(), *tree.between], pieces, strict=True):
        positions.append(np.stack([np.arange(start, start + len(lead))] * 3))
        placed, start = video_positions(grid, step, start + len(lead))
        positions.append(placed)
        tokens += [*lead, *[pad] * placed.shape[1]]
        video += [False] * len(lead) + [True] * placed.shape[1]
    return tokens, positions, video, start


def _geometry(trees: Sequence[Tree]) -> dict[str, Tensor | None]:
    asking = [tree for tree in trees if tree.prior is not None]
    if not asking:
        return dict.fromkeys([*(entry.name for entry in fields(GeometryInputs)), "prior_video"])
    videos = np.cumsum([tree.video is not None for tree in trees]) - 1
    placed = [
        int(number) if tree.video is not None else NO_VIDEO
        for tree, number in zip(trees, videos, strict=True)
        if tree.prior is not None
    ]
    questions = [np.array(branch.question) for tree in asking for branch in tree.branches]
    return {
        "prior": _stacked([tree.prior.features for tree in asking], 0),
        "prior_grid": torch.tensor([tree.prior.features.shape[:3] for tree in asking]),
        "prior_times": _stacked([tree.prior.times.astype(np.float32) for tree in asking], 0),
        "question": _stacked(questions, 0),
        "question_visible": _stacked([np.ones(len(question), bool) for question in questions], False),
        "owner": torch.tensor([row for row, tree in enumerate(asking) for _ in tree.branches]),
        "prior_video": torch.tensor(placed),
    }


def with_geometry_slots(inputs: Mapping[str, Tensor], slots: Sequence[int], pad: int, filler: int) -> dict:
    """A processor's inputs with room for geometry right behind the last vision token of each sequence.

    Args:
        inputs: `input_ids`, `mm_token_type_ids` and, optional, `attention_mask` and `labels`, each (B,L); anything
            else is handed through.
        slots: tokens to insert for each sequence that has a video, in order.
        pad: id of the video pad, which the slots hold; their type is that of text, for their positions are a text's.
        filler: id for the padding on the left of sequences that become shorter than others.

    Raises:
        ValueError: if there are not as many numbers as sequences with a video.
    """
    types = inputs["mm_token_type_ids"]
    asking = (types == VIDEO_TYPE).any(1).tolist()
    if sum(asking) != len(slots):
        raise ValueError(f"geometry for {len(slots)} questions, but {sum(asking)} sequences have a video")
    counts = iter(slots)
    added = [next(counts) if asks else 0 for asks in asking]
    inserted = {"input_ids": pad, "mm_token_type_ids": TEXT_TYPE, "attention_mask": 1, "labels": NO_TARGET}
    padding = {"input_ids": filler, "mm_token_type_ids": TEXT_TYPE, "attention_mask": 0, "labels": NO_TARGET}
    given = {"attention_mask": torch.ones_like(inputs["input_ids"]), **inputs}
    for name in inserted.keys() & given.keys():
        rows = []
        for row, kind, count in zip(given[name], types, added, strict=True):
            place = int((kind == VIDEO_TYPE).nonzero().max()) + 1 if count else 0
            left = row.new_full((max(added) - count,), padding[name])
            rows.append(torch.cat([left, row[:place], row.new_full((count,), inserted[name]), row[place:]]))
        given[name] = torch.stack(rows)
    return given


def _stacked(arrays: Sequence[np.ndarray], filler: int | bool) -> Tensor:
    """Arrays of one rank, padded at the end of each axis to a common shape and stacked."""
    shape = tuple(np.max([array.shape for array in arrays], axis=0))
    stacked = np.full((len(arrays), *shape), filler, arrays[0].dtype)
    for target, array in zip(stacked, arrays, strict=True):
        target[tuple(slice(size) for size in array.shape)] = array
    return torch.from_numpy(stacked)
