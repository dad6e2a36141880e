"""What the published model computes, a second time: plain float64 arithmetic, one video and one question at a time.

Written from the reference's code and the layout of its weights (github TencentARC/DSR_Suite, `qwen_vl_spatial.py`,
on transformers 4.51), and sharing no code with `models`. `logits` is the form in which any other implementation can be
plugged into the same comparison: weights by their published names in, logits out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

Weights = Mapping[str, Tensor]
SPECIAL = (151643, 151644, 151645, 151652, 151653, 151654, 151655, 151656)
VISION_START, VISION_END, VIDEO_PAD = 151652, 151653, 151656
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4576275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PATCH, MERGE, FRAMES = 14, 2, 2
NEIGHBOURS = FRAMES * MERGE**2


@dataclass(frozen=True)
class Sizes:
    """Sizes of a model; small ones by default.

    The reference's code is free in the sizes of Qwen2.5-VL, which come from config.json. It fixes 32 queries, an
    encoder of width 1024 and depth 24 (`dinov2_vitl14_reg`), 16 heads and a 37×37 grid, and `spatial_dim = 1024`.
    """

    hidden: int = 32
    layers: int = 2
    heads: int = 4
    key_heads: int = 2
    inner: int = 48
    vocabulary: int = 151_664
    vision_width: int = 32
    vision_depth: int = 3
    vision_heads: int = 2
    vision_inner: int = 40
    encoder_width: int = 64
    encoder_depth: int = 2
    encoder_heads: int = 16
    encoder_grid: int = 5
    queries: int = 32


@dataclass(frozen=True)
class Asked:
    """One question about one video, as the reference's processor lays it out.

    Attributes:
        tokens: (L,) ids of the whole prompt; t·h/2·w/2 + 32 video pads follow each other.
        patches: (t·h·w, 1176) normalised pixels, as `pixel_values_videos`.
        grid: t, h, w in patches.
        seconds_per_slot: as `second_per_grid_ts`.
    """

    tokens: Tensor
    patches: Tensor
    grid: tuple[int, int, int]
    seconds_per_slot: float


def configuration(sizes: Sizes) -> dict:
    """config.json beside the weights, flat as transformers 4.51 writes it."""
    eighth = sizes.hidden // sizes.heads // 8
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration_Spatial"],
        "model_type": "qwen2_5_vl",
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "vision_start_token_id": VISION_START,
        "vision_end_token_id": VISION_END,
        "vision_token_id": 151654,
        "image_token_id": 151655,
        "video_token_id": VIDEO_PAD,
        "hidden_act": "silu",
        "hidden_size": sizes.hidden,
        "initializer_range": 0.02,
        "intermediate_size": sizes.inner,
        "max_position_embeddings": 128000,
        "max_window_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_hidden_layers": sizes.layers,
        "num_key_value_heads": sizes.key_heads,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [2 * eighth, eighth, eighth]},
        "sliding_window": 32768,
        "use_sliding_window": False,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vision_config": {
            "depth": sizes.vision_depth,
            "hidden_act": "silu",
            "hidden_size": sizes.vision_width,
            "intermediate_size": sizes.vision_inner,
            "num_heads": sizes.vision_heads,
            "in_chans": 3,
            "out_hidden_size": sizes.hidden,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "spatial_patch_size": PATCH,
            "window_size": 56,
            "fullatt_block_indexes": [1],
            "tokens_per_second": 2,
            "temporal_patch_size": FRAMES,
        },
        "vocab_size": sizes.vocabulary,
    }


def layout(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all published weights at the given sizes."""
    shapes: dict[str, tuple[int, ...]] = {
        "lm_head.weight": (sizes.vocabulary, sizes.hidden),
        "model.embed_tokens.weight": (sizes.vocabulary, sizes.hidden),
        "model.norm.weight": (sizes.hidden,),
        "visual.patch_embed.proj.weight": (sizes.vision_width, 3, FRAMES, PATCH, PATCH),
        "visual.q_former_queries": (sizes.queries, sizes.hidden),
        "visual.q_former_norm.weight": (sizes.hidden,),
        "visual.spatial_encoder.cls_token": (1, 1, sizes.encoder_width),
        "visual.spatial_encoder.pos_embed": (1, 1 + sizes.encoder_grid**2, sizes.encoder_width),
        "visual.spatial_encoder.register_tokens": (1, 4, sizes.encoder_width),
        "visual.spatial_encoder.patch_embed.proj.weight": (sizes.encoder_width, 3, PATCH, PATCH),
        "visual.spatial_encoder.patch_embed.proj.bias": (sizes.encoder_width,),
        "visual.spatial_encoder.norm.weight": (sizes.encoder_width,),
        "visual.spatial_encoder.norm.bias": (sizes.encoder_width,),
    }

    def add(name: str, outputs: int, inputs: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = (outputs, inputs)
        if bias:
            shapes[f"{name}.bias"] = (outputs,)

    def add_attention(name: str) -> None:
        keys = sizes.key_heads * (sizes.hidden // sizes.heads)
        add(f"{name}.q_proj", sizes.hidden, sizes.hidden)
        add(f"{name}.k_proj", keys, sizes.hidden)
        add(f"{name}.v_proj", keys, sizes.hidden)
        add(f"{name}.o_proj", sizes.hidden, sizes.hidden, bias=False)

    def add_swiglu(name: str, width: int, inner: int, bias: bool) -> None:
        add(f"{name}.gate_proj", inner, width, bias)
        add(f"{name}.up_proj", inner, width, bias)
        add(f"{name}.down_proj", width, inner, bias)

    def add_merger(name: str, normed: int, width: int) -> None:
        shapes[f"{name}.ln_q.weight"] = (normed,)
        add(f"{name}.mlp.0", width, width)
        add(f"{name}.mlp.2", sizes.hidden, width)

    for layer in (f"model.layers.{index}" for index in range(sizes.layers)):
        shapes |= {
            f"{layer}.{norm}.weight": (sizes.hidden,) for norm in ("input_layernorm", "post_attention_layernorm")
        }
        add_attention(f"{layer}.self_attn")
        add_swiglu(f"{layer}.mlp", sizes.hidden, sizes.inner, bias=False)
    for former in ("visual.q_former_1", "visual.q_former_2"):
        shapes |= {f"{former}.norm1.weight": (sizes.hidden,), f"{former}.norm2.weight": (sizes.hidden,)}
        add_attention(f"{former}.attn")
        add_swiglu(f"{former}.mlp", sizes.hidden, sizes.inner, bias=True)
    for block in (f"visual.blocks.{index}" for index in range(sizes.vision_depth)):
        shapes |= {f"{block}.norm1.weight": (sizes.vision_width,), f"{block}.norm2.weight": (sizes.vision_width,)}
        add(f"{block}.attn.qkv", 3 * sizes.vision_width, sizes.vision_width)
        add(f"{block}.attn.proj", sizes.vision_width, sizes.vision_width)
        add_swiglu(f"{block}.mlp", sizes.vision_width, sizes.vision_inner, bias=True)
    add_merger("visual.merger", sizes.vision_width, MERGE**2 * sizes.vision_width)
    add_merger("visual.spatial_merger", NEIGHBOURS * sizes.encoder_width, NEIGHBOURS * sizes.encoder_width)
    for block in (f"visual.spatial_encoder.blocks.{index}" for index in range(sizes.encoder_depth)):
        for part in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "ls1.gamma", "ls2.gamma"):
            shapes[f"{block}.{part}"] = (sizes.encoder_width,)
        add(f"{block}.attn.qkv", 3 * sizes.encoder_width, sizes.encoder_width)
        add(f"{block}.attn.proj", sizes.encoder_width, sizes.encoder_width)
        add(f"{block}.mlp.fc1", 4 * sizes.encoder_width, sizes.encoder_width)
        add(f"{block}.mlp.fc2", sizes.encoder_width, 4 * sizes.encoder_width)
    return shapes


def random_weights(sizes: Sizes, seed: int = 0) -> dict[str, Tensor]:
    """Random float32 weights in the published layout, of sizes at which every part of the network matters."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in sorted(layout(sizes).items()):
        values = torch.randn(shape, generator=generator)
        if name.endswith((".weight", ".gamma")) and len(shape) == 1:
            values = 1 + 0.2 * values
        elif name.endswith(".weight") and "embed_tokens" not in name:
            values = values / math.sqrt(math.prod(shape[1:]))
        else:
            values = (0.2 if name.endswith(".bias") else 0.5) * values
        weights[name] = values
    return weights


def random_question(
    grid: tuple[int, int, int], seconds_per_slot: float, words: int = 12, queries: int = 32, seed: int = 0
) -> Asked:
    """A random video and a random question in the reference's layout."""
    generator = torch.Generator().manual_seed(seed)

    def text(length: int) -> list[int]:
        return torch.randint(0, 151643, (length,), generator=generator).tolist()

    pads = math.prod(grid) // MERGE**2 + queries
    system = [151644, *text(6), 151645, *text(1), 151644, *text(2)]
    asked = [VISION_START, *[VIDEO_PAD] * pads, VISION_END, *text(words), 151645, *text(1), 151644, *text(2)]
    patches = torch.randn(math.prod(grid), 3 * FRAMES * PATCH**2, generator=generator)
    return Asked(torch.tensor(system + asked), patches, grid, seconds_per_slot)


def logits(weights: Weights, config: dict, asked: Asked) -> Tensor:
    """Next-token logits after every token of a prompt.

    Args:
        weights: float32, by their published names.
        config: as `configuration` gives it.
        asked: the prompt and its video.

    Returns:
        (L, vocabulary).
    """
    weights = {name: values.double() for name, values in weights.items()}
    embedded = weights["model.embed_tokens.weight"][asked.tokens]
    read = torch.tensor([token not in SPECIAL for token in asked.tokens.tolist()])
    geometry = _geometry(weights, config, embedded[read], asked)
    seen = _vision_tower(weights, config["vision_config"], asked)
    hidden = embedded.clone()
    hidden[asked.tokens == VIDEO_PAD] = torch.cat([seen, geometry])
    return _language_model(weights, config, hidden, _positions(asked)) @ weights["lm_head.weight"].T


def _positions(asked: Asked) -> Tensor:
    """(L,3): text counts on all axes; after the video it goes on behind the largest position of any axis."""
    before = asked.tokens.tolist().index(VIDEO_PAD)
    video = _video_places(asked) + before
    after = len(asked.tokens) - before - len(video)
    lead = torch.arange(before)[:, None].expand(-1, 3)
    rest = (torch.arange(after) + int(video.max()) + 1)[:, None].expand(-1, 3)
    return torch.cat([lead, video, rest])


def _video_places(asked: Asked) -> Tensor:
    """(t·h/2·w/2, 3): two positions per second, row, column."""
    slots, rows, columns = asked.grid[0], asked.grid[1] // MERGE, asked.grid[2] // MERGE
    return torch.tensor(
        [
            [math.floor(slot * asked.seconds_per_slot * 2), row, column]
            for slot in range(slots)
            for row in range(rows)
            for column in range(columns)
        ]
    )


def _geometry(weights: Weights, config: dict, text: Tensor, asked: Asked) -> Tensor:
    """The 32 geometry tokens."""
    keys = _merged(weights, "visual.spatial_merger", _spatial_tokens(weights, asked), 1)
    queries = weights["visual.q_former_queries"]
    own = torch.arange(len(queries))[:, None].expand(-1, 3)
    words = torch.arange(len(text))[:, None].expand(-1, 3)
    queries = _q_former(weights, config, "visual.q_former_1", queries, text, own, words)
    queries = _q_former(weights, config, "visual.q_former_2", queries, keys, own, _video_places(asked))
    return _rms(queries, weights["visual.q_former_norm.weight"])


def _q_former(
    weights: Weights, config: dict, name: str, queries: Tensor, target: Tensor, own: Tensor, places: Tensor
) -> Tensor:
    shared = weights[f"{name}.norm1.weight"]
    everything = torch.ones(len(queries), len(target), dtype=torch.bool)
    queries = queries + _attention(
        weights, config, f"{name}.attn", (_rms(queries, shared), _rms(target, shared)), (own, places), everything
    )
    return queries + _swiglu(weights, f"{name}.mlp", _rms(queries, weights[f"{name}.norm2.weight"]))


def _spatial_tokens(weights: Weights, asked: Asked) -> Tensor:
    """(t·h/2·w/2, 8C): DINOv2's tokens of two frames and 2×2 patches side by side."""
    pixels = asked.patches.double().reshape(-1, 3, FRAMES, PATCH, PATCH)
    slots, rows, columns = asked.grid
    frames = torch.zeros(slots * FRAMES, 3, rows * PATCH, columns * PATCH, dtype=torch.float64)
    for index, (slot, row, column) in enumerate(_patch_places(asked.grid)):
        for frame in range(FRAMES):
            down, across = slice(PATCH * row, PATCH * (row + 1)), slice(PATCH * column, PATCH * (column + 1))
            frames[FRAMES * slot + frame, :, down, across] = pixels[index, :, frame]
    for channel in range(3):
        shown = frames[:, channel] * CLIP_STD[channel] + CLIP_MEAN[channel]
        frames[:, channel] = (shown - IMAGENET_MEAN[channel]) / IMAGENET_STD[channel]
    tokens = [_dino(weights, frame).reshape(rows, columns, -1) for frame in frames]
    stacked = []
    for slot in range(slots):
        for row in range(0, rows, MERGE):
            for column in range(0, columns, MERGE):
                near = [(f, r, c) for f in range(FRAMES) for r in range(MERGE) for c in range(MERGE)]
                stacked.append(torch.cat([tokens[FRAMES * slot + f][row + r, column + c] for f, r, c in near]))
    return torch.stack(stacked)


def _dino(weights: Weights, frame: Tensor) -> Tensor:
    """Normed patch tokens (h·w, C) of one normalised frame (3,H,W)."""
    name = "visual.spatial_encoder"
    rows, columns = frame.shape[1] // PATCH, frame.shape[2] // PATCH
    kernel, bias = weights[f"{name}.patch_embed.proj.weight"], weights[f"{name}.patch_embed.proj.bias"]
    table = weights[f"{name}.pos_embed"][0]
    side = math.isqrt(len(table) - 1)
    learned = table[1:].T.reshape(1, -1, side, side)
    placed = functional.interpolate(learned, (rows, columns), mode="bicubic", antialias=True)[0]
    single = [weights[f"{name}.cls_token"][0, 0] + table[0], *weights[f"{name}.register_tokens"][0]]
    patches = []
    for row in range(rows):
        for column in range(columns):
            patch = frame[:, PATCH * row : PATCH * (row + 1), PATCH * column : PATCH * (column + 1)]
            patches.append((kernel * patch).sum((1, 2, 3)) + bias + placed[:, row, column])
    hidden = torch.stack(single + patches)
    index = 0
    while f"{name}.blocks.{index}.norm1.weight" in weights:
        hidden = _dino_block(weights, f"{name}.blocks.{index}", hidden)
        index += 1
    return _layer_norm(weights, f"{name}.norm", hidden)[len(single) :]


def _dino_block(weights: Weights, name: str, hidden: Tensor) -> Tensor:
    q, k, v = _linear(weights, f"{name}.attn.qkv", _layer_norm(weights, f"{name}.norm1", hidden)).chunk(3, -1)
    size = q.shape[1] // 16
    heads = [slice(start, start + size) for start in range(0, q.shape[1], size)]
    read = torch.cat([(q[:, h] @ k[:, h].T / math.sqrt(size)).softmax(-1) @ v[:, h] for h in heads], -1)
    hidden = hidden + weights[f"{name}.ls1.gamma"] * _linear(weights, f"{name}.attn.proj", read)
    inner = _linear(weights, f"{name}.mlp.fc1", _layer_norm(weights, f"{name}.norm2", hidden))
    return hidden + weights[f"{name}.ls2.gamma"] * _linear(weights, f"{name}.mlp.fc2", functional.gelu(inner))


def _patch_places(grid: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    """Slot, row and column of each patch in the order of `pixel_values_videos`: 2×2 patches follow each other."""
    slots, rows, columns = grid
    return [
        (slot, row + r, column + c)
        for slot in range(slots)
        for row in range(0, rows, MERGE)
        for column in range(0, columns, MERGE)
        for r in range(MERGE)
        for c in range(MERGE)
    ]


def _vision_tower(weights: Weights, config: dict, asked: Asked) -> Tensor:
    """(t·h/2·w/2, d). A patch sees its window, or in some blocks its whole slot of time."""
    places = torch.tensor(_patch_places(asked.grid))
    window = config["window_size"] // PATCH
    slot, row, column = places.T
    near = torch.stack([slot, row // window, column // window], 1)
    same_slot = slot[:, None] == slot
    same_window = (near[:, None] == near).all(-1)
    hidden = asked.patches.double() @ weights["visual.patch_embed.proj.weight"].flatten(1).T
    size = config["hidden_size"] // config["num_heads"]
    frequencies = 10000.0 ** (-torch.arange(0, size // 2, 2, dtype=torch.float64) / (size // 2))
    angles = torch.cat([row[:, None] * frequencies, column[:, None] * frequencies], -1)
    for index in range(config["depth"]):
        name = f"visual.blocks.{index}"
        visible = same_slot if index in config["fullatt_block_indexes"] else same_window
        q, k, v = _linear(weights, f"{name}.attn.qkv", _rms(hidden, weights[f"{name}.norm1.weight"])).chunk(3, -1)
        read = []
        for start in range(0, config["hidden_size"], size):
            head = slice(start, start + size)
            read.append(_mixed(_turned(q[:, head], angles), _turned(k[:, head], angles), v[:, head], visible))
        hidden = hidden + _linear(weights, f"{name}.attn.proj", torch.cat(read, -1))
        hidden = hidden + _swiglu(weights, f"{name}.mlp", _rms(hidden, weights[f"{name}.norm2.weight"]))
    return _merged(weights, "visual.merger", hidden, MERGE**2)


def _merged(weights: Weights, name: str, tokens: Tensor, neighbours: int) -> Tensor:
    """Norm of each token, then so many neighbours side by side through two layers."""
    together = _rms(tokens, weights[f"{name}.ln_q.weight"]).reshape(len(tokens) // neighbours, -1)
    return _linear(weights, f"{name}.mlp.2", functional.gelu(_linear(weights, f"{name}.mlp.0", together)))


def _language_model(weights: Weights, config: dict, hidden: Tensor, positions: Tensor) -> Tensor:
    past = torch.ones(len(hidden), len(hidden), dtype=torch.bool).tril()
    for index in range(config["num_hidden_layers"]):
        name = f"model.layers.{index}"
        normed = _rms(hidden, weights[f"{name}.input_layernorm.weight"])
        both = (normed, normed), (positions, positions)
        hidden = hidden + _attention(weights, config, f"{name}.self_attn", *both, past)
        normed = _rms(hidden, weights[f"{name}.post_attention_layernorm.weight"])
        hidden = hidden + _swiglu(weights, f"{name}.mlp", normed)
    return _rms(hidden, weights["model.norm.weight"])


def _attention(
    weights: Weights,
    config: dict,
    name: str,
    tokens: tuple[Tensor, Tensor],
    positions: tuple[Tensor, Tensor],
    visible: Tensor,
) -> Tensor:
    """Head by head: `tokens` and their (n,3) `positions`, first of the queries, then of the keys."""
    q = _linear(weights, f"{name}.q_proj", tokens[0])
    k = _linear(weights, f"{name}.k_proj", tokens[1])
    v = _linear(weights, f"{name}.v_proj", tokens[1])
    heads, size = config["num_attention_heads"], config["hidden_size"] // config["num_attention_heads"]
    own, places = (_angles(config, size, at) for at in positions)
    read = []
    for head in range(heads):
        key = slice(size * (head * config["num_key_value_heads"] // heads), None)
        turned = _turned(k[:, key][:, :size], places)
        read.append(_mixed(_turned(q[:, head * size :][:, :size], own), turned, v[:, key][:, :size], visible))
    return torch.cat(read, -1) @ weights[f"{name}.o_proj.weight"].T


def _angles(config: dict, size: int, positions: Tensor) -> Tensor:
    """(n, size / 2): each channel pair turns with one of the three axes."""
    axes = [axis for axis, count in enumerate(config["rope_scaling"]["mrope_section"]) for _ in range(count)]
    frequencies = config["rope_theta"] ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    return positions[:, axes].double() * frequencies


def _turned(vectors: Tensor, angles: Tensor) -> Tensor:
    """Channel i and i + size / 2 as a pair, turned."""
    first, second = vectors.chunk(2, -1)
    cosine, sine = angles.cos(), angles.sin()
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1)


def _mixed(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    scores = (q @ k.T / math.sqrt(q.shape[1])).masked_fill(~visible, -math.inf)
    return scores.softmax(-1) @ v


def _swiglu(weights: Weights, name: str, tokens: Tensor) -> Tensor:
    gate = functional.silu(_linear(weights, f"{name}.gate_proj", tokens))
    return _linear(weights, f"{name}.down_proj", gate * _linear(weights, f"{name}.up_proj", tokens))


def _linear(weights: Weights, name: str, tokens: Tensor) -> Tensor:
    return tokens @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0.0)


def _rms(tokens: Tensor, weight: Tensor) -> Tensor:
    return tokens / (tokens.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def _layer_norm(weights: Weights, name: str, tokens: Tensor) -> Tensor:
    centred = tokens - tokens.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]
