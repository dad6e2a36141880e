"""What asking a clip's questions on one encoding saves, beside a sequence for each and a generate call for each.

All three ways use the same model, weights and questions and have to give the same predictions.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.figure import Figure
from benchmarks.training.clock import interleaved
from benchmarks.training.workload import (
    SEVEN_B,
    TOKENS_PER_SECOND,
    Shape,
    model_of,
    packed,
    random_branch,
    random_tree,
)
from models.answering import SharedPrefix
from models.batch import VIDEO_TYPE, Tree
from models.geometric_qwen import GeometricQwen

EIGHTH = replace(
    SEVEN_B,
    hidden_size=448,
    layers=4,
    heads=7,
    key_value_heads=1,
    intermediate_size=2368,
    vocabulary=2048,
    vision_depth=2,
    vision_width=160,
    vision_heads=4,
    vision_intermediate=428,
    full_attention=(),
    prior_channels=1024,
)
"""An eighth of the published widths, 4 of 28 decoder and 2 of 32 vision layers, the paper's lengths."""

REPETITIONS = 3
BENCH = {2: 0.4, 3: 0.6}
"""Questions on a clip and how many clips have so many: 2.6 on average, as in DSR-Bench."""
# A letter and the end of the turn.
SPOKEN_TOKENS = 2


def figures(shape: Shape = EIGHTH, repetitions: int = REPETITIONS) -> dict[str, Figure]:
    """`shared_prefix_speedup` at the shape's questions per clip, `shared_prefix_speedup_bench` at those of the bench.

    Raises:
        RuntimeError: the three ways do not give the same predictions.
    """
    model = model_of(shape).eval()
    tree = asked_tree(shape, seed=0)
    alone = [replace(tree, branches=[branch]) for branch in tree.branches]
    worst = _same_predictions(model, tree, alone)
    forms = {
        "plain": (model, partial(_each, plain_logits, model, alone)),
        "spoken": (model, partial(_each, spoken_tokens, model, alone)),
    }
    for count in sorted({shape.questions, *BENCH}):
        some = replace(tree, branches=tree.branches[:count])
        forms[f"shared {count}"] = (model, partial(shared_logits, model, some))
    seconds = {name: found.whole for name, found in interleaved(forms, repetitions).items()}
    how = (
        f"{shape.vision_tokens} vision, {shape.queries} geometry and {shape.text_tokens} text tokens a question, from "
        f"pixels and cached features to the answer's first token, float32, width {shape.hidden_size}, {shape.layers} "
        f"layers, {torch.get_num_threads()} CPU threads, medians of {repetitions} interleaved; same predictions, "
        f"logits within {worst:.1e} of the largest"
    )
    one, said = (seconds[name] / shape.questions for name in ("plain", "spoken"))
    bench = {count: share for count, share in BENCH.items() if count <= shape.questions}
    clip = sum(share * seconds[f"shared {count}"] for count, share in bench.items())
    mean = sum(count * share for count, share in bench.items())
    return {
        "shared_prefix_speedup": _figure(shape.questions, seconds[f"shared {shape.questions}"], one, said, 3, how),
        "shared_prefix_speedup_bench": _figure(mean, clip, one, said, 2, how),
    }


def _figure(questions: float, shared: float, one: float, said: float, bound: float, how: str) -> Figure:
    """A figure for a clip with so many questions, of which each takes `one` and `said` seconds by itself."""
    told = (
        f"{questions:g} questions on a clip: {shared:.2f} s on one encoding, {questions * one:.2f} s with one sequence "
        f"per question, {questions * said:.2f} s with one generate call of {SPOKEN_TOKENS} tokens per question "
        f"(VLMEvalKit's way, {questions * said / shared:.2f} times); {how}"
    )
    return Figure(questions * one / shared, bound, "higher", "ratio", told)


def asked_tree(shape: Shape, seed: int) -> Tree:
    """A clip with its questions and no answers."""
    rng = np.random.default_rng(seed)
    branches = [random_branch(rng, shape, shape.text_tokens, 0) for _ in range(shape.questions)]
    return replace(random_tree(shape, seed), branches=branches)


@torch.no_grad()
def shared_logits(model: GeometricQwen, tree: Tree) -> Tensor:
    """(n,vocabulary) next-token logits of all questions, on one encoding."""
    return SharedPrefix(model, packed(model, [tree])).ask(range(len(tree.branches)))


@torch.no_grad()
def plain_logits(model: GeometricQwen, tree: Tree) -> Tensor:
    """(1,vocabulary) of a tree of one question, by transformers' forward."""
    return model(**_inputs(model, tree), logits_to_keep=1, use_cache=False).logits[:, -1]


def spoken_tokens(model: GeometricQwen, tree: Tree) -> Tensor:
    """(1,SPOKEN_TOKENS) ids that transformers' generate says to a tree of one question."""
    inputs = _inputs(model, tree)
    length = {"min_new_tokens": SPOKEN_TOKENS, "max_new_tokens": SPOKEN_TOKENS}
    return model.generate(**inputs, **length, do_sample=False, pad_token_id=0)[:, inputs["input_ids"].shape[1] :]


def _inputs(model: GeometricQwen, tree: Tree) -> dict[str, Any]:
    """What a processor would give for one question, with room for geometry."""
    batch = packed(model, [tree])
    inputs = {
        "input_ids": batch.tokens,
        "attention_mask": torch.ones_like(batch.tokens),
        "mm_token_type_ids": batch.video_slots.int() * VIDEO_TYPE,
        "pixel_values_videos": batch.patches,
        "video_grid_thw": batch.video_grid,
        "second_per_grid_ts": torch.tensor([tree.video.seconds_per_slot]),
    }
    return inputs if batch.geometry is None else {**inputs, "geometry": batch.geometry}


def _each(way: Any, model: GeometricQwen, trees: list[Tree]) -> None:
    for tree in trees:
        way(model, tree)


def _same_predictions(model: GeometricQwen, tree: Tree, alone: list[Tree]) -> float:
    """The largest difference of logits between shared and alone, over the largest logit; also warms all ways up.

    Raises:
        RuntimeError: a prediction differs.
    """
    if model.tokens_per_second != TOKENS_PER_SECOND:
        raise RuntimeError(f"the model counts {model.tokens_per_second} positions a second, not {TOKENS_PER_SECOND}")
    shared = shared_logits(model, tree)
    plain = torch.cat([plain_logits(model, one) for one in alone])
    said = torch.cat([spoken_tokens(model, one)[:, 0] for one in alone])
    if not (torch.equal(shared.argmax(-1), plain.argmax(-1)) and torch.equal(plain.argmax(-1), said)):
        raise RuntimeError("the three ways give different predictions: their times cannot be compared")
    return float((shared - plain).abs().max() / plain.abs().max())
