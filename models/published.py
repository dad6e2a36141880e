"""The published model (TencentARC/DSR_Suite-Model): its weights under our names, and what it does differently.

The reference puts everything into Qwen2.5-VL's vision tower: `visual.q_former_queries`, `visual.q_former_1` and `_2`
(one block each, MLPs with biases), `visual.q_former_norm`, `visual.spatial_merger` (norm and MLP over eight tokens
side by side) and `visual.spatial_encoder` (π³'s DINOv2 encoder). A model that was loaded from it reads as it learned
to read; its configuration says so by `geometry_config["reads"] = "prompt"`, which means all of:

- Q-Former 1 reads the words of the whole prompt (`prompt_tokens_read`), not the question's alone;
- keys stand at the start of their slot, not at its last frame (`slot_starts`);
- text goes on after the video in time too (`continue_after_time`), as in transformers before 5.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from models.batch import PREFIX, TreeBatch
from models.online_prior import PatchPrior
from models.parameters import ParameterError
from models.pi3 import Encoder, Pi3Config
from models.weights import Weights, WeightsError, load_into, open_weights, read_json

if TYPE_CHECKING:
    from models.geometric_qwen import GeometricQwen

UNREAD = frozenset({151643, 151644, 151645, 151652, 151653, 151654, 151655, 151656})
"""Ends of text and turns, vision marks and pads of Qwen's tokenizer, which the reference's Q-Former 1 passes over."""
ANSWER_LEAD = 3
"""Tokens that open the assistant's turn (its mark, its name, a line break)."""
ENCODER_HEADS = 16
"""DINOv2 ViT-L's; not to be seen in the weights."""
ENCODER = "prior_encoder."
MARKER = "visual.q_former_queries"
RENAMED = (
    ("visual.spatial_encoder.", ENCODER),
    ("visual.spatial_merger.ln_q.", "gsm.prior.norm."),
    ("visual.spatial_merger.mlp.", "gsm.prior.mlp."),
    ("visual.q_former_1.norm1.", "gsm.condenser.0.attention_norm."),
    ("visual.q_former_1.norm2.", "gsm.condenser.0.mlp_norm."),
    ("visual.q_former_1.attn.", "gsm.condenser.0.attention."),
    ("visual.q_former_1.mlp.", "gsm.condenser.0.mlp."),
    ("visual.q_former_2.norm1.", "gsm.selector.0.attention_norm."),
    ("visual.q_former_2.norm2.", "gsm.selector.0.mlp_norm."),
    ("visual.q_former_2.attn.", "gsm.selector.0.attention."),
    ("visual.q_former_2.mlp.", "gsm.selector.0.mlp."),
    ("visual.q_former_norm.", "gsm.norm."),
    (MARKER, "gsm.queries"),
    ("visual.", "model.visual."),
    ("model.", "model.language_model."),
)
"""Beginnings of published names and of ours, the first that fits counts; all others (`lm_head.`) are the same."""


def published_keys(name: str) -> str:
    """Our name of a published weight; those of π³'s encoder begin with `prior_encoder.`."""
    for theirs, ours in RENAMED:
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def is_published(base: str, revision: str | None = None) -> bool:
    """Whether a local folder or a hub repository holds weights in the published layout, by their names.

    Reads an index or a header, never the weights. Where there is neither, there is no published model.

    Raises:
        WeightsError: if the index or the header cannot be read.
    """
    from transformers.utils import cached_file

    names = ("model.safetensors.index.json", "model.safetensors")
    # A hub repository is asked for its index alone: whoever publishes 9 billion weights publishes them in shards.
    for name in names if Path(base).is_dir() else names[:1]:
        found = cached_file(base, name, revision=revision, _raise_exceptions_for_missing_entries=False)
        if found is not None:
            return MARKER in _names(Path(found))
    return False


def load_published(
    base: str, dtype: torch.dtype = torch.float32, *, revision: str | None = None, attention: str = "sdpa"
) -> GeometricQwen:
    """The published model in evaluation mode.

    Args:
        base: local folder or hub id; shards are read one after the other.
        dtype: of the weights.
        revision: commit, tag or branch of a hub id.
        attention: the language model's, sdpa, eager or flex_attention.

    Raises:
        WeightsError: a file, a weight or a shape is not as published; the line names the file.
        ParameterError: config.json is that of another model.
    """
    return load_published_with_prior(base, dtype, revision=revision, attention=attention)[0]


def load_published_with_prior(
    base: str, dtype: torch.dtype = torch.float32, *, revision: str | None = None, attention: str = "sdpa"
) -> tuple[GeometricQwen, PatchPrior]:
    """As `load_published`, and the prior that the checkpoint brings with it."""
    from transformers import initialization

    from models.configuration import GeometricQwenConfig
    from models.geometric_qwen import GeometricQwen

    weights = open_weights(f"{base}@{revision}" if revision and not Path(base).is_dir() else base)
    shapes = _shapes(weights)
    stated = read_json(weights.folder / "config.json")
    if (kind := stated.get("model_type")) != "qwen2_5_vl":
        raise ParameterError(f"base {base}: its config.json is that of a {kind}, not of a qwen2_5_vl")
    config = GeometricQwenConfig.from_dict(stated)
    config.geometry_config = _geometry_config(weights, shapes)
    implementation = {"text_config": attention, "vision_config": "sdpa"}
    with initialization.no_init_weights():
        model = GeometricQwen._from_config(config, dtype=dtype, attn_implementation=implementation)
        prior = PatchPrior(Encoder(_encoder_config(weights, shapes))).to(dtype)
    whole = nn.ModuleDict({"model": model, "prior": prior})
    _refuse_missing(weights, shapes, whole)
    load_into(whole, weights, lambda name: _place(published_keys(name)))
    return model.eval(), prior.eval().requires_grad_(False)


