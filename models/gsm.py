"""Geometry Selection Module: picks from a clip's prior features what one question needs (paper section 4).

Learned queries read the question (Q-Former 1, "semantic condenser") and then the prior features (Q-Former 2,
"relevant-geometry selector"); the result is a handful of geometry tokens per question, in the language model's
width. Positions are the reference's: in both cross-attentions queries, question tokens and keys carry Qwen's
three-axis rotary positions. Queries and question tokens count 0, 1, 2, … on all axes; a key stands at
(tokens_per_second · seconds, row, column) of the merged grid.

Five things differ from the reference where the configuration asks for them, all for models that learn from little.
`window` lets each query see a few neighbouring slots of time only, so that the queries together go through the clip
and none has to find its moment first; such keys are told apart by what they hold, which for geometric cells includes
where and when they are, not by rotary positions. `context` reads each token of the question together with those
before it, for a raw embedding does not say which of two things it names. `heads` cuts the module's width finer than
the language model does. `nobody` gives heads of Q-Former 2 a place to look at where what they look for is no cell,
above all the camera; what they would read instead is noise in everything that is made of it. `speak` makes the tokens
of what was asked and what was read, side by side (`Speech`), not of their sum.

Only `PriorProjection` knows whether the prior features are network tokens or geometric cells.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import initialization as init
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VLMLP,
    Qwen2_5_VLRMSNorm,
    Qwen2_5_VLRotaryEmbedding,
    apply_rotary_pos_emb,
)

from models.attention import attend, look

CELL_CHANNELS = 20
"""A geometric cell: camera xyz, world xyz, scene flow xyz, mean RGB, validity, time, heading in camera and world."""
CELL_COORDINATES = 6
"""The leading channels of a geometric cell that are coordinates: camera xyz, world xyz."""
CELL_FLOW = slice(6, 9)
"""The channels of a geometric cell that are its motion."""
CELL_COLOUR = slice(9, 12)
"""The channels of a geometric cell that are its mean colour, -1..1."""
CELL_TIME = 13
"""The channel of a geometric cell that is its time, in minutes."""
CELL_PLACE = (*range(9), *range(14, 20))
"""The channels of a geometric cell that say where a thing is, how it moves and where it looks."""
FLOW_SCALE = 20.0
"""What things move in a second is small beside where they are, and as telling."""
STILL = 0.05
"""Speeds far below this, in scaled flow, are as good as none."""
DARK = 0.05
"""Nothing is known of the tint of what is darker than this."""
TIME_OCTAVES = 6
"""Waves of 64, 32, … 2 seconds that tell a cell's time."""
NORM_EPS = 1e-6
"""The reference's, whatever the language model uses."""
QUERY_SPREAD = 0.3
"""Queries are drawn from this. The reference draws from 1, behind which what a query reads is hard to make out."""
CODE_WIDTH, CODE_GAIN = 16, 4.0
"""Numbers between -1 and 1 that tell what a query asks, and how soon they are one or the other. Guidance says what the
first of them stand for."""
PLACE_GAIN = 3.0
"""Heads begin by reading the places of the cells they look at, so many times enlarged."""


@dataclass(frozen=True)
class Selection:
    """What a question picked from its clip.

    Attributes:
        tokens: (Q,N,d) geometry tokens.
        attention: (Q,N,M) how much each token's query looked at each key in the last selector block, mean over heads,
            0 on padding, in the order of `PriorProjection`'s keys; None unless asked for. It adds up to 1, or to what
            did not go to nobody.
        looks: where the heads looked first; None unless asked for.
        thoughts: (Q,N,d) what Q-Former 2 made of what it read, of which the tokens tell what matters.
        code: (Q,N,CODE_WIDTH) what is asked, of which tanh makes numbers between -1 and 1; None without Speech.
    """

    tokens: Tensor
    attention: Tensor | None = None
    looks: Looks | None = None
    thoughts: Tensor | None = None
    code: Tensor | None = None


class Cells(NamedTuple):
    """Merged prior features as Q-Former 2 reads them: R clips, M cells.

    Attributes:
        keys: (R,M,d) what tells them apart.
        values: (R,M,d) what is read of them; the keys again where they are network tokens.
        visible: (R,M) bool, false on padding.
        places: (R,M,3) seconds, row, column.
    """

    keys: Tensor
    values: Tensor
    visible: Tensor
    places: Tensor

    @property
    def whole(self) -> Tensor:
        """(R,M,d) everything about them, for those that read all cells and pick none."""
        return self.keys if self.values is self.keys else self.keys + self.values


