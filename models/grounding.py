"""Teaches the geometry module where to look and what to say, beside the loss on answers.

words      Q-Former 1 looks at the words that name the question's things
kinds      the code of what a question asks for says whether it is distances, directions or speeds
names      keys know whose they are: the cells of a thing are told by the words of its name
cells      Q-Former 2 looks at the cells of these things, each query at its own slot of time; at nobody for the camera
positions  what the geometry tokens are made of holds where these things are and how they move
states     each geometry token says, in the language model's own words, what happens at its moment

Heads of the first blocks are shared out among the things: three look for the thing in each role, the next three, of
Q-Former 2 where each query sees more than one slot, for the same a slot earlier, since change needs two moments; others
are free. What only training needs (`Guides`) is not part of a checkpoint.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.batch import TreeBatch
from models.gsm import CELL_PLACE, Looks, Selection, Window
from models.guide import KINDS, NO_THING, NO_WORD, NOTHING, ROLES, UNKNOWN, Guide

# A cell belongs to a thing that covers so much of it, and to nobody where all things together cover less than that.
COVERED, BARE = 0.35, 0.03
# One in so many bare cells takes part in naming; there are far more of them than others.
BARE_TAKING_PART = 16
# Weight of the moments at which something happens, beside those at which nothing does.
HAPPENS = 0.8
# The moments that heads look at: a query's own slot of time, and the one before it.
LAGS = 2
PLACE_CHANNELS = len(CELL_PLACE)
# Of places in the camera and in the world, motion, and headings in both. What things do in a second is small beside
# where they are, and as telling; headings are of length one.
PLACE_WEIGHTS = (1.0, 1.0, 5.0, 0.3, 0.3)


class Guides(nn.Module):
    """Linear readers of what the model should know, thrown away after training.

    Attributes:
        option: how right an option looks at its end, from the language model's state there.
        agree: whether it is right so far, where one of its states ends.
        name: a key in the language of words.
        nobody: what stands for a cell without a thing, beside the names.
        place: where the things of a question are, from what a geometry token is made of.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.option = nn.Linear(width, 1)
        self.agree = nn.Linear(width, 1)
        self.name = nn.Linear(width, width)
        self.nobody = nn.Parameter(torch.zeros(width))
        self.place = nn.Linear(width, LAGS * len(ROLES) * PLACE_CHANNELS)


def meaning(embed: nn.Module, words: Tensor) -> Tensor:
    """Mean embeddings (...,d) of texts of (...,K) words, some of them NO_WORD."""
    said = (words != NO_WORD).to(embed.weight.dtype)[..., None]
    return (embed(words.clamp(min=0)) * said).sum(-2) / said.sum(-2).clamp(min=1)


def spoken(embed: nn.Module, guide: Guide) -> Tensor:
    """(S,d) each state as a geometry token that says it: in the scale that GSM's last norm gives its tokens."""
    said = meaning(embed, guide.state_words)
    return functional.rms_norm(said, said.shape[-1:], eps=1e-6)


def blinkers_of(model: nn.Module, batch: TreeBatch, share: float) -> Tensor | None:
    """(Q,H,N,W) bool for `model.select`: in a share of the questions heads see only what they should look at.

    So what is made of the right cells can be learned before they are found. It is the first questions of each row, in
    whatever order these were drawn, so that it does not depend on how a step is cut into micro-batches.
    """
    if share <= 0:
        return None
    gsm, guide = model.gsm, batch.guide
    window = gsm.window_of(batch.prior, batch.prior_grid)
    own = _of_roles(_merged_cover(guide.cover, gsm.prior.merge), guide, batch.owner)
    moments = [_Moment.of(own, window.slots[batch.owner] - lag) for lag in range(LAGS)]
    asked = batch.prompt_end.sum(1)
    place = (batch.branch[batch.prompt_end] + 0.5) / asked.repeat_interleave(asked)
    told = []
    for _, role, lag in _supervised(gsm.selector[0].attention.heads):
        weight, known = _wanted(moments[lag], role, window, batch, gsm.nobody)
        told.append((weight > 0.5) & (known & (place < share)[:, None])[..., None])
    free = gsm.selector[0].attention.heads - len(told)
    return functional.pad(torch.stack(told, 1), (0, 0, 0, 0, 0, free))


