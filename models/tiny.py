"""Configurations of small models of the published classes, for laptops and tests."""

from __future__ import annotations

from models.configuration import GeometricQwen3Config, GeometricQwenConfig
from models.parameters import ParameterError, TinyModelParameters

# Published models draw from 0.02 for widths of thousands; narrow layers need larger weights to pass a signal on.
SPREAD = 0.04


def tiny_config(parameters: TinyModelParameters, token_ids: dict[str, int], geometry: dict | None):
    """Configuration of a small Qwen2.5-VL.

    Args:
        parameters: the sizes.
        token_ids: ids of Qwen's special tokens in the small tokenizer, and `vocabulary`, its size.
        geometry: as `geometry_config` returns it.

    Raises:
        ParameterError: if heads and widths do not fit each other.
    """
    return GeometricQwenConfig(
        text_config=_text(parameters, token_ids),
        vision_config={
            "depth": parameters.vision_depth,
            "hidden_size": parameters.vision_width,
            "intermediate_size": 2 * parameters.vision_width,
            "num_heads": parameters.vision_heads,
            "out_hidden_size": parameters.hidden_size,
            "fullatt_block_indexes": [parameters.vision_depth - 1],
            "tokens_per_second": 2,
            "initializer_range": SPREAD,
        },
        **_whole(token_ids, geometry),
    )


def tiny_config3(parameters: TinyModelParameters, token_ids: dict[str, int], geometry: dict | None):
    """Configuration of a small Qwen3-VL, whose vision tower feeds its first decoder layers too.

    Arguments and errors as in `tiny_config`.
    """
    text = _text(parameters, token_ids)
    text["head_dim"] = parameters.hidden_size // parameters.heads
    text["rope_parameters"]["mrope_interleaved"] = True
    return GeometricQwen3Config(
        text_config=text,
        vision_config={
            "depth": parameters.vision_depth,
            "hidden_size": parameters.vision_width,
            "intermediate_size": 2 * parameters.vision_width,
            "num_heads": parameters.vision_heads,
            "out_hidden_size": parameters.hidden_size,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": list(range(min(parameters.vision_depth, parameters.layers))),
            "initializer_range": SPREAD,
        },
        **_whole(token_ids, geometry),
    )


def _text(parameters: TinyModelParameters, token_ids: dict[str, int]) -> dict:
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
    return {
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
        "initializer_range": SPREAD,
        "bos_token_id": token_ids["<|endoftext|>"],
        "eos_token_id": token_ids["<|im_end|>"],
        "pad_token_id": token_ids["<|endoftext|>"],
    }


def _whole(token_ids: dict[str, int], geometry: dict | None) -> dict:
    return {
        "image_token_id": token_ids["<|image_pad|>"],
        "video_token_id": token_ids["<|video_pad|>"],
        "vision_start_token_id": token_ids["<|vision_start|>"],
        "vision_end_token_id": token_ids["<|vision_end|>"],
        "geometry_config": geometry,
        "dtype": "float32",
    }
