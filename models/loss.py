"""What each stage of a training minimises."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from models.batch import NO_TARGET, TreeBatch
from models.geometric_qwen import GeometricQwen
from models.grounding import Guides, blinkers_of, grounding_losses, naming_loss, option_losses
from models.parameters import GuidanceParameters, TrainingParameters


@dataclass(frozen=True)
class Totals:
    """What a step's loss is a mean over: everything in its micro-batches on all processes.

    Attributes:
        answers: tokens of answers.
        questions: questions.
    """

    answers: int
    questions: int


class Loss(NamedTuple):
    """One micro-batch's share in the loss of its step; the shares add up to it.

    A tuple, because FSDP2 looks for the tensors of an output in plain containers only.

    Attributes:
        total: scalar.
        parts: scalars to be shown beside it, under the same names in every batch of a stage.
        logits: (Q,vocabulary) at the ends of the prompts; None where no answer is said.
    """

    total: Tensor
    parts: dict[str, Tensor]
    logits: Tensor | None


def totals_of(batch: TreeBatch) -> Totals:
    """The counts of one batch alone."""
    return Totals(int((batch.targets != NO_TARGET).sum()), int(batch.prompt_end.sum()))


def stage_loss(
    model: GeometricQwen,
    batch: TreeBatch,
    stage: str,
    parameters: TrainingParameters,
    totals: Totals | None = None,
    guides: Guides | None = None,
    letters: Tensor | None = None,
    told: float = 0.0,
) -> Loss:
    """The loss of a batch in a stage.

    Args:
        model: what is trained.
        batch: questions on shared prefixes.
        stage: "reading", "naming", "grounding" or "videos".
        parameters: weights of the parts.
        totals: of the step that the batch is a part of; None takes the batch for the whole step.
        guides: what a guided training reads the model with; None leaves the guidance out.
        letters: (4,) ids of the option letters, for the guidance of options.
        told: share of the questions whose cells the geometry module is shown, in the stage of grounding.
    """
    totals, weights = totals or totals_of(batch), parameters.guidance
    guided = guides is not None and batch.guide is not None
    if stage == "naming":
        parts = _shares({"names": naming_loss(model, guides, batch)}, totals)
        return Loss(parts["names"], parts, None)
    if stage == "grounding":
        blinkers = blinkers_of(model, batch, told)
        selection = model.select(batch.geometry, with_looks=True, words_learn=False, blinkers=blinkers)
        parts = _shares(grounding_losses(model, guides, batch, selection), totals)
        return Loss(_weighted(parts, weights, 1.0), parts, None)
    grounds = guided and stage == "videos" and model.gsm is not None and weights.in_videos > 0
    reading = model.read(batch, with_looks=grounds)
    hidden = model.think(batch, reading)
    answers = batch.targets != NO_TARGET
    logits = model.lm_head(hidden[answers]).float()
    total = functional.cross_entropy(logits, batch.targets[answers], reduction="sum") / totals.answers
    parts = {}
    if guided and weights.options > 0:
        truth, said = batch.targets[batch.prompt_end], logits[batch.prompt_end[answers]]
        right = (truth[:, None] == letters).long().argmax(1)
        parts["options"] = option_losses(guides, hidden, batch, said[:, letters], right).sum() / totals.questions
        total = total + weights.options * parts["options"]
    if grounds:
        grounded = _shares(grounding_losses(model, guides, batch, reading.selection), totals)
        parts |= grounded
        total = total + _weighted(grounded, weights, weights.in_videos)
    return Loss(total, parts, logits[batch.prompt_end[answers]])


def _shares(sums: dict[str, Tensor], totals: Totals) -> dict[str, Tensor]:
    return {name: value / totals.questions for name, value in sums.items()}


def _weighted(parts: dict[str, Tensor], weights: GuidanceParameters, share: float) -> Tensor:
    return share * torch.stack([getattr(weights, name) * value for name, value in parts.items()]).sum()