def _wanted(moment: _Moment, role: int, window: Window, batch: TreeBatch, nobody: bool) -> tuple[Tensor, Tensor]:
    """What a head that looks for a thing should see.

    Args:
        moment: at which it looks.
        role: of the thing.
        window: what the queries see.
        batch: with a guide.
        nobody: whether heads may look at nobody, in the last place of W.

    Returns:
        (Q,N,W) how well the thing fills each key, its best one in full; and (Q,N) whether there is anything to see.
    """
    cells, owner = moment.cover.shape[3], batch.owner
    visible = window.visible[owner].unflatten(2, (-1, cells))
    here = (window.seen[owner] == moment.at[..., None])[..., None] & visible
    weight = moment.cover[:, role] / moment.best[:, role, :, None].clamp(min=1e-6)
    weight, known = (weight[:, :, None] * here).flatten(2), moment.known[:, role] & here.flatten(2).any(-1)
    if not nobody:
        return weight, known
    # What a question is about is the camera, or it is about one thing less.
    explained = (batch.guide.states != UNKNOWN).any(1)
    absent = ((batch.guide.things[:, role] == NO_THING) & explained)[:, None].expand_as(known)
    return torch.cat([weight, absent[..., None].to(weight.dtype)], -1), known | absent


def grounding_losses(model: nn.Module, guides: Guides, batch: TreeBatch, selection: Selection) -> dict[str, Tensor]:
    """The parts named above, each summed over questions (the mean over what one question has of it).

    Args:
        model: with a GSM that reads geometric cells.
        guides: the readers.
        batch: with a guide and a prior.
        selection: of `model.select(..., with_looks=True)`.
    """
    guide, looks = batch.guide, selection.looks
    cover = _merged_cover(guide.cover, model.gsm.prior.merge)
    own = _of_roles(cover, guide, batch.owner)
    at = looks.window.slots[batch.owner]
    moments = [_Moment.of(own, at - lag) for lag in range(LAGS)]
    kinds = {} if selection.code is None else {"kinds": _know_kinds(selection.code, guide)}
    return {
        "words": _look_at_words(looks, guide),
        **kinds,
        "names": _name_keys(model, guides, looks.keys, looks.visible, cover, guide)[batch.owner].sum(),
        "cells": _look_at_cells(looks, moments, batch, model.gsm.nobody),
        "positions": _hold_places(guides, selection.thoughts, moments, batch, cover, model.gsm.prior.merge),
        "states": _say_states(model, selection.tokens, guide),
    }


def option_losses(guides: Guides, hidden: Tensor, batch: TreeBatch, said: Tensor, answers: Tensor) -> Tensor:
    """(Q,) cross-entropy of choosing among the options, in the letter that is said, at each one's end and on the way.

    At the ends it teaches the comparison of an option with the clip apart from the binding of options to letters, and
    with four times the signal; state by state, whether an option has been right so far, it says where one goes wrong.

    Args:
        guides: the readers.
        hidden: (B,L,d) last hidden states.
        batch: with a guide.
        said: (Q,4) logits of the letters where an answer begins.
        answers: (Q,) number of the right option.
    """
    seen = guides.option(hidden[batch.guide.option_ends]).float().view(len(answers), -1)
    chosen = sum(functional.cross_entropy(scores, answers, reduction="none") for scores in (seen, said))
    ends = batch.guide.agrees != UNKNOWN
    so_far = guides.agree(hidden[ends]).float()[:, 0]
    agrees = batch.guide.agrees[ends].float()
    missed = functional.binary_cross_entropy_with_logits(so_far, agrees, reduction="none")
    whose = _questions_of_slots(batch)[ends]
    return chosen + missed.new_zeros(len(answers)).index_add(0, whose, missed) / seen.shape[1]


def _questions_of_slots(batch: TreeBatch) -> Tensor:
    """(B,L) number in the batch of the question that each slot of a branch belongs to."""
    before = batch.prompt_end.sum(1).cumsum(0) - batch.prompt_end.sum(1)
    return before[:, None] + batch.branch


