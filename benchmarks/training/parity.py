"""Whether the published weights compute here what they compute in the reference."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.figure import Figure
from benchmarks.training import published_loops
from benchmarks.training.published_loops import Asked, Sizes
from models.batch import NO_TARGET, Branch, Prior, Tree, TreeBatch, pack
from models.online_prior import PatchPrior
from models.pixels import Video
from models.published import continue_after_time, load_published_with_prior, prompt_tokens_read, slot_starts

BOUND = 1e-4
# Height and width differ, windows are cut at the edge; the second clip lasts longer than its picture is wide.
CLIPS = (((3, 4, 6), 0.3), ((4, 6, 4), 1.7))

Logits = Callable[[dict[str, Tensor], dict, Asked], Tensor]


def figures() -> dict[str, Figure]:
    """`published_parity`."""
    how = (
        "largest difference of next-token logits to a float64 implementation over the largest logit; random weights "
        "in the published layout, two shards, small sizes, frames to logits"
    )
    return {"published_parity": Figure(parity(), BOUND, "lower", "ratio", how)}


def parity(logits: Logits = published_loops.logits, sizes: Sizes | None = None, seed: int = 0) -> float:
    """The largest difference of logits between our model and another implementation, over the largest logit.

    Whoever has the reference's code can put it in the place of `published_loops.logits`: a function
    `logits(weights, config, asked) -> (L, vocabulary)` that builds `Qwen2_5_VLForConditionalGeneration_Spatial` from
    `config` (its `dinov2_vitl14_reg` replaced by one of `sizes.encoder_depth`), loads `weights` with strict=True and
    calls it with input_ids `asked.tokens[None]`, an attention mask of ones, pixel_values_videos `asked.patches`,
    video_grid_thw `[asked.grid]` and second_per_grid_ts `[asked.seconds_per_slot]`. The reference fixes the encoder's
    width, so give `sizes=Sizes(encoder_width=1024, encoder_grid=37)`.
    """
    sizes = sizes or Sizes()
    weights, config = published_loops.random_weights(sizes, seed), published_loops.configuration(sizes)
    with tempfile.TemporaryDirectory() as folder:
        save_published(Path(folder), weights, config)
        model, prior = load_published_with_prior(folder)
    worst = 0.0
    for number, (grid, seconds_per_slot) in enumerate(CLIPS):
        asked = published_loops.random_question(grid, seconds_per_slot, queries=sizes.queries, seed=seed + number)
        expected = logits(weights, config, asked).double()
        with torch.inference_mode():
            batch = batch_of([asked], prior, model.geometry_tokens, config["vision_config"]["tokens_per_second"])
            found = model.score(batch, torch.ones_like(batch.tokens, dtype=torch.bool)).double()
        worst = max(worst, float((found - expected).abs().max() / expected.abs().max()))
    return worst


def save_published(folder: Path, weights: dict[str, Tensor], config: dict, shards: int = 2) -> None:
    """Weights and configuration as the published repository holds them: shards, their index, config.json."""
    names = sorted(weights)
    files = {name: f"model-{1 + place % shards:05}-of-{shards:05}.safetensors" for place, name in enumerate(names)}
    for file in sorted(set(files.values())):
        save_file({name: weights[name] for name in names if files[name] == file}, folder / file, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    (folder / "config.json").write_text(json.dumps(config))


def batch_of(questions: list[Asked], prior: PatchPrior, geometry_tokens: int, tokens_per_second: float) -> TreeBatch:
    """The reference's prompts as trees of one branch each, with the prior made from their own patches."""
    trees = [_tree(asked, prior, geometry_tokens) for asked in questions]
    return continue_after_time(pack(trees, published_loops.VIDEO_PAD, geometry_tokens, tokens_per_second))


def _tree(asked: Asked, prior: PatchPrior, geometry_tokens: int) -> Tree:
    (features,) = prior(asked.patches, torch.tensor([asked.grid]))
    ids = asked.tokens.tolist()
    start = ids.index(published_loops.VIDEO_PAD)
    end = len(ids) - ids[::-1].index(published_loops.VIDEO_PAD)
    rest = ids[end:]
    silent = [NO_TARGET] * len(rest)
    video = Video(asked.patches.numpy(), asked.grid, asked.seconds_per_slot)
    if end - start != video.tokens + geometry_tokens:
        raise ValueError(f"{end - start} video pads for {video.tokens} vision and {geometry_tokens} geometry tokens")
    return Tree(
        prefix=ids[:start],
        video=video,
        prior=Prior(features.numpy(), slot_starts(asked.grid[0], asked.seconds_per_slot)),
        branches=[Branch(rest, silent, prompt_tokens_read(ids), len(rest))],
    )
