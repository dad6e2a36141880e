"""What a training leaves on disk: the state that it resumes from, the best weights, and the finished model folder.

Everything is written under another name first and then renamed, so whatever bears its name is whole.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.lora import merged, save_adapter
from models.module import QuestionAnswering
from models.parameters import ParameterError

if TYPE_CHECKING:
    from peft import PeftModel

STATE = "last.ckpt"
# Lightning's name for what is neither weights nor optimizer in a state that several processes wrote.
SHARED = "meta.pt"
CURVES = ("step", "stage", "loss", "accuracy", "rate")


def step_is_over(trainer: lightning.Trainer, batch_index: int) -> bool:
    """Whether the micro-batch was the last of its step, so that the weights have moved."""
    return (batch_index + 1) % trainer.accumulate_grad_batches == 0


class ResumableState(Callback):
    """Keeps the state to resume from: every few steps, and when SIGTERM asks for an end."""

    def __init__(self, work: Path, every: int, identity: str) -> None:
        self.work, self.every, self.identity = work, every, identity

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: QuestionAnswering, outputs: Any, batch: Any, batch_index: int
    ) -> None:
        """Save where it is time to.

        Raises:
            SIGTERMException: on all processes, if one of them was asked to end.
        """
        if not step_is_over(trainer, batch_index):
            return
        asked_to_end = trainer.strategy.reduce_boolean_decision(trainer.received_sigterm, all=False)
        if not asked_to_end and trainer.global_step % self.every:
            return
        path = self.work / STATE
        partial = path.with_suffix(".partial")
        trainer.save_checkpoint(partial)
        if trainer.is_global_zero:
            replace(partial, path)
            forget_best(self.work, module.best and module.best[1])
        trainer.strategy.barrier()
        if asked_to_end and trainer.global_step < trainer.max_steps:
            raise SIGTERMException

    def on_save_checkpoint(self, trainer: Any, module: Any, checkpoint: dict[str, Any]) -> None:
        """Says what the state belongs to."""
        checkpoint["identity"] = self.identity


def forget_state(work: Path) -> None:
    """Delete the state of a training that has finished."""
    for path in (work / STATE, work / f".{STATE}.old"):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def replace(partial: Path, path: Path) -> None:
    """Put a file or folder in the place of another; a folder is only ever missing, never half there."""
    old = path.with_name(f".{path.name}.old")
    if path.is_dir():
        os.replace(path, old)
    os.replace(partial, path)
    shutil.rmtree(old, ignore_errors=True)


def resumable(work: Path, identity: str) -> Path | None:
    """The saved state, if it belongs to the same run; another run's is left to be overwritten.

    Raises:
        ParameterError: if the state cannot be read.
    """
    path, old = work / STATE, work / f".{STATE}.old"
    if not path.exists() and old.is_dir():
        path = old
    if not path.exists():
        return None
    try:
        state = torch.load(path / SHARED if path.is_dir() else path, weights_only=True, map_location="cpu")
    except Exception as error:  # damaged bytes lead the unpickler into any of a dozen exceptions
        raise ParameterError(f"{path}: cannot be read ({type(error).__name__}): delete it to start over") from error
    say = rank_zero_only(print)
    if state.get("identity") == identity:
        say(f"resuming at step {state['global_step']}", flush=True)
        return path
    say("starting over: the saved state belongs to other parameters, data or code", flush=True)
    return None


def trained_weights(module: QuestionAnswering) -> dict[str, Tensor]:
    """What the training changes, whole and on the CPU. With shards all processes have to take part."""
    weights = {}
    if module.sharded:
        # After a forward without a backward, as an evaluation is, the outermost weights are still gathered.
        module.call.reshard()
    for name, parameter in module.model.named_parameters():
        if parameter.requires_grad:
            value = parameter.detach()
            whole = value.full_tensor() if module.sharded else value
            weights[name] = whole.cpu().contiguous()
    return weights


def best_path(work: Path, step: int) -> Path:
    """Where the best weights lie that step `step` left."""
    return work / f"best-{step:08d}.safetensors"


def keep_best(work: Path, weights: dict[str, Tensor], step: int) -> None:
    """Write the best weights. Older ones stay until a state that knows of the new ones has been saved."""
    partial = work / "best.partial"
    save_file(weights, partial)
    os.replace(partial, best_path(work, step))


def forget_best(work: Path, but: int | None = None) -> None:
    """Delete best weights, except those of one step."""
    for path in work.glob("best-*.safetensors"):
        if but is None or path != best_path(work, but):
            path.unlink()


def published_weights(module: QuestionAnswering, work: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights that `keep` asks for, and what training.json says of the choice; the last ones stay in `work`."""
    last = trained_weights(module)
    kept = {"which": "last", "step": module.trainer.global_step}
    if module.best is not None:
        accuracy, step = module.best
        kept = {**kept, "best_step": step, "best_accuracy": round(accuracy, 6)}
        if module.trainer.is_global_zero:
            partial = work / "last.partial"
            save_file(last, partial)
            os.replace(partial, work / "last.safetensors")
        if module.parameters_used.keep == "best":
            return load_file(best_path(work, step)), {**kept, "which": "best", "step": step}
    return last, kept


def write_checkpoint(
    out: Path,
    model: torch.nn.Module,
    view: PeftModel | None,
    weights: dict[str, Tensor],
    tokenizer: Any,
    curves: Sequence[dict[str, Any]],
    report: dict[str, Any],
) -> None:
    """Write the finished model folder beside `out` and move it into place.

    Args:
        out: made, or replaced.
        model: as it was trained, unsharded.
        view: peft's of the same model, whose adapters are written beside the model that they are merged into.
        weights: laid over the model's.
        tokenizer: of transformers.
        curves: rows of curves.csv.
        report: contents of training.json.
    """
    model.load_state_dict(weights, strict=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial, old = out.with_name(f".{out.name}.partial"), out.with_name(f".{out.name}.old")
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    if view is not None:
        save_adapter(view, partial)
        model = merged(view)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    parts = sorted({name for row in curves for name in row} - {*CURVES, "validation"})
    with (partial / "curves.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*CURVES, "validation", *parts], lineterminator="\n")
        writer.writeheader()
        writer.writerows(curves)
    (partial / "training.json").write_text(json.dumps(report, indent=1, sort_keys=True) + "\n")
    if out.exists():
        os.replace(out, old)
    os.replace(partial, out)
    shutil.rmtree(old, ignore_errors=True)