def _supervised(heads: int) -> list[tuple[int, int, int]]:
    """(head, role, lag) of the heads that are told where to look."""
    return [(head, head % len(ROLES), head // len(ROLES)) for head in range(min(heads, LAGS * len(ROLES)))]


class _Moment(NamedTuple):
    """Things at the slot of time that each query is at, or at an earlier one.

    Attributes:
        at: (Q,N) the slot; below 0 before the clip begins.
        cover: (Q,3,N,m) what the thing in each role covers of that slot's merged cells.
        best: (Q,3,N) the most it covers of one of them.
        known: (Q,3,N) bool, whether it is seen there.
    """

    at: Tensor
    cover: Tensor
    best: Tensor
    known: Tensor

    @classmethod
    def of(cls, own: Tensor, at: Tensor) -> _Moment:
        """From (Q,3,t,m) what things cover at each slot."""
        index = at.clamp(min=0)[:, None, :, None].expand(-1, own.shape[1], -1, own.shape[3])
        cover = own.gather(2, index)
        best = cover.amax(-1)
        return cls(at, cover, best, (best > BARE) & (at >= 0)[:, None])


def _means_where(values: Tensor, known: Tensor) -> Tensor:
    """(Q,) means of (Q,...) values where they are known."""
    count = known.flatten(1).sum(1)
    return (values * known).flatten(1).sum(1) / count.clamp(min=1)


def _mean_where(values: Tensor, known: Tensor) -> Tensor:
    """Sum over questions of the mean of (Q,...) values where they are known."""
    return _means_where(values, known).sum()


def _look_at_words(looks: Looks, guide: Guide) -> Tensor:
    missed, known = [], []
    for head, role, _ in _supervised(looks.words.shape[1]):
        span = guide.spans[:, role]
        share = looks.words[:, head].masked_fill(~span[:, None], -math.inf)
        named = span.any(1)[:, None].expand(share.shape[:2])
        missed.append(-share.logsumexp(-1).masked_fill(~named, 0.0))
        known.append(named)
    return _mean_where(torch.stack(missed, 1), torch.stack(known, 1))


def _know_kinds(code: Tensor, guide: Guide) -> Tensor:
    """Cross-entropy of telling what a question asks for: one number of the code for each kind, 1 or -1."""
    known = guide.kinds != UNKNOWN
    # tanh(x) is what a probability of sigmoid(2x) is between -1 and 1.
    believed = 2 * code[known, :, : len(KINDS)].float()
    truth = functional.one_hot(guide.kinds[known], len(KINDS)).to(believed.dtype)[:, None].expand_as(believed)
    return functional.binary_cross_entropy_with_logits(believed, truth, reduction="sum") / code.shape[1]


def _merged_cover(cover: Tensor, merge: tuple[int, int, int]) -> Tensor:
    """(R,n,T',h',w') shares of cells as (R,n,t,m) of merged cells, by slot of time."""
    return _merged_means(cover.movedim(1, -1), merge).movedim(-1, 1)


def _of_roles(cover: Tensor, guide: Guide, owner: Tensor) -> Tensor:
    """(Q,3,t,m) what the thing in each role covers, nothing for NO_THING."""
    own = cover[owner[:, None], guide.things.clamp(min=0)]
    return own * (guide.things != NO_THING)[..., None, None]


def _look_at_cells(looks: Looks, moments: list[_Moment], batch: TreeBatch, nobody: bool) -> Tensor:
    """Logarithm of the attention on a thing's cells, those it fills best counting in full."""
    missed, known = [], []
    for head, role, lag in _supervised(looks.cells.shape[1]):
        weight, seen = _wanted(moments[lag], role, looks.window, batch, nobody)
        missed.append(-(looks.cells[:, head] + weight.clamp(min=1e-6).log()).logsumexp(-1))
        known.append(seen)
    return _mean_where(torch.stack(missed, 1), torch.stack(known, 1))


def naming_loss(model: nn.Module, guides: Guides, batch: TreeBatch) -> Tensor:
    """The part "names" alone, of the prior alone."""
    geometry = batch.geometry
    cells = model.gsm.prior(geometry.prior, geometry.prior_grid, geometry.prior_times)
    cover = _merged_cover(batch.guide.cover, model.gsm.prior.merge)
    return _name_keys(model, guides, cells.keys, cells.visible, cover, batch.guide)[batch.owner].sum()


def _name_keys(model: nn.Module, guides: Guides, keys: Tensor, visible: Tensor, cover: Tensor, guide: Guide) -> Tensor:
    """(R,) mean cross-entropy of telling whose a key (R,M,d) is, for each clip."""
    embed = model.get_input_embeddings()
    said = guides.name(model.gsm.selector[0].attention_norm(keys))
    names = meaning(embed, guide.thing_words).detach()
    candidates = torch.cat([guides.nobody.to(names.dtype).expand(len(names), 1, -1), names], 1)
    real = functional.pad((guide.thing_words != NO_WORD).any(-1), (1, 0), value=True)
    scores = (said @ candidates.mT).float() / math.sqrt(said.shape[-1])
    scores = scores.masked_fill(~real[:, None], -math.inf)
    shares = cover.flatten(2)
    best, who = shares.max(1)
    place = torch.arange(best.shape[1], device=best.device)
    bare = (shares.sum(1) < BARE) & (place % BARE_TAKING_PART == 0) & visible
    whose = torch.where(best > COVERED, who + 1, 0)
    known = (best > COVERED) | bare
    missed = functional.cross_entropy(scores.flatten(0, 1), whose.flatten(), reduction="none").view_as(whose)
    return _means_where(missed, known)


def _hold_places(
    guides: Guides,
    thoughts: Tensor,
    moments: list[_Moment],
    batch: TreeBatch,
    cover: Tensor,
    merge: tuple[int, int, int],
) -> Tensor:
    """Squared error of where things are and how they move: the mean over the cells that they fill at each moment."""
    means = _merged_means(batch.prior[..., CELL_PLACE], merge)
    filled = cover * (cover > 0.5 * cover.amax(-1, keepdim=True))
    share = filled / filled.sum(-1, keepdim=True).clamp(min=1e-6)
    places = torch.einsum("rntm,rtmc->rntc", share, means)[batch.owner[:, None], batch.guide.things.clamp(min=0)]
    said = guides.place(thoughts).float().unflatten(-1, (LAGS, len(ROLES), PLACE_CHANNELS)).permute(2, 0, 3, 1, 4)
    weight = said.new_tensor(PLACE_WEIGHTS).repeat_interleave(3)
    missed, known = [], []
    for moment, told in zip(moments, said, strict=True):
        at = moment.at.clamp(min=0)[:, None, :, None].expand(*told.shape[:2], -1, told.shape[3])
        missed.append(((told - places.gather(2, at)) * weight).square().mean(-1))
        known.append(moment.known)
    return _mean_where(torch.stack(missed, 1), torch.stack(known, 1))


def _merged_means(cells: Tensor, merge: tuple[int, int, int]) -> Tensor:
    """(R,T',h',w',c) cells as (R,t,m,c) means of merged cells, by slot of time."""
    extra = [-size % step for size, step in zip(cells.shape[1:4], merge, strict=True)]
    padded = functional.pad(cells, (0, 0, 0, extra[2], 0, extra[1], 0, extra[0]))
    return functional.avg_pool3d(padded.movedim(-1, 1), merge, merge).flatten(3).movedim(1, -1)


def _say_states(model: nn.Module, tokens: Tensor, guide: Guide) -> Tensor:
    """Cross-entropy of telling which state a token says, and its squared distance from one that says just that.

    Cross-entropy alone is content with a token that leans towards the right state; the language model, which knows
    tokens that say one, would hardly understand it.
    """
    states, said = spoken(model.get_input_embeddings(), guide).detach().to(tokens.dtype), guide.states
    scores = (tokens @ states.T).float() / math.sqrt(tokens.shape[-1])
    missed = functional.cross_entropy(scores.flatten(0, 1), said.flatten(), ignore_index=UNKNOWN, reduction="none")
    missed = missed.view_as(said) + (tokens - states[said.clamp(min=0)]).float().square().mean(-1)
    # Most moments of most questions say nothing, which is soon learned.
    happens, silent = _mean_where(missed, said > NOTHING), _mean_where(missed, said == NOTHING)
    return HAPPENS * happens + (1 - HAPPENS) * silent
