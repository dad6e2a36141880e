"""What sharing a clip's encoding among its questions changes: nothing in loss and gradients, much in time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from benchmarks.figure import Figure
from benchmarks.training.clock import interleaved
from benchmarks.training.steps import optimizer_of, plain_losses, shared_losses, tree_loss, update
from benchmarks.training.workload import SEVEN_B, Shape, model_of, packed, random_branch, random_tree
from models.attention import FLOAT32
from models.batch import Tree
from models.geometric_qwen import GeometricQwen

SMALL = Shape(
    hidden_size=64,
    layers=3,
    heads=4,
    key_value_heads=2,
    intermediate_size=96,
    vocabulary=128,
    vision_depth=2,
    vision_width=32,
    vision_heads=2,
    vision_intermediate=48,
    full_attention=(1,),
    grid=(3, 4, 6),
    prior_channels=6,
    queries=5,
    prefix_tokens=6,
    text_tokens=12,
    wrapping_tokens=2,
    questions=3,
)
"""For equality: small enough for every weight's gradient to be compared in moments."""

QUARTER = replace(
    SEVEN_B,
    hidden_size=896,
    layers=2,
    heads=7,
    key_value_heads=1,
    intermediate_size=4736,
    vocabulary=2048,
    vision_depth=2,
    vision_width=320,
    vision_heads=4,
    vision_intermediate=855,
    full_attention=(),
    prior_channels=2048,
)
"""For time: a quarter of the published widths, 2 of 28 decoder and 2 of 32 vision layers, the paper's lengths."""

MANY_SHORT = replace(
    SMALL,
    hidden_size=128,
    layers=4,
    heads=4,
    key_value_heads=4,
    intermediate_size=256,
    vocabulary=1024,
    grid=(2, 4, 4),
    queries=16,
    text_tokens=90,
    wrapping_tokens=10,
    questions=16,
)
"""The laptop profile's: many questions on a prefix that is shorter than one of them."""

SEEDS = (0, 1, 2)
REPETITIONS = 3


def figures() -> dict[str, Figure]:
    """Equality of the two forms, and what the shared one saves."""
    return {**equality(), **speedup(), **attention()}


def equality() -> dict[str, Figure]:
    """The largest differences between the two forms, with and without gradient checkpointing."""
    differences = [differing(seed, checkpointing) for seed in SEEDS for checkpointing in (False, True)]
    loss, gradient = (max(values) for values in zip(*differences, strict=True))
    how = (
        "shared prefix against transformers' forward of each question alone, float32, 4 clips with 1, 3, 5 and 2 "
        f"questions (one without video) in a batch, with and without gradient checkpointing, {len(SEEDS)} seeds"
    )
    most = "largest |g-g'| of a weight over its largest |g'|; all weights"
    return {
        "prefix_loss_difference": Figure(loss, 1e-5, "lower", "ratio", how),
        "prefix_gradient_difference": Figure(gradient, 1e-4, "lower", "ratio", f"{most}; {how}"),
    }


def differing(seed: int, checkpointing: bool) -> tuple[float, float]:
    """Relative differences of the loss and of the gradients between the two forms of one mixed batch.

    Raises:
        RuntimeError: if no gradient reaches a weight in one of the forms.
    """
    model = model_of(SMALL, seed=seed).requires_grad_(True)
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    trees = mixed_trees(seed)
    shared_loss, shared = _differentiated(model, [partial(tree_loss, model, packed(model, trees))])
    plain_loss, alone = _differentiated(model, plain_losses(model, trees))
    for name, _ in model.named_parameters():
        if not all(name in gradients and gradients[name].abs().max() > 0 for gradients in (shared, alone)):
            raise RuntimeError(f"no gradient reaches {name}: the comparison would not cover it")
    gradient = max(float((shared[name] - alone[name]).abs().max() / alone[name].abs().max()) for name in alone)
    return abs(shared_loss - plain_loss) / plain_loss, gradient


def mixed_trees(seed: int) -> list[Tree]:
    """Clips of several sizes with 1, 3, 5 and 2 questions of several lengths, the last without video and geometry."""
    rng = np.random.default_rng(seed)
    trees = []
    for place, questions in enumerate((1, 3, 5, 2)):
        shape = replace(SMALL, grid=(2 + place, 4, 4 + 2 * (place % 2)))
        lengths = rng.integers((8, 1), (30, 5), (questions, 2)).tolist()
        branches = [random_branch(rng, shape, length, answer) for length, answer in lengths]
        trees.append(replace(random_tree(shape, seed + place), branches=branches))
    trees[-1] = replace(trees[-1], video=None, prior=None)
    return trees


def _differentiated(model: GeometricQwen, losses: Sequence[Callable[[], Tensor]]) -> tuple[float, dict[str, Tensor]]:
    model.zero_grad(set_to_none=True)
    total = 0.0
    for share in losses:
        loss = share()
        loss.backward()
        total += float(loss.detach())
    return total, {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def speedup(shape: Shape = QUARTER, repetitions: int = REPETITIONS) -> dict[str, Figure]:
    """Questions per second of the shared form over those of the plain form."""
    model, trees = model_of(shape), [random_tree(shape, 0)]
    optimizer = optimizer_of(model)
    forms = {
        "shared": (model, partial(update, shared_losses(model, trees), optimizer)),
        "plain": (model, partial(update, plain_losses(model, trees), optimizer)),
    }
    seconds = interleaved(forms, repetitions)
    shared, alone = seconds["shared"], seconds["plain"]
    how = (
        f"{shape.questions} questions on a clip, {shape.vision_tokens} vision tokens, {shape.queries} geometry and "
        f"{shape.text_tokens} text tokens a question; forward, backward and an AdamW step for each clip, float32, "
        f"width {shape.hidden_size}, {shape.layers} layers, vision tower frozen, {torch.get_num_threads()} CPU "
        f"threads, medians of {repetitions} interleaved"
    )
    whole = f"{alone.whole:.1f} s a clip with one question per sequence over {shared.whole:.1f} s shared; {how}"
    language = f"the same steps without the vision tower's {alone.vision_alone:.1f} and {shared.vision_alone:.1f} s"
    return {
        "shared_prefix_training_speedup": Figure(alone.whole / shared.whole, 3, "higher", "ratio", whole),
        "shared_prefix_language_speedup": Figure(
            alone.without_vision / shared.without_vision, None, "higher", "ratio", language
        ),
    }


def attention(shape: Shape = MANY_SHORT, repetitions: int = REPETITIONS) -> dict[str, Figure]:
    """Steps a second with attention that goes branch by branch over those with a mask over whole rows."""
    forms = {}
    for kind in ("sdpa", FLOAT32):
        model = model_of(shape)
        model.attend_with(kind)
        forms[kind] = (model, partial(update, shared_losses(model, [random_tree(shape, 0)]), optimizer_of(model)))
    seconds = interleaved(forms, repetitions)
    masked, branches = seconds["sdpa"].whole, seconds[FLOAT32].whole
    how = (
        f"{masked:.2f} s a step with a mask over the row, {branches:.2f} s branch by branch; {shape.questions} "
        f"questions of {shape.text_tokens} text and {shape.queries} geometry tokens, {shape.vision_tokens} vision "
        f"tokens, float32, width {shape.hidden_size}, {shape.layers} layers, {torch.get_num_threads()} CPU threads, "
        f"medians of {repetitions} interleaved"
    )
    return {"branch_attention_speedup": Figure(masked / branches, None, "higher", "ratio", how)}
