"""The Lightning module: loss, optimizer groups, learning-rate stages, curves."""

from __future__ import annotations

import math
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.nn import functional

from models.batch import NO_TARGET, TreeBatch
from models.geometric_qwen import GeometricQwen
from models.parameters import TrainingParameters

PARTS = ("language", "merger", "vision", "geometry")


class DivergedError(RuntimeError):
    """The loss is no longer a number."""


def part_of(name: str) -> str:
    """Which learning rate a parameter of `GeometricQwen` has, by its name."""
    if name.startswith("gsm."):
        return "geometry"
    if name.startswith("model.visual.merger."):
        return "merger"
    return "vision" if name.startswith("model.visual.") else "language"


def rate_factor(step: int, parameters: TrainingParameters) -> float:
    """Share of the peak learning rate at a step: each stage rises for `warmup_share` and then decays."""
    reading = step < parameters.reading_steps
    total = parameters.reading_steps if reading else parameters.steps
    place = step if reading else step - parameters.reading_steps
    rise = math.ceil(parameters.warmup_share * total)
    if place < rise:
        return (place + 1) / (rise + 1)
    left = max(total - place, 0) / max(total - rise, 1)
    if parameters.decay == "constant":
        return 1.0
    return left if parameters.decay == "linear" else 0.5 - 0.5 * math.cos(math.pi * left)


def tree_loss(model: GeometricQwen, batch: TreeBatch) -> tuple[Tensor, Tensor]:
    """The loss of a batch, and the logits (Q,vocabulary) at the ends of the prompts.

    Cross-entropy over the answers' tokens; in the reading stage that over the words of the prompts is added.
    """
    answers, words = batch.targets != NO_TARGET, batch.text_targets != NO_TARGET
    slots = answers | words
    logits = model.score(batch, slots).float()
    loss = functional.cross_entropy(logits[answers[slots]], batch.targets[answers])
    if words.any():
        loss = loss + functional.cross_entropy(logits[words[slots]], batch.text_targets[words])
    return loss, logits[batch.prompt_end[slots]]


class QuestionAnswering(lightning.LightningModule):
    """Learns to say the right option's letter."""

    def __init__(self, model: GeometricQwen, letters: list[int], parameters: TrainingParameters) -> None:
        super().__init__()
        self.model, self.letters, self.parameters_used = model, letters, parameters
        self.curves: list[dict[str, float | int | str]] = []
        self.questions_seen = {"reading": 0, "videos": 0}
        self._since: list[tuple[float, int, int]] = []
        rates = parameters.learning_rates
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(getattr(rates, part_of(name)) > 0)

    def training_step(self, batch: TreeBatch, batch_index: int) -> Tensor:
        """Loss of one batch.

        Raises:
            DivergedError: if it is not finite.
        """
        loss, logits = tree_loss(self.model, batch)
        if not torch.isfinite(loss):
            raise DivergedError(
                f"the loss is {loss.item()} at step {self.global_step + 1}: lower the learning rates, "
                "or look at the prior features for values out of all proportion"
            )
        truth = batch.targets[batch.prompt_end]
        letters = torch.tensor(self.letters, device=truth.device)
        right = int((letters[logits[:, letters].argmax(-1)] == truth).sum())
        self._note(float(loss.detach()), right, len(truth))
        return loss

    def _note(self, loss: float, right: int, asked: int) -> None:
        """Adds the step to the curves; every `log_every` steps a row is closed."""
        p, step = self.parameters_used, self.global_step + 1
        stage = "reading" if step <= p.reading_steps else "videos"
        self.questions_seen[stage] += asked
        self._since.append((loss, right, asked))
        if step % p.log_every and step not in (p.reading_steps, p.reading_steps + p.steps):
            return
        losses, rights, counts = zip(*self._since, strict=True)
        self._since = []
        row = {
            "step": step,
            "stage": stage,
            "loss": round(sum(losses) / len(losses), 6),
            "accuracy": round(sum(rights) / sum(counts), 6),
            "rate": round(rate_factor(step - 1, p), 6),
        }
        self.curves.append(row)
        if self.trainer.loggers:
            metrics = {f"{stage}/loss": row["loss"], f"{stage}/accuracy": row["accuracy"], "rate": row["rate"]}
            for logger in self.trainer.loggers:
                logger.log_metrics(metrics, step=step)

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW with a group for each part, weight decay on matrices only."""
        p = self.parameters_used
        groups = []
        for part in PARTS:
            rate = getattr(p.learning_rates, part)
            own = [q for name, q in self.model.named_parameters() if part_of(name) == part and rate > 0]
            for decay, members in (
                (p.weight_decay, [q for q in own if q.ndim > 1]),
                (0.0, [q for q in own if q.ndim <= 1]),
            ):
                if members:
                    groups.append({"params": members, "lr": rate, "weight_decay": decay})
        optimizer = torch.optim.AdamW(groups)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_factor(step, p))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Curves and counters travel with the weights, so that a resumed run reports as an unbroken one."""
        checkpoint["report"] = {
            "curves": self.curves,
            "questions_seen": self.questions_seen,
            "since": self._since,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The inverse of `on_save_checkpoint`."""
        report = checkpoint["report"]
        self.curves, self.questions_seen = report["curves"], report["questions_seen"]
        self._since = [tuple(entry) for entry in report["since"]]