def _refuse_missing(weights: Weights, shapes: dict[str, tuple[int, ...]], whole: nn.Module) -> None:
    """Raise for weights that no file has; `load_into` would name them as we do, not as published."""
    if missing := whole.state_dict().keys() - {_place(published_keys(name)) for name in shapes}:
        theirs = sorted(_published_name(name) for name in missing)
        where = weights.files[0] if len(weights.files) == 1 else weights.folder
        raise WeightsError(
            f"{where}: tensor {theirs[0]!r} is missing ({len(theirs)} in all); download the weights again"
        )


def _published_name(place: str) -> str:
    """The inverse of `_place(published_keys(name))`."""
    name = place.removeprefix("model.") if place.startswith("model.") else place.replace("prior.encoder.", ENCODER, 1)
    for theirs, ours in RENAMED:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def _place(name: str) -> str:
    if name.startswith(ENCODER):
        return "prior.encoder." + name.removeprefix(ENCODER)
    return f"model.{name}"


def _geometry_config(weights: Weights, shapes: dict[str, tuple[int, ...]]) -> dict:
    """The geometry module of the published weights, in the words of `GeometryModelParameters`, from their shapes."""
    queries, _ = _shape(weights, shapes, MARKER, 2)
    (channels,) = _shape(weights, shapes, "visual.spatial_merger.ln_q.weight", 1)
    inner, _ = _shape(weights, shapes, "visual.spatial_merger.mlp.0.weight", 2)
    return {
        "variant": "gsm",
        "queries": queries,
        "condenser_depth": 1,
        "selector_depth": 1,
        "prior": "tokens",
        "octaves": 0,
        "merge_time": 1,
        "merge_space": 1,
        "channels": channels,
        "projection_width": inner,
        "mlp_bias": True,
        "reads": "prompt",
    }


def _encoder_config(weights: Weights, shapes: dict[str, tuple[int, ...]]) -> Pi3Config:
    name = "visual.spatial_encoder."
    _, places, width = _shape(weights, shapes, f"{name}pos_embed", 3)
    blocks = {key.removeprefix(f"{name}blocks.").partition(".")[0] for key in shapes if key.startswith(f"{name}blocks")}
    grid = math.isqrt(max(places - 1, 1))
    try:
        return Pi3Config(width=width, heads=ENCODER_HEADS, encoder_depth=len(blocks), position_grid=grid)
    except ValueError as error:
        raise WeightsError(f"{weights.folder}: {name}* are no DINOv2's ({error}); download them again") from error


def _shape(weights: Weights, shapes: dict[str, tuple[int, ...]], name: str, rank: int) -> tuple[int, ...]:
    if len(shapes.get(name, ())) != rank:
        found = f"is {shapes[name]}" if name in shapes else "is missing"
        raise WeightsError(f"{weights.folder}: tensor {name!r} {found}; give weights in the published layout")
    return shapes[name]


def _shapes(weights: Weights) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all weights, from the headers."""
    from safetensors import SafetensorError, safe_open

    shapes = {}
    for file in weights.files:
        try:
            with safe_open(file, framework="pt") as opened:
                shapes |= {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{file}: truncated or damaged ({error}); download the weights again") from error
    return shapes


def _names(path: Path) -> Collection[str]:
    """Names of weights in an index or a safetensors file."""
    if path.suffix == ".json":
        names = read_json(path).get("weight_map")
        return names if isinstance(names, dict) else ()
    return _shapes(Weights(path.parent, (path,), ""))


def reads_prompt(geometry_config: dict | None) -> bool:
    """Whether a model reads as the published one does (see the module)."""
    return bool(geometry_config) and geometry_config.get("reads") == "prompt"


def prompt_tokens_read(prompt: Sequence[int], unread: Collection[int] = UNREAD, in_training: bool = False) -> list[int]:
    """What the published model's first Q-Former reads of a prompt: every token but the special ones.

    Args:
        prompt: ids from the system's turn to the opening of the assistant's.
        unread: ids to pass over, those of Qwen's own tokenizer by default.
        in_training: leave the opening of the assistant's turn out. The reference does so when it learns and not when
            it answers; prompts without it were what its weights saw.
    """
    return [token for token in (prompt[:-ANSWER_LEAD] if in_training else prompt) if token not in unread]


def slot_starts(slots: int, seconds_per_slot: float) -> np.ndarray:
    """(slots,) float32 seconds at which the published model's keys stand: evenly, the first at 0."""
    return np.arange(slots, dtype=np.float32) * np.float32(seconds_per_slot)


def continue_after_time(batch: TreeBatch) -> TreeBatch:
    """The batch with its branches moved behind the last moment of their video, if that is further on.

    `TreeBatch` follows transformers 5, where text continues after the longer side of the picture and so may share
    positions in time with a long video. Qwen2.5-VL and the published weights learned otherwise: text continues after
    the largest position of any axis.
    """
    after = batch.positions.amax(0).masked_fill(~batch.video_slots, -1).amax(1) + 1
    branches = batch.branch > PREFIX
    far = torch.iinfo(batch.positions.dtype).max
    start = batch.positions[0].masked_fill(~branches, far).amin(1)
    shift: Tensor = (after - start).clamp(min=0)[:, None] * branches
    return replace(batch, positions=batch.positions + shift)
