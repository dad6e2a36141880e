"""Time of training steps on the CPU, whole and without the vision tower."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from models.geometric_qwen import GeometricQwen


@dataclass
class Seconds:
    """Time of each repetition, s: of the whole step, and of the vision tower's forward passes within it."""

    step: list[float] = field(default_factory=list)
    vision: list[float] = field(default_factory=list)

    @property
    def whole(self) -> float:
        """Median of the whole step."""
        return statistics.median(self.step)

    @property
    def vision_alone(self) -> float:
        """Median of the vision tower's share."""
        return statistics.median(self.vision)

    @property
    def without_vision(self) -> float:
        """Median of what is left of the step without the vision tower."""
        return statistics.median(step - vision for step, vision in zip(self.step, self.vision, strict=True))


def interleaved(forms: Mapping[str, tuple[GeometricQwen, Callable[[], None]]], repetitions: int) -> dict[str, Seconds]:
    """Time steps in turn, so that a machine that slows down or speeds up does so for all of them.

    Args:
        forms: for each name a model and what trains it for one step.
        repetitions: of each.
    """
    seconds = {name: Seconds() for name in forms}
    for _ in range(repetitions):
        for name, (model, step) in forms.items():
            with _vision_clock(model) as vision:
                started = time.perf_counter()
                step()
                seconds[name].step.append(time.perf_counter() - started)
            seconds[name].vision.append(sum(vision))
    return seconds


@contextmanager
def _vision_clock(model: GeometricQwen) -> Iterator[list[float]]:
    """A list that grows by the seconds of each pass through the vision tower."""
    spent, started = [], []
    tower = model.model.visual
    hooks = [
        tower.register_forward_pre_hook(lambda *_: started.append(time.perf_counter())),
        tower.register_forward_hook(lambda *_: spent.append(time.perf_counter() - started.pop())),
    ]
    try:
        yield spent
    finally:
        for hook in hooks:
            hook.remove()
