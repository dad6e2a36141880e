"""Other ways of giving a language model geometry than the Geometry Selection Module, for the ablation (paper 6.2).

addition       the projected prior is added to the vision tokens
concatenation  the projected prior follows the vision tokens, all of it, without selection
fused          on top of GSM: a gate mixes geometry into the vision tokens, and in training the vision tokens that
               the selection looks at are hidden, so that geometry has to be read (GeoSR, arXiv 2603.26639)

A prior's grid and the vision tokens' differ in general; between them everything is interpolated linearly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRMSNorm

from models.batch import NO_VIDEO, GeometryInputs
from models.gsm import PriorProjection, Selection, merged_size

Size = tuple[int, int, int]


def resampled(cells: Tensor, size: Size) -> Tensor:
    """Linear interpolation of (t,h,w,c) to (t',h',w',c), cell centres aligned, edges held.

    Products with matrices: PyTorch's own trilinear interpolation has no deterministic gradient on CUDA.
    """
    weights = [_linear(old, new, cells) for old, new in zip(cells.shape, size, strict=False)]
    return torch.einsum("at,bh,cw,thwd->abcd", *weights, cells)


def _linear(old: int, new: int, like: Tensor) -> Tensor:
    """(new,old) weights of linear interpolation along one axis."""
    source = torch.arange(old, device=like.device)
    target = ((torch.arange(new, device=like.device) + 0.5) * (old / new) - 0.5).clamp(0, old - 1)
    return (1 - (target[:, None] - source).abs()).clamp(min=0).to(like.dtype)


@dataclass(frozen=True)
class Scene:
    """Projected priors on their grids.

    Attributes:
        geometry: R priors and Q questions.
        prior_video: (R,) the video each prior belongs to, or NO_VIDEO.
        cells: (R,M,d) as `PriorProjection` gives them; M counts the cells of the batch's largest prior.
        merge: features that make up one cell along time, height and width.
    """

    geometry: GeometryInputs
    prior_video: Tensor
    cells: Tensor
    merge: tuple[int, int, int]

    def on_vision_grid(self, row: int, values: Tensor, size: Size) -> Tensor:
        """Values (M,c) of the cells of one prior on a grid of vision tokens, (n,c)."""
        whole = merged_size(self.geometry.prior.shape[1:4], self.merge)
        t, h, w = merged_size(self.geometry.prior_grid[row].tolist(), self.merge)
        return resampled(values.reshape(*whole, -1)[:t, :h, :w], size).flatten(0, 2)


class Addition(nn.Module):
    """Vision tokens plus the projected prior at the same place."""

    def __init__(self, text_config, geometry: dict) -> None:
        super().__init__()
        self.prior = PriorProjection(text_config.hidden_size, geometry)

    def forward(
        self, vision: Sequence[Tensor], sizes: Sequence[Size], geometry: GeometryInputs, prior_video: Tensor
    ) -> list[Tensor]:
        """Vision tokens (n,d) of each video, of t·h·w = n as `sizes` has it, with geometry where a prior belongs to it.

        Args:
            vision: one tensor for each video.
            sizes: the vision tokens' grids.
            geometry: R priors.
            prior_video: (R,) the video each prior belongs to, or NO_VIDEO.
        """
        cells = self.prior(geometry.prior, geometry.prior_grid, geometry.prior_times).whole
        scene = Scene(geometry, prior_video, cells, self.prior.merge)
        mixed = list(vision)
        for row, video in enumerate(prior_video.tolist()):
            if video != NO_VIDEO:
                placed = scene.on_vision_grid(row, cells[row], sizes[video])
                mixed[video] = mixed[video] + placed.to(mixed[video].dtype)
        return mixed


class Concatenation(nn.Module):
    """The projected prior as tokens of its own."""

    def __init__(self, text_config, geometry: dict) -> None:
        super().__init__()
        self.prior = PriorProjection(text_config.hidden_size, geometry)

    def forward(self, geometry: GeometryInputs) -> list[Tensor]:
        """For each of R priors its merged cells, (m,d), in the order time, row, column."""
        cells = self.prior(geometry.prior, geometry.prior_grid, geometry.prior_times)
        return [row[seen] for row, seen in zip(cells.whole, cells.visible, strict=True)]


class GatedFusion(nn.Module):
    """GeoSR's fusion: geometry tokens spread over the vision grid, a gate for each token and channel, hidden vision.

    Both sides are normalised before they are mixed, as in GeoSR; hidden vision tokens still open and close the gate
    but contribute nothing.
    """

    def __init__(self, text_config, geometry: dict) -> None:
        super().__init__()
        width = text_config.hidden_size
        self.mask_share = geometry["fusion_mask_share"]
        self.mask_probability = geometry["fusion_mask_probability"]
        self.query_norm = Qwen2_5_VLRMSNorm(width, eps=text_config.rms_norm_eps)
        self.token_norm = Qwen2_5_VLRMSNorm(width, eps=text_config.rms_norm_eps)
        self.spread = nn.MultiheadAttention(width, text_config.num_attention_heads, batch_first=True)
        self.vision_norm = nn.LayerNorm(width)
        self.geometry_norm = nn.LayerNorm(width)
        self.gate = nn.Linear(2 * width, width)

    def forward(
        self,
        vision: Sequence[Tensor],
        deepstack: Sequence[Sequence[Tensor]],
        sizes: Sequence[Size],
        scene: Scene,
        selection: Selection,
        hidden: Sequence[bool],
    ) -> tuple[list[Tensor], list[list[Tensor]]]:
        """Vision tokens and deepstack features with the geometry that each video's one question picked.

        Args:
            vision: (n,d) of each video.
            deepstack: for each decoder layer concerned (n,d) of each video; hidden along, otherwise untouched.
            sizes: the vision tokens' grids.
            scene: the priors.
            selection: what the questions picked; with attention where any of `hidden` is true.
            hidden: for each question whether the vision it looks at is hidden.

        Raises:
            ValueError: if two questions are about one prior.
        """
        rows = scene.geometry.owner.tolist()
        if len(set(rows)) < len(rows):
            raise ValueError("variant fused: vision tokens depend on the question, so each needs a prefix of its own")
        vision, deepstack = list(vision), [list(layer) for layer in deepstack]
        for question, row in enumerate(rows):
            video = int(scene.prior_video[row])
            if video == NO_VIDEO:
                continue
            shown = None
            if hidden[question]:
                attention = selection.attention[question].detach().float().mean(0)
                shown = self.shown(scene.on_vision_grid(row, attention, sizes[video])[:, 0])
                for layer in deepstack:
                    layer[video] = layer[video] * shown[:, None]
            cells = scene.on_vision_grid(row, scene.cells[row], sizes[video])
            vision[video] = self.mixed(vision[video], cells, selection.tokens[question], shown)
        return vision, deepstack

    def mixed(self, vision: Tensor, cells: Tensor, tokens: Tensor, shown: Tensor | None) -> Tensor:
        """Vision tokens of one video, mixed with one question's geometry.

        Args:
            vision: (n,d).
            cells: (n,d) projected prior on the vision tokens' grid.
            tokens: (N,d) geometry tokens.
            shown: (n,) bool, false where a vision token is hidden; None shows all.
        """
        heard = self.token_norm(tokens)[None]
        spread, _ = self.spread(self.query_norm(cells)[None], heard, heard, need_weights=False)
        seen, known = self.vision_norm(vision), self.geometry_norm(spread[0])
        gate = self.gate(torch.cat([seen, known], -1)).sigmoid()
        if shown is not None:
            seen = seen * shown[:, None]
        return gate * seen + (1 - gate) * known

    def draw_hidden(self, questions: int) -> list[bool]:
        """For each question whether this time vision is hidden: in training only, from PyTorch's CPU generator."""
        if not self.training:
            return [False] * questions
        return (torch.rand(questions) < self.mask_probability).tolist()

    def shown(self, relevance: Tensor) -> Tensor:
        """Which vision tokens stay visible, (n,) bool: all but the share of the highest relevance (n,)."""
        shown = torch.ones_like(relevance, dtype=torch.bool)
        shown[relevance.topk(math.ceil(self.mask_share * len(relevance))).indices] = False
        return shown
