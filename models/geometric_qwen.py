"""Qwen2.5-VL with geometry tokens after its vision tokens.

The class is transformers' own with one more part, `gsm`. Its `forward` and `generate` are untouched, so without
geometry it is the plain model, bit for bit; `score` runs trees of questions on shared prefixes.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import Tensor
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers import initialization as init
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)

from models.batch import TreeBatch
from models.gsm import CELL_CHANNELS, GeometrySelection
from models.parameters import GeometryModelParameters, ParameterError, TinyModelParameters


class GeometricQwenConfig(Qwen2_5_VLConfig):
    """Qwen2.5-VL's configuration with `geometry_config`: `GeometryModelParameters` and the prior's `channels`.

    The model type stays qwen2_5_vl, so that transformers' plain class loads the folder too.
    """

    geometry_config: dict | None = None


class GeometricQwen(Qwen2_5_VLForConditionalGeneration):
    """`Qwen2_5_VLForConditionalGeneration` and, if the configuration names one, a geometry selection module."""

    config_class = GeometricQwenConfig

    def __init__(self, config: GeometricQwenConfig) -> None:
        super().__init__(config)
        geometry = config.geometry_config
        self.gsm = None
        if geometry:
            per_second = config.vision_config.tokens_per_second
            self.gsm = GeometrySelection(config.text_config, geometry, per_second)
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, GeometrySelection):
            init.normal_(module.queries, std=1.0)

    @property
    def geometry_tokens(self) -> int:
        """Geometry tokens in front of each question; 0 without geometry."""
        return len(self.gsm.queries) if self.gsm is not None else 0

    def score(self, batch: TreeBatch, slots: Tensor) -> Tensor:
        """Next-token logits at the chosen slots of a tree batch.

        Args:
            batch: questions on shared prefixes.
            slots: (B,L) bool.

        Returns:
            (slots.sum(), vocabulary), in row-major order of the slots. Only these go through the head, which
            with a real vocabulary is most of the memory.
        """
        embeddings = self._embed(batch)
        hidden = self.model.language_model(
            inputs_embeds=embeddings,
            attention_mask=batch.attention_mask(embeddings.dtype),
            position_ids=batch.positions,
            use_cache=False,
        ).last_hidden_state
        return self.lm_head(hidden[slots])

    def _embed(self, batch: TreeBatch) -> Tensor:
        embed = self.get_input_embeddings()
        embeddings = embed(batch.tokens)
        if batch.patches is not None:
            video = self.get_video_features(batch.patches, batch.video_grid, return_dict=True).pooler_output
            embeddings = embeddings.masked_scatter(batch.video_slots[..., None], torch.cat(video).to(embeddings.dtype))
        if batch.prior is not None:
            geometry = self.gsm(
                embed(batch.question),
                batch.question_visible,
                batch.prior,
                batch.prior_grid,
                batch.prior_times,
                batch.owner,
            )
            embeddings = embeddings.masked_scatter(batch.geometry_slots[..., None], geometry.to(embeddings.dtype))
        return embeddings


# transformers finds the key layout of published weights (`visual.…`, `model.layers.…`) by the name of the class;
# under another name the language model of a checkpoint would silently be left out.
register_checkpoint_conversion_mapping(
    GeometricQwen.__name__,
    get_checkpoint_conversion_mapping(Qwen2_5_VLForConditionalGeneration.__name__),
    overwrite=True,
)


def geometry_config(parameters: GeometryModelParameters, channels: int) -> dict | None:
    """The configuration's `geometry_config`; None where the parameters ask for no query.

    Raises:
        ParameterError: if geometric cells are announced and the files hold something else.
    """
    if parameters.queries == 0:
        return None
    if parameters.prior == "cells" and channels != CELL_CHANNELS:
        raise ParameterError(
            f"prior_features have {channels} channels, geometric cells have {CELL_CHANNELS}: "
            "set geometry.prior to tokens if a reconstruction network made them"
        )
    return {**dataclasses.asdict(parameters), "channels": channels}


def tiny_config(parameters: TinyModelParameters, token_ids: dict[str, int], geometry: dict | None):
    """Configuration of a small Qwen2.5-VL.

    Args:
        parameters: the sizes.
        token_ids: ids of Qwen's special tokens in the small tokenizer, and `vocabulary`, its size.
        geometry: as `geometry_config` returns it.

    Raises:
        ParameterError: if heads and widths do not fit each other.
    """
    head_dim, rest = divmod(parameters.hidden_size, parameters.heads)
    if rest or head_dim % 16 or parameters.heads % parameters.key_value_heads:
        raise ParameterError(
            f"hidden_size {parameters.hidden_size} with {parameters.heads} heads and "
            f"{parameters.key_value_heads} key_value_heads: a head must be a multiple of 16 wide, "
            "and heads a multiple of key_value_heads"
        )
    if parameters.vision_width % (4 * parameters.vision_heads):
        raise ParameterError(f"vision_width {parameters.vision_width}: must be a multiple of 4 · vision_heads")
    quarter = head_dim // 8
    # Published models draw from 0.02 for widths of thousands; narrow layers need larger weights to pass a signal on.
    spread = 0.04
    return GeometricQwenConfig(
        text_config={
            "vocab_size": token_ids["vocabulary"],
            "hidden_size": parameters.hidden_size,
            "intermediate_size": parameters.intermediate_size,
            "num_hidden_layers": parameters.layers,
            "num_attention_heads": parameters.heads,
            "num_key_value_heads": parameters.key_value_heads,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [2 * quarter, quarter, quarter],
            },
            "initializer_range": spread,
            "bos_token_id": token_ids["<|endoftext|>"],
            "eos_token_id": token_ids["<|im_end|>"],
            "pad_token_id": token_ids["<|endoftext|>"],
        },
        vision_config={
            "depth": parameters.vision_depth,
            "hidden_size": parameters.vision_width,
            "intermediate_size": 2 * parameters.vision_width,
            "num_heads": parameters.vision_heads,
            "out_hidden_size": parameters.hidden_size,
            "fullatt_block_indexes": [parameters.vision_depth - 1],
            "tokens_per_second": 2,
            "initializer_range": spread,
        },
        image_token_id=token_ids["<|image_pad|>"],
        video_token_id=token_ids["<|video_pad|>"],
        vision_start_token_id=token_ids["<|vision_start|>"],
        vision_end_token_id=token_ids["<|vision_end|>"],
        geometry_config=geometry,
        dtype="float32",
    )


def load_base(base: str, geometry: dict | None) -> GeometricQwen:
    """A published or fine-tuned Qwen2.5-VL (local folder or hub id); a missing geometry module starts at random.

    Raises:
        ParameterError: if nothing can be loaded from there.
    """
    try:
        config = GeometricQwenConfig.from_pretrained(base)
        if config.model_type != "qwen2_5_vl":
            raise ParameterError(f"base {base}: is a {config.model_type}, not a qwen2_5_vl")
        config.geometry_config = geometry
        model, missing = _load(base, config=config)
    except OSError as error:
        line = str(error).strip().splitlines()[0]
        raise ParameterError(f"base {base}: no Qwen2.5-VL can be loaded from there ({line})") from error
    if lost := [name for name in missing if not name.startswith("gsm.")]:
        raise ParameterError(f"base {base}: lacks {len(lost)} weights of a Qwen2.5-VL, the first is {lost[0]}")
    return model


def load_checkpoint(folder: Path) -> GeometricQwen:
    """The model saved in a checkpoint folder, in float32 and evaluation mode.

    Raises:
        ParameterError: if a weight is missing.
    """
    model, missing = _load(folder)
    if missing:
        raise ParameterError(f"{folder}: lacks {len(missing)} weights, the first is {missing[0]}")
    return model.eval()


def _load(source: str | Path, **options) -> tuple[GeometricQwen, list[str]]:
    """A model in float32 from safetensors only, and the names of weights that were not there."""
    model, report = GeometricQwen.from_pretrained(
        source, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **options
    )
    return model, sorted(report["missing_keys"])
