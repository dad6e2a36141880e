"""What the geometry module adds to a training step in time and memory, at the proportions of the 7B model."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.figure import Figure
from benchmarks.training.clock import Seconds, interleaved
from benchmarks.training.flops import update_flops
from benchmarks.training.steps import tree_loss
from benchmarks.training.workload import (
    SEVEN_B,
    Shape,
    configuration,
    model_of,
    packed,
    random_tree,
    without_geometry,
)
from models.geometric_qwen import GeometricQwen

EIGHTH = replace(
    SEVEN_B,
    hidden_size=448,
    intermediate_size=2368,
    vocabulary=19008,
    vision_width=160,
    vision_heads=4,
    vision_intermediate=428,
    grid=(8, 12, 22),
    prior_channels=1024,
    queries=4,
    prefix_tokens=2,
    text_tokens=25,
    wrapping_tokens=1,
)
"""All layers and heads of the 7B model, widths and numbers of tokens an eighth: linear layers, attention and the module
need 1/512 of the operations each, weights and activations 1/64 of the memory each, so their shares in a step are those
at full size. AdamW, whose work does not depend on tokens, has eight times its share there, which counts against the
module. The vision tower's heads are 4, since a head of 10 channels has no rotary positions."""

REPETITIONS = 5
RATE = 1e-5
GIGA = 1e9
STATES = 4
"""Numbers kept per trained weight: itself, its gradient, AdamW's two moments."""


def figures() -> dict[str, Figure]:
    """Cost with 5 questions on a shared prefix, and with the published recipe's one question per clip."""
    forms = {questions: operations(replace(SEVEN_B, questions=questions)) for questions in (SEVEN_B.questions, 1)}
    shared, single = (f"at full size {ratio:.3f} by operations" for ratio in forms.values())
    return {**of_form(EIGHTH, "", shared), **of_form(replace(EIGHTH, questions=1), "_single", single)}


def operations(shape: Shape) -> float:
    """The operations of a step with the module over those without it, counted without any weight in memory."""
    counts = []
    for side in (shape, without_geometry(shape)):
        with torch.device("meta"):
            model = GeometricQwen(configuration(side))
        model.model.visual.requires_grad_(False)
        model.model.visual.merger.requires_grad_(True)
        counts.append(update_flops(model, [random_tree(side, 0)], shared=True).total)
    return counts[0] / counts[1]


@dataclass
class Side:
    """A model with or without the module, and what trains it for one step."""

    model: GeometricQwen
    step: Callable[[], None]
    resident_bytes: int


def of_form(shape: Shape, suffix: str, note: str, repetitions: int = REPETITIONS) -> dict[str, Figure]:
    """Figures of one shape; their names end with `suffix`, and the one of time says `note`."""
    sides = {"with": _side(shape), "without": _side(without_geometry(shape))}
    seconds = interleaved({name: (side.model, side.step) for name, side in sides.items()}, repetitions)
    peaks = {name: peak_bytes(side.step) for name, side in sides.items()}
    form = f"{shape.questions} questions on a shared prefix" if shape.questions > 1 else "one question per clip"
    how = (
        f"{form}, features cached; widths and tokens of Qwen2.5-VL-7B with the published module over 8, all "
        f"{shape.layers} layers ({shape.vision_tokens} vision tokens, {shape.queries} queries)"
    )
    return {
        f"gsm_step_cost{suffix}": _time(seconds["with"], seconds["without"], f"{note}; {how}", repetitions),
        **_memory(suffix, sides, peaks, how),
    }


def _side(shape: Shape) -> Side:
    gc.collect()
    model = model_of(shape)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE)
    batch = packed(model, [random_tree(shape, 0)])

    def step() -> None:
        tree_loss(model, batch).backward()
        optimizer.step()
        # Gradients stay allocated, so that the peak of a step is that of what comes and goes.
        optimizer.zero_grad(set_to_none=False)

    count = sum(weight.numel() for weight in trained)
    frozen = sum(weight.numel() for weight in model.parameters()) - count
    return Side(model, step, 4 * (STATES * count + frozen))


def _time(with_module: Seconds, without: Seconds, how: str, repetitions: int) -> Figure:
    language = with_module.without_vision / without.without_vision
    measured = (
        f"{with_module.whole:.2f} s over {without.whole:.2f} s, forward, backward and AdamW, frozen vision tower "
        f"included ({language:.3f} without it), medians of {repetitions} interleaved, {torch.get_num_threads()} "
        "CPU threads, float32"
    )
    return Figure(with_module.whole / without.whole, 1.06, "lower", "ratio", f"{measured}; {how}")


def _memory(suffix: str, sides: dict[str, Side], peaks: dict[str, int], how: str) -> dict[str, Figure]:
    at_most = {name: peaks[name] + side.resident_bytes for name, side in sides.items()}
    passing = (
        f"peak of what a step allocates and frees again, {peaks['with'] / GIGA:.3f} over {peaks['without'] / GIGA:.3f} "
        f"GB, no gradient checkpointing, weights with their gradients and AdamW's moments apart ({module_size()})"
    )
    whole = f"the same with weights, gradients and AdamW's moments, {at_most['with'] / GIGA:.2f} GB, float32"
    return {
        f"gsm_memory_cost{suffix}": Figure(
            peaks["with"] / peaks["without"], 1.06, "lower", "ratio", f"{passing}; {how}"
        ),
        f"gsm_memory_cost_with_weights{suffix}": Figure(
            at_most["with"] / at_most["without"], None, "lower", "ratio", f"{whole}; {how}"
        ),
    }


def module_size() -> str:
    """What the module adds to the weights of the 7B model, counted at full size without allocating them."""
    with torch.device("meta"):
        model = GeometricQwen(configuration(SEVEN_B))
    added = sum(weight.numel() for weight in model.gsm.parameters())
    others = sum(weight.numel() for weight in model.parameters()) - added
    size = 4 * STATES * added / GIGA
    return f"at 7B the module's {added / GIGA:.2f} on {others / GIGA:.2f} billion, {size:.1f} GB of them in float32"


def peak_bytes(step: Callable[[], None]) -> int:
    """The most that a step holds at once of what it allocates itself, as torch's allocator reports it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step()
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
