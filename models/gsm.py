"""Geometry Selection Module: picks from a clip's prior features what one question needs (paper section 4).

Learned queries read the question (Q-Former 1, "semantic condenser") and then the prior features (Q-Former 2,
"relevant-geometry selector"); the result is a handful of geometry tokens per question, in the language model's
width. Positions are the reference's: in both cross-attentions queries, question tokens and keys carry Qwen's
three-axis rotary positions. Queries and question tokens count 0, 1, 2, … on all axes; a key stands at
(tokens_per_second · seconds, row, column) of the merged grid.

Only `PriorProjection` knows whether the prior features are network tokens or geometric cells.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VLRMSNorm,
    Qwen2_5_VLRotaryEmbedding,
    Qwen2MLP,
    apply_rotary_pos_emb,
    repeat_kv,
)

CELL_CHANNELS = 14
"""A geometric cell: camera xyz, world xyz, scene flow xyz, mean RGB, validity, time."""
CELL_COORDINATES = 6
"""The leading channels of a geometric cell that are coordinates: camera xyz, world xyz."""


class CrossAttention(nn.Module):
    """Grouped-query attention from queries to targets, with rotary positions on both sides."""

    def __init__(self, config) -> None:
        super().__init__()
        self.heads, self.key_value_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.hidden_size // self.heads
        self.q_proj = nn.Linear(config.hidden_size, self.heads * self.head_dim, bias=True)
        self.k_proj = nn.Linear(config.hidden_size, self.key_value_heads * self.head_dim, bias=True)
        self.v_proj = nn.Linear(config.hidden_size, self.key_value_heads * self.head_dim, bias=True)
        self.o_proj = nn.Linear(self.heads * self.head_dim, config.hidden_size, bias=False)

    def forward(
        self,
        queries: Tensor,
        target: Tensor,
        owner: Tensor,
        visible: Tensor,
        query_rotary: tuple[Tensor, Tensor],
        target_rotary: tuple[Tensor, Tensor],
    ) -> Tensor:
        """Attend.

        Args:
            queries: (Q,N,d).
            target: (R,M,d); keys and values are projected once per row, however many questions share it.
            owner: (Q,) row of `target` that each question reads.
            visible: (R,M) bool; at least one key of each row is visible.
            query_rotary: cosine and sine, (1,N,head_dim).
            target_rotary: cosine and sine, (R,M,head_dim).

        Returns:
            (Q,N,d).
        """
        q = self.q_proj(queries).unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)
        k = self.k_proj(target).unflatten(-1, (self.key_value_heads, self.head_dim)).transpose(1, 2)
        v = self.v_proj(target).unflatten(-1, (self.key_value_heads, self.head_dim)).transpose(1, 2)
        q, _ = apply_rotary_pos_emb(q, q, *query_rotary)
        k, _ = apply_rotary_pos_emb(k, k, *target_rotary)
        groups = self.heads // self.key_value_heads
        mixed = functional.scaled_dot_product_attention(
            q, repeat_kv(k[owner], groups), repeat_kv(v[owner], groups), attn_mask=visible[owner][:, None, None]
        )
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class QFormerBlock(nn.Module):
    """RMSNorm (shared by queries and target) → cross-attention → residual → RMSNorm → SwiGLU → residual."""

    def __init__(self, config) -> None:
        super().__init__()
        self.attention_norm = Qwen2_5_VLRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.attention = CrossAttention(config)
        self.mlp_norm = Qwen2_5_VLRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = Qwen2MLP(config)

    def forward(self, queries: Tensor, target: Tensor, **attention: Tensor | tuple[Tensor, Tensor]) -> Tensor:
        """Queries (Q,N,d) after reading target (R,M,d); the rest as in `CrossAttention.forward`."""
        queries = queries + self.attention(self.attention_norm(queries), self.attention_norm(target), **attention)
        return queries + self.mlp(self.mlp_norm(queries))


class PriorProjection(nn.Module):
    """Merges neighbouring prior features and projects them to the language model's width.

    Network tokens take the reference's way: RMSNorm, the channels of merge_time × merge_space² neighbours side
    by side, a two-layer MLP. Geometric cells first gain the Fourier features sin, cos(2^k · π/4 · x) of their six
    coordinates (NeRF, Mildenhall et al. 2020, eq. 4) and skip the norm, which would hide distances.
    """

    def __init__(self, hidden_size: int, geometry: dict) -> None:
        super().__init__()
        self.channels, self.octaves = geometry["channels"], geometry["octaves"]
        self.cells = geometry["prior"] == "cells"
        self.merge = (geometry["merge_time"], geometry["merge_space"], geometry["merge_space"])
        width = self.channels + (2 * CELL_COORDINATES * self.octaves if self.cells else 0)
        merged = width * math.prod(self.merge)
        self.norm = nn.Identity() if self.cells else Qwen2_5_VLRMSNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(merged, hidden_size), nn.GELU(), nn.Linear(hidden_size, hidden_size))

    def forward(self, features: Tensor, grid: Tensor, times: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Keys for the second Q-Former.

        Args:
            features: (R,T,h,w,C) zero-padded to a common size.
            grid: (R,3) the size T, h, w that is filled in each row.
            times: (R,T) seconds of each slot's last frame.

        Returns:
            keys (R,M,d); visible (R,M), false on padding; coordinates (R,M,3): seconds, row, column.
        """
        if features.shape[-1] != self.channels:
            raise ValueError(f"prior features have {features.shape[-1]} channels, the model reads {self.channels}")
        time, space, _ = self.merge
        features, times = self._padded(features, times)
        rows, t, h, w, _ = features.shape
        described = self.norm(self._with_fourier(features))
        blocks = described.reshape(rows, t // time, time, h // space, space, w // space, space, -1)
        merged = blocks.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(rows, -1, self.mlp[0].in_features)
        index = torch.cartesian_prod(
            *(torch.arange(n, device=features.device) for n in (t // time, h // space, w // space))
        )
        steps = torch.tensor(self.merge, device=features.device)
        visible = (index * steps < grid[:, None]).all(-1)
        # A merged slot ends with the last of its slots that holds something.
        last = torch.minimum((index[:, 0] + 1) * time, grid[:, :1]) - 1
        seconds = times.gather(1, last.clamp(min=0))
        return self.mlp(merged), visible, torch.cat([seconds[..., None], index[:, 1:].expand(rows, -1, 2)], -1)

    def _padded(self, features: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        extra = [-size % step for size, step in zip(features.shape[1:4], self.merge, strict=True)]
        features = functional.pad(features, (0, 0, 0, extra[2], 0, extra[1], 0, extra[0]))
        return features, functional.pad(times, (0, extra[0]))

    def _with_fourier(self, features: Tensor) -> Tensor:
        if not self.cells or not self.octaves:
            return features
        octaves = 2.0 ** torch.arange(self.octaves, device=features.device) * (math.pi / 4)
        angles = (features[..., :CELL_COORDINATES, None] * octaves).flatten(-2)
        return torch.cat([features, angles.sin(), angles.cos()], -1)


class GeometrySelection(nn.Module):
    """N learned queries, Q-Former 1 over the question, Q-Former 2 over the prior, final norm."""

    def __init__(self, text_config, geometry: dict, tokens_per_second: float) -> None:
        super().__init__()
        self.tokens_per_second = tokens_per_second
        self.queries = nn.Parameter(torch.empty(geometry["queries"], text_config.hidden_size))
        self.prior = PriorProjection(text_config.hidden_size, geometry)
        self.condenser = nn.ModuleList(QFormerBlock(text_config) for _ in range(geometry["condenser_depth"]))
        self.selector = nn.ModuleList(QFormerBlock(text_config) for _ in range(geometry["selector_depth"]))
        self.norm = Qwen2_5_VLRMSNorm(text_config.hidden_size, eps=text_config.rms_norm_eps)
        self.rotary = Qwen2_5_VLRotaryEmbedding(text_config)

    def forward(
        self,
        question: Tensor,
        question_visible: Tensor,
        features: Tensor,
        grid: Tensor,
        times: Tensor,
        owner: Tensor,
    ) -> Tensor:
        """Geometry tokens for each question.

        Args:
            question: (Q,L,d) raw embeddings of the question's own tokens.
            question_visible: (Q,L) bool, false on padding.
            features: (R,T,h,w,C) prior features of R clips, zero-padded.
            grid: (R,3) filled size of each row.
            times: (R,T) seconds.
            owner: (Q,) the clip each question is about.

        Returns:
            (Q,N,d).
        """
        keys, visible, coordinates = self.prior(features, grid, times)
        tokens = self.queries.to(question.dtype).expand(len(question), -1, -1)
        query_rotary = self._rotary(self._counting(tokens))
        reading = {
            "owner": torch.arange(len(question), device=question.device),
            "visible": question_visible,
            "query_rotary": query_rotary,
            "target_rotary": self._rotary(self._counting(question)),
        }
        for block in self.condenser:
            tokens = block(tokens, question, **reading)
        places = coordinates * coordinates.new_tensor([self.tokens_per_second, 1.0, 1.0])
        selecting = {
            "owner": owner,
            "visible": visible,
            "query_rotary": query_rotary,
            "target_rotary": self._rotary(places.floor().permute(2, 0, 1)),
        }
        for block in self.selector:
            tokens = block(tokens, keys, **selecting)
        return self.norm(tokens)

    @staticmethod
    def _counting(sequence: Tensor) -> Tensor:
        return torch.arange(sequence.shape[1], device=sequence.device).expand(3, 1, -1)

    def _rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine (rows,length,head_dim) for positions (3,rows,length)."""
        return self.rotary(self.queries, positions)
