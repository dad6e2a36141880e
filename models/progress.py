"""What a running training says of itself."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback

from models.checkpoints import step_is_over
from models.module import QuestionAnswering
from models.stages import stage_at

PROGRESS_SECONDS = 3.0
Progress = Callable[[int, int, str], None]


def print_progress(done: int, total: int, what: str) -> None:
    """Progress as a plain line that is seen at once, also through a pipe."""
    print(f"step {done}/{total} · {what}", flush=True)


def memory_gb(device: torch.device) -> float:
    """Most memory held so far in 10⁹ bytes: on a GPU what torch has allocated, else what the process has."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    # Linux counts in units of 1024 bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


class ProgressLines(Callback):
    """A line every few seconds, readable on a terminal and in a log; the first process speaks for all."""

    def __init__(self, progress: Progress) -> None:
        self.progress, self.spoken = progress, 0.0

    def on_train_start(self, trainer: lightning.Trainer, module: QuestionAnswering) -> None:
        """Starts the clocks."""
        self.first_step, self.started = trainer.global_step, time.monotonic()
        self.first_seen = sum(module.questions_seen.values())

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: QuestionAnswering, outputs: Any, batch: Any, batch_index: int
    ) -> None:
        """Speaks if it has been silent long enough."""
        now, step, total = time.monotonic(), trainer.global_step, trainer.max_steps
        if not trainer.is_global_zero or not step_is_over(trainer, batch_index):
            return
        if now - self.spoken < PROGRESS_SECONDS and step < total:
            return
        self.spoken = now
        self.progress(step, total, self.line(module, step, total, now - self.started))

    def line(self, module: QuestionAnswering, step: int, total: int, seconds: float) -> str:
        """Stage, what was learned, throughput, memory and time left."""
        words = [stage_at(step - 1, module.parameters_used).name]
        if module.curves:
            row = module.curves[-1]
            words += [
                f"{name} {row[name]:.{digits}f}" for name, digits in (("loss", 3), ("accuracy", 2)) if name in row
            ]
        asked = sum(module.questions_seen.values()) - self.first_seen
        # The first process's tokens, as if all had as many.
        tokens = module.slots_seen * module.parameters_used.processes
        words += [f"{asked / seconds:.0f} questions/s", f"{tokens / seconds:.0f} tokens/s"]
        words.append(f"{memory_gb(module.device):.1f} GB")
        left = int((total - step) * seconds / max(step - self.first_step, 1))
        words.append(
            f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d} left"
            if left >= 3600
            else f"{left // 60:02d}:{left % 60:02d} left"
        )
        return " · ".join(words)