@dataclass(frozen=True)
class Looks:
    """Where each head looked in the first block of either Q-Former: logarithms of shares, which add up to 1.

    Attributes:
        words: (Q,H,N,L) over the tokens of the question.
        cells: (Q,H,N,W) over the keys that a query sees, and in one more place, the last, nobody where the module has
            that.
        window: which keys these are.
        keys: (R,M,d) all keys.
        visible: (R,M) bool, false on padding.
    """

    words: Tensor
    cells: Tensor
    window: Window
    keys: Tensor
    visible: Tensor


def slots_of(query: Any, queries: int, slots: Any) -> Any:
    """The slot of time that a query is at, where so many queries are spread over so many slots; whole numbers."""
    return (2 * query + 1) * slots // (2 * queries)


@dataclass(frozen=True)
class Window:
    """Which keys of its clip each query sees.

    Attributes:
        keys: (R,N,W) numbers of keys.
        visible: (R,N,W) bool, false where a number stands for nothing.
        slots: (R,N) slot of merged time that each query is at, the last of those it sees.
        seen: (R,N,S) the slots it sees, those before the clip begins as the first.
    """

    keys: Tensor
    visible: Tensor
    slots: Tensor
    seen: Tensor

    @classmethod
    def of(cls, grid: Tensor, size: tuple[int, int, int], queries: int, slots: int) -> Window:
        """The last `slots` slots of time up to the one that each of N queries, spread over the clip, is at; 0 for all.

        Args:
            grid: (R,3) merged cells that are filled in each row.
            size: merged cells along time, height and width of the padded rows.
            queries: N.
            slots: how many slots a query sees.
        """
        time, height, width = size
        at = slots_of(torch.arange(queries, device=grid.device), queries, grid[:, :1]).clamp(max=time - 1)
        back = torch.arange(slots, device=grid.device) if slots else torch.arange(time, device=grid.device)
        seen = at[..., None] - back if slots else back.expand(*at.shape, -1)
        cell = torch.arange(height * width, device=grid.device)
        filled = ((cell // width < grid[:, 1:2]) & (cell % width < grid[:, 2:]))[:, None, None]
        keys = seen.clamp(min=0)[..., None] * (height * width) + cell
        visible = ((seen >= 0) & (seen < grid[:, :1, None]))[..., None] & filled
        return cls(keys.flatten(2), visible.expand_as(keys).flatten(2), at, seen.clamp(min=0))

    def of_rows(self, each: Tensor) -> Tensor:
        """(R,M,...) of the keys as (R,N,W,...) of what the queries see."""
        # Whole slots are copied, and their gradients added, rather than cell by cell.
        by_slot = each.unflatten(1, (-1, self.keys.shape[2] // self.seen.shape[2]))
        row = torch.arange(len(each), device=each.device)[:, None, None]
        return by_slot[row, self.seen].flatten(2, 3)


@dataclass(frozen=True)
class Readers:
    """Which questions read which row of a target, laid out so that those of one row stand side by side.

    Keys and values then exist once per row, however many questions share it, and attention needs no mask that tells
    questions apart: they do not see each other anyway.

    Attributes:
        row: (Q,) the row each question reads.
        place: (Q,) its place among the questions of that row.
        places: the most questions that a row has.
    """

    row: Tensor
    place: Tensor
    places: int

    @classmethod
    def of(cls, owner: Tensor) -> Readers:
        """From the (Q,) rows that questions read, in any order."""
        place = (owner[:, None] == owner).tril(-1).sum(1)
        return cls(owner, place, int(place.max()) + 1)

    @classmethod
    def alone(cls, questions: int, device: torch.device) -> Readers:
        """Each question reads a row of its own."""
        row = torch.arange(questions, device=device)
        return cls(row, torch.zeros_like(row), 1)

    def together(self, each: Tensor, rows: int) -> Tensor:
        """(Q,...) of the questions as (rows,places,...) of the rows, zeros where a row has fewer questions."""
        laid_out = each.new_zeros(rows, self.places, *each.shape[1:])
        laid_out[self.row, self.place] = each
        return laid_out

    def apart(self, laid_out: Tensor) -> Tensor:
        """The inverse of `together`."""
        return laid_out[self.row, self.place]


def merged_size(size: Sequence[int], merge: Sequence[int]) -> tuple[int, int, int]:
    """How many merged cells a prior of (T',h',w') features has along each axis."""
    return tuple(-(-cells // step) for cells, step in zip(size, merge, strict=True))


class CrossAttention(nn.Module):
    """Grouped-query attention from queries to targets, with rotary positions on both sides.

    All queries that read a key head of a row (of all its questions, of all heads of the group) form one long
    sequence. So no key is repeated, and the fused kernels that take a mask but no groups apply.

    `nobody` adds a key that stands for nothing in the target, as one can look at nobody; it reads as zeros.
    """

    def __init__(self, config, nobody: bool = False) -> None:
        super().__init__()
        self.heads, self.key_value_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.q_proj = nn.Linear(config.hidden_size, self.heads * self.head_dim, bias=True)
        self.k_proj = nn.Linear(config.hidden_size, self.key_value_heads * self.head_dim, bias=True)
        self.v_proj = nn.Linear(config.hidden_size, self.key_value_heads * self.head_dim, bias=True)
        self.o_proj = nn.Linear(self.heads * self.head_dim, config.hidden_size, bias=False)
        self.nobody = nn.Parameter(torch.zeros(self.key_value_heads, 1, self.head_dim)) if nobody else None

    def forward(
        self,
        queries: Tensor,
        target: Tensor,
        readers: Readers,
        visible: Tensor,
        query_rotary: tuple[Tensor, Tensor] | None,
        target_rotary: tuple[Tensor, Tensor] | None,
        window: Window | None = None,
        blinkers: Tensor | None = None,
        with_looks: bool = False,
        values: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend.

        Args:
            queries: (Q,N,d).
            target: (R,M,d).
            readers: the row of `target` that each question reads.
            visible: (R,M) bool; at least one key of each row is visible.
            query_rotary: cosine and sine, (1,N,head_dim), or None for attention that knows no positions.
            target_rotary: cosine and sine, (R,M,head_dim), or None.
            window: the keys each query sees; None for all that are visible.
            blinkers: (Q,H,N,W) bool, the only keys of its window that each head gets to see; all of them where it would
                see none. W has one more place, the last, where heads may look at nobody.
            with_looks: also give where the heads looked.
            values: (R,M,d) what is read where a head looks at `target`; None for `target` itself.

        Returns:
            (Q,N,d), and (Q,H,N,W) float32 logarithms of the attention, or None. Without a window W is M; where heads
            may look at nobody, there is one more, the last.
        """
        q = self.q_proj(queries).unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)
        k = self.k_proj(target).unflatten(-1, (self.key_value_heads, self.head_dim)).transpose(1, 2)
        v = (
            self.v_proj(target if values is None else values)
            .unflatten(-1, (self.key_value_heads, self.head_dim))
            .transpose(1, 2)
        )
        if query_rotary is not None:
            q, _ = apply_rotary_pos_emb(q, q, *query_rotary)
            k, _ = apply_rotary_pos_emb(k, k, *target_rotary)
        # (R,places,key heads,group,N,head_dim): the order of axes before those that share keys become one sequence.
        laid_out = readers.together(q, len(target)).unflatten(2, (self.key_value_heads, -1))
        if window is None:
            order, merged, mask = (0, 2, 1, 3, 4, 5), 2, visible[:, None, None]
        else:
            order, merged, mask = (0, 4, 2, 1, 3, 5), 3, window.visible[:, :, None, None]
            k, v = (window.of_rows(each.transpose(1, 2)).transpose(2, 3) for each in (k, v))
        if self.nobody is not None:
            key = self.nobody.to(k.dtype).expand(*k.shape[:-2], -1, -1)
            k, v = torch.cat([k, key], -2), torch.cat([v, torch.zeros_like(key)], -2)
            mask = functional.pad(mask, (0, 1), value=True)
        in_order = laid_out.permute(order)
        sequence = in_order.flatten(merged, -2)
        seen = None
        if blinkers is not None:
            narrow = readers.together(blinkers, len(target)).unflatten(2, (self.key_value_heads, -1))
            seen = narrow.permute(order).flatten(merged, -2) & mask
            seen = seen | (mask & ~seen.any(-1, keepdim=True))
        shares = None
        if with_looks:
            mixed, shares = look(sequence, k, v, mask, seen)
        else:
            mixed = attend(sequence, k, v, mask if seen is None else seen)
        back = [order.index(axis) for axis in range(6)]
        mixed = mixed.reshape(in_order.shape).permute(back)
        read = self.o_proj(readers.apart(mixed.permute(0, 1, 4, 2, 3, 5).flatten(3)))
        if shares is None:
            return read, None
        return read, readers.apart(shares.reshape(*in_order.shape[:-1], -1).permute(back)).flatten(1, 2)


class QFormerBlock(nn.Module):
    """RMSNorm (shared by queries and target) → cross-attention → residual → RMSNorm → SwiGLU → residual."""

    def __init__(self, config, mlp_bias: bool = False, nobody: bool = False) -> None:
        super().__init__()
        self.attention_norm = Qwen2_5_VLRMSNorm(config.hidden_size, eps=NORM_EPS)
        self.attention = CrossAttention(config, nobody)
        self.mlp_norm = Qwen2_5_VLRMSNorm(config.hidden_size, eps=NORM_EPS)
        self.mlp = Qwen2_5_VLMLP(config, bias=mlp_bias)

    def forward(self, queries: Tensor, target: Tensor, **attending) -> tuple[Tensor, Tensor, Tensor | None]:
        """Queries (Q,N,d) after reading target (R,M,d), what they read (Q,N,d), and where heads looked.

        The rest is as for `CrossAttention`.
        """
        read, looks = self.attention(self.attention_norm(queries), self.attention_norm(target), **attending)
        queries = queries + read
        return queries + self.mlp(self.mlp_norm(queries)), read, looks


class Speech(nn.Module):
    """What a geometry token says, made of what its query asked and of what it read.

    In the sum of both, which is what Q-Former 2 goes on with, little of either is left to be told apart. What is asked
    passes a narrow place: few things matter of it, such as whether distances or directions are, and a code of them is
    learned far sooner than what to make of the whole. The code also opens and shuts the gates of the SwiGLU, so that
    what is made of distances need not be in the way of what is made of directions.
    """

    def __init__(self, config) -> None:
        super().__init__()
        width = config.hidden_size
        self.asked_norm = Qwen2_5_VLRMSNorm(width, eps=NORM_EPS)
        self.code = nn.Linear(width, CODE_WIDTH)
        self.both = nn.Linear(CODE_WIDTH + width, width)
        self.mlp_norm = Qwen2_5_VLRMSNorm(width, eps=NORM_EPS)
        self.gate = nn.Linear(CODE_WIDTH + width, config.intermediate_size)
        self.up = nn.Linear(width, config.intermediate_size)
        self.down = nn.Linear(config.intermediate_size, width)
        self.last = nn.Linear(width, width, bias=False)

    def forward(self, asked: Tensor, read: Tensor) -> tuple[Tensor, Tensor]:
        """(Q,N,d) from two of that size, and the code (Q,N,CODE_WIDTH) before it is pressed between -1 and 1."""
        believed = CODE_GAIN * self.code(self.asked_norm(asked))
        code = torch.tanh(believed)
        said = self.both(torch.cat([code, read], -1))
        normed = self.mlp_norm(said)
        gated = functional.silu(self.gate(torch.cat([code, normed], -1))) * self.up(normed)
        return self.last(said + self.down(gated)), believed


class PriorProjection(nn.Module):
    """Merges neighbouring prior features and projects them to the language model's width.

    Network tokens take the reference's way: RMSNorm, the channels of merge_time × merge_space² neighbours side
    by side, a two-layer MLP. (The reference norms eight tokens that already stand side by side as one; features
    that were cached so have its 8,192 channels and merge 1.) Geometric cells first gain the Fourier features
    sin, cos(2^k · π/4 · x) of their six coordinates (NeRF, Mildenhall et al. 2020, eq. 4), of their time, and of their
    colour, as it is and as it would be in full light, without which coordinates would drown it; and the logarithm of
    their speed, because questions about speeds are about ratios. They skip the norm, which would hide distances. The
    MLP makes them keys; what is read of them goes a straight way beside it, so that a mean over attended cells is a
    mean of coordinates.

    `geometry["projection_width"]` is the MLP's inner width, the model's own where it is not given.
    """

    def __init__(self, hidden_size: int, geometry: dict) -> None:
        super().__init__()
        self.channels, self.octaves = geometry["channels"], geometry["octaves"]
        self.cells = geometry["prior"] == "cells"
        self.merge = (geometry["merge_time"], geometry["merge_space"], geometry["merge_space"])
        waves = (CELL_COORDINATES + 2 * 3) * self.octaves + TIME_OCTAVES if self.cells and self.octaves else 0
        own = self.channels + 1 if self.cells else self.channels
        width, merging = own + 2 * waves, math.prod(self.merge)
        inner = geometry.get("projection_width") or hidden_size
        self.norm = nn.Identity() if self.cells else Qwen2_5_VLRMSNorm(width, eps=NORM_EPS)
        self.mlp = nn.Sequential(nn.Linear(width * merging, inner), nn.GELU(), nn.Linear(inner, hidden_size))
        self.straight = nn.Linear(own * merging, hidden_size, bias=False) if self.cells else None

    def forward(self, features: Tensor, grid: Tensor, times: Tensor) -> Cells:
        """What the second Q-Former reads.

        Args:
            features: (R,T,h,w,C) zero-padded to a common size.
            grid: (R,3) the size T, h, w that is filled in each row.
            times: (R,T) seconds of each slot's last frame.
        """
        if features.shape[-1] != self.channels:
            raise ValueError(f"prior features have {features.shape[-1]} channels, the model reads {self.channels}")
        time, space, _ = self.merge
        features, times = self._padded(features, times)
        rows, t, h, w, _ = features.shape
        own = self._with_speed(features) if self.cells else self.norm(features)
        # Coordinates may need more digits than the model computes in.
        keys = self.mlp(self._merged(self._with_waves(own)).to(self.mlp[0].weight.dtype))
        values = keys if self.straight is None else self.straight(self._merged(own).to(self.straight.weight.dtype))
        index = torch.cartesian_prod(
            *(torch.arange(n, device=features.device) for n in (t // time, h // space, w // space))
        )
        steps = torch.tensor(self.merge, device=features.device)
        visible = (index * steps < grid[:, None]).all(-1)
        # A merged slot ends with the last of its slots that holds something.
        last = torch.minimum((index[:, 0] + 1) * time, grid[:, :1]) - 1
        seconds = times.gather(1, last.clamp(min=0))
        places = torch.cat([seconds[..., None], index[:, 1:].expand(rows, -1, 2)], -1)
        return Cells(keys, values, visible, places)

    def begin_with_places(self) -> None:
        """Let the leading channels of the values be the places of the cells, and the logarithms of their speed."""
        own = self.channels + 1
        chosen = torch.tensor([*CELL_PLACE, self.channels])[: self.straight.out_features]
        weight = self.straight.weight.detach().clone().unflatten(1, (-1, own))
        weight[: len(chosen)] = functional.one_hot(chosen, own)[:, None] * PLACE_GAIN / weight.shape[1]
        init.copy_(self.straight.weight, weight.flatten(1))

    def _merged(self, each: Tensor) -> Tensor:
        """(R,T,h,w,C) of padded cells as (R,M,merge_time·merge_space²·C)."""
        time, space, _ = self.merge
        rows, t, h, w, _ = each.shape
        blocks = each.reshape(rows, t // time, time, h // space, space, w // space, space, -1)
        return blocks.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4).flatten(1, 3)

    def _padded(self, features: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        extra = [-size % step for size, step in zip(features.shape[1:4], self.merge, strict=True)]
        features = functional.pad(features, (0, 0, 0, extra[2], 0, extra[1], 0, extra[0]))
        return features, functional.pad(times, (0, extra[0]))

    @staticmethod
    def _with_speed(features: Tensor) -> Tensor:
        """Cells with enlarged flow, and one more channel: the logarithm of its length."""
        flow = features[..., CELL_FLOW] * FLOW_SCALE
        speed = (flow.norm(dim=-1, keepdim=True) + STILL).log()
        return torch.cat([features[..., : CELL_FLOW.start], flow, features[..., CELL_FLOW.stop :], speed], -1)

    def _with_waves(self, features: Tensor) -> Tensor:
        if not self.cells or not self.octaves:
            return features
        minutes = features[..., CELL_TIME : CELL_TIME + 1]
        angles = torch.cat(
            [
                _angles(features[..., :CELL_COORDINATES], math.pi / 4, self.octaves),
                _angles(features[..., CELL_COLOUR], math.pi / 2, self.octaves),
                _angles(_tint(features[..., CELL_COLOUR]), math.pi / 2, self.octaves),
                _angles(minutes, 60 * math.pi / 32, TIME_OCTAVES),
            ],
            -1,
        )
        return torch.cat([features, angles.sin(), angles.cos()], -1)


def _tint(colour: Tensor) -> Tensor:
    """Colours -1..1 as they would be in full light, 0..1: their brightest channel becomes 1."""
    light = (colour + 1) / 2
    return light / light.amax(-1, keepdim=True).clamp(min=DARK)


def _angles(values: Tensor, lowest: float, octaves: int) -> Tensor:
    """(...,C) values times a lowest frequency and its doublings, (...,C·octaves)."""
    return (values[..., None] * (lowest * 2.0 ** torch.arange(octaves, device=values.device))).flatten(-2)


def _with_heads(text_config, heads: int | None):
    """The language model's configuration, or a copy of it with as many heads of queries, keys and values."""
    if not heads:
        return text_config
    width, rest = divmod(text_config.hidden_size, heads)
    if rest or width % 16:
        raise ValueError(f"heads {heads}: a width of {text_config.hidden_size} must give heads of a multiple of 16")
    config = copy.deepcopy(text_config)
    config.num_attention_heads = config.num_key_value_heads = heads
    config.head_dim = width
    config.rope_parameters["mrope_section"] = [width // 4, width // 8, width // 8]
    return config


class GeometrySelection(nn.Module):
    """N learned queries, Q-Former 1 over the question, Q-Former 2 over the prior, final norm."""

    def __init__(self, text_config, geometry: dict, tokens_per_second: float) -> None:
        super().__init__()
        self.tokens_per_second = tokens_per_second
        self.window, self.words = geometry.get("window", 0), geometry.get("context", 1)
        width, bias = text_config.hidden_size, geometry.get("mlp_bias", False)
        config = _with_heads(text_config, geometry.get("heads"))
        self.queries = nn.Parameter(torch.empty(geometry["queries"], width))
        self.context = nn.Linear(self.words * width, width) if self.words > 1 else None
        self.prior = PriorProjection(width, geometry)
        self.condenser = nn.ModuleList(QFormerBlock(config, bias) for _ in range(geometry["condenser_depth"]))
        self.nobody = bool(geometry.get("nobody"))
        self.selector = nn.ModuleList(
            QFormerBlock(config, bias, self.nobody) for _ in range(geometry["selector_depth"])
        )
        self.speech = Speech(config) if geometry.get("speak") else None
        self.norm = Qwen2_5_VLRMSNorm(width, eps=NORM_EPS)
        self.rotary = Qwen2_5_VLRotaryEmbedding(config)

    def forward(
        self,
        question: Tensor,
        question_visible: Tensor,
        features: Tensor,
        grid: Tensor,
        times: Tensor,
        owner: Tensor,
        with_attention: bool = False,
        with_looks: bool = False,
        blinkers: Tensor | None = None,
    ) -> Selection:
        """Geometry tokens for each question.

        Args:
            question: (Q,L,d) raw embeddings of the tokens that it reads: the question's own, or for published
                weights the prompt's (`models.published.prompt_tokens_read`).
            question_visible: (Q,L) bool, false on padding.
            features: (R,T,h,w,C) prior features of R clips, zero-padded.
            grid: (R,3) filled size of each row.
            times: (R,T) seconds at which the slots of time stand.
            owner: (Q,) the clip each question is about.
            with_attention: also give the last selector block's attention.
            with_looks: also give where the first blocks' heads looked.
            blinkers: (Q,H,N,W) bool, what heads of the first selector block get to see of `window_of`, and of nobody
                in one more place where the module has that; None for all. Where they looked is given as if they had
                seen all.
        """
        cells = self.prior(features, grid, times)
        window = self.window_of(features, grid)
        tokens, words = self._condense(question, question_visible, with_looks)
        selecting = {"readers": Readers.of(owner), "visible": cells.visible}
        # A norm would divide each value by another number: differences between coordinates would be gone.
        selecting["values"] = cells.values if self.prior.cells else None
        if self.window:
            selecting |= {"window": window, "query_rotary": None, "target_rotary": None}
        else:
            places = cells.places * cells.places.new_tensor([self.tokens_per_second, 1.0, 1.0])
            selecting["query_rotary"] = self._rotary(self._counting(tokens))
            selecting["target_rotary"] = self._rotary(places.floor().permute(2, 0, 1))
        condensed, read, first, last = tokens, None, None, None
        for number, block in enumerate(self.selector):
            asked = (with_looks and number == 0) or (with_attention and number == len(self.selector) - 1)
            narrowed = {"blinkers": blinkers} if number == 0 else {}
            tokens, read, last = block(tokens, cells.keys, **selecting, **narrowed, with_looks=asked)
            first = last if number == 0 else first
        attention = self._over_all_keys(last, window, owner, cells.keys.shape[1]) if with_attention else None
        looks = Looks(words, first, window, cells.keys, cells.visible) if with_looks else None
        said, code = (tokens, None) if self.speech is None else self.speech(condensed, read)
        return Selection(self.norm(said), attention, looks, tokens, code)

    def begin(self) -> None:
        """Draw the queries, and let heads read places where the prior has them."""
        init.normal_(self.queries, std=QUERY_SPREAD)
        if self.nobody:
            for block in self.selector:
                init.zeros_(block.attention.nobody)
        if not self.prior.cells:
            return
        self.prior.begin_with_places()
        for block in self.selector:
            attention, width = block.attention, min(block.attention.head_dim, len(CELL_PLACE) + 1)
            weight = attention.v_proj.weight.detach().clone().unflatten(0, (attention.key_value_heads, -1))
            weight[:, :width, :width] = torch.eye(width)
            init.copy_(attention.v_proj.weight, weight.flatten(0, 1))
            init.copy_(attention.o_proj.weight, torch.eye(*attention.o_proj.weight.shape))

    def window_of(self, features: Tensor, grid: Tensor) -> Window:
        """The keys that each query sees of (R,T,h,w,C) prior features, filled up to (R,3) `grid`."""
        size = merged_size(features.shape[1:4], self.prior.merge)
        merge = torch.tensor(self.prior.merge, device=grid.device)
        return Window.of(-(-grid // merge), size, len(self.queries), self.window)

    def _condense(self, question: Tensor, visible: Tensor, with_looks: bool) -> tuple[Tensor, Tensor | None]:
        """Queries (Q,N,d) after reading the questions, and where the first block's heads looked."""
        tokens = self.queries.to(question.dtype).expand(len(question), -1, -1)
        if self.context is not None:
            earlier = functional.pad(question, (0, 0, self.words - 1, 0)).unfold(1, self.words, 1)
            question = question + self.context(earlier.transpose(2, 3).flatten(2))
        reading = {
            "readers": Readers.alone(len(question), question.device),
            "visible": visible,
            "query_rotary": self._rotary(self._counting(tokens)),
            "target_rotary": self._rotary(self._counting(question)),
        }
        first = None
        for number, block in enumerate(self.condenser):
            tokens, _, looks = block(tokens, question, **reading, with_looks=with_looks and number == 0)
            first = looks if number == 0 else first
        return tokens, first

    def _over_all_keys(self, looks: Tensor, window: Window, owner: Tensor, keys: int) -> Tensor:
        """Mean over heads of attention (Q,H,N,W) as (Q,N,M), without what went to nobody."""
        shares = looks.exp().mean(1)
        if self.nobody:
            shares = shares[..., :-1]
        if not self.window:
            return shares
        # A number may stand in a window more than once, where it stands for nothing and has no share.
        return shares.new_zeros(*shares.shape[:2], keys).scatter_add(2, window.keys[owner], shares)

    @staticmethod
    def _counting(sequence: Tensor) -> Tensor:
        return torch.arange(sequence.shape[1], device=sequence.device).expand(3, 1, -1)

    def _rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine (rows,length,head_dim) for positions (3,rows,length)."""
        return self.rotary(self.queries, positions)
