"""The stages of a training, in order, and the learning rate at each of its steps.

reading    text only: the language model learns to find a stated answer among the options
naming     the prior's cells alone: they learn whose they are
grounding  the geometry module alone, without a language model
videos     questions about videos, everything together
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from models.parameters import TrainingParameters

FINDS_ALL = 0.7
"""Share of the grounding stage after which the geometry module finds the cells of all questions itself."""


@dataclass(frozen=True)
class Stage:
    """A run of steps that teach one thing; `first` counts from the beginning of the training."""

    name: str
    first: int
    steps: int

    @property
    def end(self) -> int:
        """The step after the last."""
        return self.first + self.steps


def stages_of(parameters: TrainingParameters) -> list[Stage]:
    """The stages that have steps."""
    found, first = [], 0
    for name, steps in (
        ("reading", parameters.reading_steps),
        ("naming", parameters.naming_steps),
        ("grounding", parameters.grounding_steps),
        ("videos", parameters.steps),
    ):
        if steps:
            found.append(Stage(name, first, steps))
        first += steps
    return found


def total_steps(parameters: TrainingParameters) -> int:
    """Steps of all stages."""
    return stages_of(parameters)[-1].end


def stage_at(step: int, parameters: TrainingParameters) -> Stage:
    """The stage that a step belongs to, counted from 0; the last one beyond the end."""
    stages = stages_of(parameters)
    return next((stage for stage in stages if step < stage.end), stages[-1])


def rate_factor(step: int, parameters: TrainingParameters, part: str = "language") -> float:
    """Share of a part's peak learning rate at a step: each stage rises for `warmup_share` and then decays."""
    stage = stage_at(step, parameters)
    place = step - stage.first
    videos = parameters.videos_geometry_rate if part == "geometry" else parameters.videos_rate
    peak = {"grounding": parameters.grounding_rate, "videos": videos}.get(stage.name, 1.0)
    rise = math.ceil(parameters.warmup_share * stage.steps)
    if place < rise:
        return peak * (place + 1) / (rise + 1)
    left = max(stage.steps - place, 0) / max(stage.steps - rise, 1)
    if parameters.decay == "constant":
        return peak
    return peak * (left if parameters.decay == "linear" else 0.5 - 0.5 * math.cos(math.pi * left))


def told_share(step: int, parameters: TrainingParameters) -> float:
    """Share of the questions whose cells the geometry module is shown at a step, instead of having to find them."""
    stage = stage_at(step, parameters)
    return max(1 - (step - stage.first) / (FINDS_ALL * stage.steps), 0.0) if stage.name == "grounding" else 0.0
