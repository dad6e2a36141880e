"""The Lightning module: loss, optimizer groups, curves, and how the model is spread over devices."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor, nn

from models.attachment import GEOMETRY_PARTS
from models.batching import MicroBatch
from models.geometric_qwen import GeometricQwen
from models.grounding import Guides
from models.lora import MARK
from models.loss import stage_loss
from models.parameters import TrainingParameters
from models.stages import rate_factor, stage_at, told_share, total_steps

PARTS = ("language", "merger", "vision", "geometry")
MERGERS = ("model.visual.merger.", "model.visual.deepstack_merger_list.")
# Of the sums over a step, those that make the accuracy.
COUNTS = ("right", "asked")
# Apart from the numbers that order the questions (see models.batching.SEEDS).
DROPOUT_SEED = 5


class DivergedError(RuntimeError):
    """The loss is no longer a number."""


def part_of(name: str) -> str:
    """Which learning rate a parameter of `GeometricQwen` has, by its name."""
    if name.startswith(GEOMETRY_PARTS):
        return "geometry"
    if name.startswith(MERGERS):
        return "merger"
    return "vision" if name.startswith("model.visual.") else "language"


class ModelCall(nn.Module):
    """The one door to the model: calls a function of it inside its own `forward`.

    What wraps a model, FSDP2 above all, acts when `forward` is called; through this door any function will do.
    """

    def __init__(self, model: GeometricQwen) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable, *arguments: Any) -> Any:
        """`function(model, *arguments)`."""
        return function(self.model, *arguments)


class QuestionAnswering(lightning.LightningModule):
    """Learns to say the right option's letter.

    Attributes:
        curves: rows of the learning curves.
        questions_seen: by stage, over all processes.
        slots_seen: without padding, of this process and since it was started.
        best: accuracy on validation and step of the best weights so far, or None.
    """

    # The resumable state holds what is trained; the rest comes from where it came from the first time.
    strict_loading = False

    def __init__(self, model: GeometricQwen, letters: list[int], parameters: TrainingParameters) -> None:
        super().__init__()
        self.call, self.letters, self.parameters_used = ModelCall(model), letters, parameters
        self.curves: list[dict[str, float | int | str]] = []
        self.questions_seen = {"reading": 0, "naming": 0, "grounding": 0, "videos": 0}
        self.slots_seen = 0
        self.best: tuple[float, int] | None = None
        # What guides the training goes with it and not into the checkpoint.
        self.guides = Guides(model.config.text_config.hidden_size) if parameters.guidance.given else None
        self._step_sums: dict[str, float] = {}
        self._since: list[dict[str, float]] = []
        choose_trained(model, parameters)

    @property
    def model(self) -> GeometricQwen:
        """What is trained."""
        return self.call.model

    @property
    def sharded(self) -> bool:
        """Whether each process holds a part of every weight."""
        return self.parameters_used.strategy == "fsdp"

    def configure_model(self) -> None:
        """Shards the model where it is to be: decoder layers and vision blocks one by one, then the rest."""
        if not self.sharded or getattr(self, "_is_sharded", False):
            return
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        half = torch.bfloat16 if self.parameters_used.precision == "bf16-mixed" else None
        policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32 if half else None)
        mesh = self.device_mesh["data_parallel"]
        for block in (*self.model.model.language_model.layers, *self.model.model.visual.blocks):
            fully_shard(block, mesh=mesh, mp_policy=policy)
        fully_shard(self.call, mesh=mesh, mp_policy=policy)
        self._is_sharded = True

    def training_step(self, batch: MicroBatch, batch_index: int) -> Tensor:
        """Loss of one micro-batch, scaled so that its mean over all parts of the step is the step's loss."""
        torch.manual_seed(self._seed(batch))
        letters = torch.tensor(self.letters, device=self.device)
        guided = (self.guides, letters, told_share(batch.step, self.parameters_used))
        loss = self.call(stage_loss, batch.trees, batch.stage, self.parameters_used, batch.totals, *guided)
        self.slots_seen += batch.slots
        sums = {"loss": float(loss.total.detach()), "right": 0.0, **{k: float(v) for k, v in loss.parts.items()}}
        if loss.logits is not None:
            truth = batch.trees.targets[batch.trees.prompt_end]
            sums["right"] = float((letters[loss.logits[:, letters].argmax(-1)] == truth).sum())
        for name, value in sums.items():
            self._step_sums[name] = self._step_sums.get(name, 0.0) + value
        self._asked = batch.totals.questions
        return loss.total * self.parameters_used.parts

    def _seed(self, batch: MicroBatch) -> int:
        """Random numbers depend on the place in the training alone, so a resumed one draws the same."""
        place = [self.parameters_used.seed, DROPOUT_SEED, batch.step, batch.part]
        return int(np.random.SeedSequence(place).generate_state(1)[0])

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Adds the parts of the step up, and stops before its gradients reach the weights if they are no numbers.

        Raises:
            DivergedError: on all processes alike.
        """
        names = sorted(self._step_sums)
        mine = torch.tensor([self._step_sums[name] for name in names], dtype=torch.float32, device=self.device)
        sums = dict(zip(names, self.trainer.strategy.reduce(mine, reduce_op="sum").tolist(), strict=True))
        self._step_sums = {}
        if not np.isfinite(sums["loss"]):
            raise DivergedError(
                f"the loss is {sums['loss']} at step {self.global_step + 1}: lower the learning rates, "
                "or look at the prior features for values out of all proportion"
            )
        self._note({**sums, "asked": self._asked})

    def _note(self, sums: dict[str, float]) -> None:
        """Adds the step to the curves; every `log_every` steps, and where a stage ends, a row is closed."""
        p, step = self.parameters_used, self.global_step + 1
        stage = stage_at(step - 1, p)
        self.questions_seen[stage.name] += int(sums["asked"])
        self._since.append(sums)
        if step % p.log_every and step != stage.end and not self.evaluates(step):
            return
        since, self._since = self._since, []
        means = {name: sum(entry[name] for entry in since) / len(since) for name in sums if name not in COUNTS}
        right, asked = (sum(entry[name] for entry in since) for name in COUNTS)
        learned = {**means, "accuracy": right / asked} if stage.name in ("reading", "videos") else means
        rounded = {name: round(value, 6) for name, value in learned.items()}
        self.curves.append({"step": step, "stage": stage.name, **rounded, "rate": round(rate_factor(step - 1, p), 6)})
        metrics = {f"{stage.name}/{name}": value for name, value in rounded.items()}
        self.log_everywhere({**metrics, "rate": self.curves[-1]["rate"]}, step)

    def log_everywhere(self, metrics: dict[str, float], step: int) -> None:
        """Metrics to the loggers that are open."""
        for logger in self.trainer.loggers:
            logger.log_metrics(metrics, step=step)

    def evaluates(self, step: int) -> bool:
        """Whether the validation questions are asked after a step, counted from 1: every so often, and at the end."""
        p = self.parameters_used
        stage = stage_at(step - 1, p)
        if not p.evaluate_every or stage.name != "videos":
            return False
        return (step - stage.first) % p.evaluate_every == 0 or step == total_steps(p)

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW with a group for each part, weight decay on matrices only."""
        p = self.parameters_used
        groups, rates = [], []
        for part in PARTS:
            own = [q for name, q in self.model.named_parameters() if part_of(name) == part and q.requires_grad]
            if part == "geometry" and self.guides is not None:
                own += self.guides.parameters()
            for decay, members in (
                (p.weight_decay, [q for q in own if q.ndim > 1]),
                (0.0, [q for q in own if q.ndim <= 1]),
            ):
                if members:
                    groups.append({"params": members, "lr": getattr(p.learning_rates, part), "weight_decay": decay})
                    rates.append(partial(rate_factor, parameters=p, part=part))
        optimizer = torch.optim.AdamW(groups)
        if self.sharded:
            begin_moments(optimizer)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rates)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Curves and counters travel with the weights, so that a resumed run reports as an unbroken one."""
        checkpoint["report"] = {
            "curves": self.curves,
            "questions_seen": self.questions_seen,
            "since": self._since,
            "best": self.best,
        }
        if not self.sharded:
            trained = {f"call.model.{name}" for name, q in self.model.named_parameters() if q.requires_grad}
            trained |= {name for name in checkpoint["state_dict"] if name.startswith("guides.")}
            checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trained}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The inverse of `on_save_checkpoint`."""
        report = checkpoint["report"]
        self.curves, self.questions_seen = report["curves"], report["questions_seen"]
        self._since, self.best = report["since"], report["best"] and tuple(report["best"])


def begin_moments(optimizer: torch.optim.Optimizer) -> None:
    """Give every weight the zeros that AdamW would give it at its first gradient.

    A state in shards can only be read back if it holds the moments of all weights, also of those that a stage leaves
    out.
    """
    for group in optimizer.param_groups:
        for weight in group["params"]:
            moments = {name: torch.zeros_like(weight) for name in ("exp_avg", "exp_avg_sq")}
            optimizer.state[weight] = {"step": torch.tensor(0.0), **moments}


def choose_trained(model: GeometricQwen, parameters: TrainingParameters) -> None:
    """Freeze what has no learning rate, and beside adapters the language model itself.

    With bf16-true every weight becomes bfloat16; beside adapters in mixed precision the frozen ones do, as
    published weights are.
    """
    rates, lora = parameters.learning_rates, parameters.lora.rank > 0
    for name, parameter in model.named_parameters():
        part = part_of(name)
        adapts = not lora or part != "language" or MARK in name
        parameter.requires_grad_(getattr(rates, part) > 0 and adapts)
        mixed = parameters.precision == "bf16-mixed" and lora and not parameter.requires_grad
        if parameters.precision == "bf16-true" or mixed:
            parameter.data = parameter.data.to(torch.bfloat16)
