"""π³ a second time, as plain loops over frames, heads and tokens in float64, to hold `models.pi3` against.

Written from the paper (arXiv 2507.13347), the DINOv2 paper and the layout of the published weights; slow and obvious on
purpose, and sharing no code with `models.pi3`. `reconstruct` is the form in which any other implementation can be
plugged into the same comparison: weights by their published names in, arrays out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from scipy.spatial.transform import Rotation
from scipy.special import erf

from models.pi3 import Pi3Config

Arrays = Mapping[str, np.ndarray]
PATCH = 14
REGISTERS = 5


def layout(config: Pi3Config) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the published state dict at the given sizes; all of it is float32."""
    width = config.width
    shapes: dict[str, tuple[int, ...]] = {
        "image_mean": (1, 3, 1, 1),
        "image_std": (1, 3, 1, 1),
        "register_token": (1, 1, REGISTERS, width),
        "encoder.cls_token": (1, 1, width),
        "encoder.register_tokens": (1, 4, width),
        "encoder.pos_embed": (1, 1 + config.position_grid**2, width),
        "encoder.patch_embed.proj.weight": (width, 3, PATCH, PATCH),
        "encoder.patch_embed.proj.bias": (width,),
    }

    def add_linear(name: str, outputs: int, inputs: int) -> None:
        shapes.update({f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)})

    def add_norm(name: str, channels: int) -> None:
        shapes.update({f"{name}.weight": (channels,), f"{name}.bias": (channels,)})

    def add_blocks(name: str, depth: int, scaled: bool, normed: bool) -> None:
        for block in (f"{name}.{index}" for index in range(depth)):
            add_norm(f"{block}.norm1", width)
            add_norm(f"{block}.norm2", width)
            add_linear(f"{block}.attn.qkv", 3 * width, width)
            add_linear(f"{block}.attn.proj", width, width)
            add_linear(f"{block}.mlp.fc1", 4 * width, width)
            add_linear(f"{block}.mlp.fc2", width, 4 * width)
            if scaled:
                shapes.update({f"{block}.ls1.gamma": (width,), f"{block}.ls2.gamma": (width,)})
            if normed:
                add_norm(f"{block}.attn.q_norm", width // config.heads)
                add_norm(f"{block}.attn.k_norm", width // config.heads)

    add_blocks("encoder.blocks", config.encoder_depth, scaled=True, normed=False)
    add_norm("encoder.norm", width)
    add_blocks("decoder", config.decoder_depth, scaled=True, normed=True)
    for task, outputs in (("point", width), ("conf", width), ("camera", config.camera_width)):
        add_linear(f"{task}_decoder.projects", width, 2 * width)
        add_blocks(f"{task}_decoder.blocks", config.task_depth, scaled=False, normed=False)
        add_linear(f"{task}_decoder.linear_out", outputs, width)
    add_linear("point_head.proj", 3 * PATCH**2, width)
    add_linear("conf_head.proj", PATCH**2, width)
    for layer in [f"res_conv.{i}.res_conv{j}" for i in (0, 1) for j in (1, 2, 3)] + ["more_mlps.0", "more_mlps.2"]:
        add_linear(f"camera_head.{layer}", config.camera_width, config.camera_width)
    add_linear("camera_head.fc_t", 3, config.camera_width)
    add_linear("camera_head.fc_rot", 9, config.camera_width)
    return shapes


def random_weights(config: Pi3Config, seed: int = 0) -> dict[str, np.ndarray]:
    """Random float32 weights in the published layout, of sizes at which every part of the network matters."""
    generator = np.random.default_rng(seed)
    weights = {}
    for name, shape in sorted(layout(config).items()):
        values = generator.standard_normal(shape)
        if name.endswith(".gamma"):
            values = 0.5 + 0.1 * values
        elif name.endswith(".weight"):
            values = 1 + 0.1 * values if len(shape) == 1 else values / math.sqrt(math.prod(shape[1:]))
        else:
            values = (0.1 if name.endswith(".bias") else 0.5) * values
        weights[name] = values.astype(np.float32)
    weights["image_mean"] = np.array([0.485, 0.456, 0.406], np.float32).reshape(1, 3, 1, 1)
    weights["image_std"] = np.array([0.229, 0.224, 0.225], np.float32).reshape(1, 3, 1, 1)
    return weights


def reconstruct(weights: Arrays, images: np.ndarray, config: Pi3Config) -> dict[str, np.ndarray]:
    """Run π³ on one clip.

    Args:
        weights: the state dict, by its published names.
        images: (T,3,H,W) in 0..1.
        config: the sizes.

    Returns:
        local_points (T,H,W,3), confidence (T,H,W) logits, world_from_camera (T,4,4), encoder_tokens (T,h,w,C),
        decoder_tokens (T,h,w,2C).
    """
    weights = {name: values.astype(np.float64) for name, values in weights.items()}
    rows, columns = images.shape[2] // PATCH, images.shape[3] // PATCH
    encoded = [_encode(weights, image, config.heads) for image in images.astype(np.float64)]
    positions = [(0, 0)] * REGISTERS + [(row + 1, column + 1) for row in range(rows) for column in range(columns)]
    decoded = _decode(weights, encoded, positions, config)
    clip: dict[str, list[np.ndarray]] = {"local_points": [], "confidence": [], "world_from_camera": []}
    for features in decoded:
        tokens = {task: _task(weights, task, features, positions, config) for task in ("point", "conf", "camera")}
        along = _paint(weights, "point_head.proj", tokens["point"], rows, columns)
        depth = np.exp(along[..., 2])
        clip["local_points"].append(np.stack([along[..., 0] * depth, along[..., 1] * depth, depth], -1))
        clip["confidence"].append(_paint(weights, "conf_head.proj", tokens["conf"], rows, columns)[..., 0])
        clip["world_from_camera"].append(_pose(weights, tokens["camera"]))
    clip["encoder_tokens"] = [tokens.reshape(rows, columns, -1) for tokens in encoded]
    clip["decoder_tokens"] = [features[REGISTERS:].reshape(rows, columns, -1) for features in decoded]
    return {name: np.stack(values) for name, values in clip.items()}


def _encode(weights: Arrays, image: np.ndarray, heads: int) -> np.ndarray:
    image = (image - weights["image_mean"][0]) / weights["image_std"][0]
    rows, columns = image.shape[1] // PATCH, image.shape[2] // PATCH
    kernel = weights["encoder.patch_embed.proj.weight"]
    table = weights["encoder.pos_embed"][0]
    side = math.isqrt(len(table) - 1)
    learned = table[1:].reshape(side, side, -1)
    down, across = _bicubic(side, rows), _bicubic(side, columns)
    tokens = [weights["encoder.cls_token"][0, 0] + table[0], *weights["encoder.register_tokens"][0]]
    for row in range(rows):
        for column in range(columns):
            patch = image[:, PATCH * row : PATCH * (row + 1), PATCH * column : PATCH * (column + 1)]
            embedded = np.array([(patch * channel).sum() for channel in kernel])
            place = sum(down[row, i] * across[column, j] * learned[i, j] for i in range(side) for j in range(side))
            tokens.append(embedded + weights["encoder.patch_embed.proj.bias"] + place)
    hidden = np.stack(tokens)
    index = 0
    while f"encoder.blocks.{index}.norm1.weight" in weights:
        hidden = _block(weights, f"encoder.blocks.{index}", hidden, None, heads)
        index += 1
    return _norm(weights, "encoder.norm", hidden, 1e-6)[5:]


def _decode(weights: Arrays, encoded: list[np.ndarray], positions: list, config: Pi3Config) -> list[np.ndarray]:
    frames = [np.concatenate([weights["register_token"][0, 0], tokens]) for tokens in encoded]
    stages = []
    for index in range(config.decoder_depth):
        name = f"decoder.{index}"
        if index % 2 == 0:
            frames = [_block(weights, name, tokens, positions, config.heads) for tokens in frames]
        else:
            together = _block(weights, name, np.concatenate(frames), positions * len(frames), config.heads)
            frames = np.split(together, len(frames))
        stages.append(frames)
    return [np.concatenate(pair, -1) for pair in zip(stages[-2], stages[-1], strict=True)]


def _task(weights: Arrays, task: str, features: np.ndarray, positions: list, config: Pi3Config) -> np.ndarray:
    tokens = _linear(weights, f"{task}_decoder.projects", features)
    for index in range(config.task_depth):
        tokens = _block(weights, f"{task}_decoder.blocks.{index}", tokens, positions, config.heads)
    return _linear(weights, f"{task}_decoder.linear_out", tokens)[REGISTERS:]


def _paint(weights: Arrays, name: str, tokens: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Values (H,W,channels) from patch tokens (h·w,C)."""
    channels = len(weights[f"{name}.bias"]) // PATCH**2
    picture = np.zeros((rows * PATCH, columns * PATCH, channels))
    for index, token in enumerate(tokens):
        top, left = PATCH * (index // columns), PATCH * (index % columns)
        values = _linear(weights, name, token).reshape(channels, PATCH, PATCH)
        for channel in range(channels):
            picture[top : top + PATCH, left : left + PATCH, channel] = values[channel]
    return picture


def _pose(weights: Arrays, tokens: np.ndarray) -> np.ndarray:
    for index in (0, 1):
        turned = tokens
        for layer in (1, 2, 3):
            turned = np.maximum(_linear(weights, f"camera_head.res_conv.{index}.res_conv{layer}", turned), 0)
        tokens = tokens + turned
    pooled = tokens.mean(0)
    for layer in (0, 2):
        pooled = np.maximum(_linear(weights, f"camera_head.more_mlps.{layer}", pooled), 0)
    rows = _linear(weights, "camera_head.fc_rot", pooled).reshape(3, 3)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    pose = np.eye(4)
    # The nearest rotation is the one that turns the axes into the matrix's columns best (Wahba's problem).
    pose[:3, :3] = Rotation.align_vectors(rows.T, np.eye(3))[0].as_matrix()
    pose[:3, 3] = _linear(weights, "camera_head.fc_t", pooled)
    return pose


def _block(weights: Arrays, name: str, tokens: np.ndarray, positions: list | None, heads: int) -> np.ndarray:
    attended = _attention(weights, f"{name}.attn", _norm(weights, f"{name}.norm1", tokens, 1e-6), positions, heads)
    tokens = tokens + weights.get(f"{name}.ls1.gamma", 1.0) * attended
    inner = _linear(weights, f"{name}.mlp.fc1", _norm(weights, f"{name}.norm2", tokens, 1e-6))
    inner = 0.5 * inner * (1 + erf(inner / math.sqrt(2)))
    return tokens + weights.get(f"{name}.ls2.gamma", 1.0) * _linear(weights, f"{name}.mlp.fc2", inner)


def _attention(weights: Arrays, name: str, tokens: np.ndarray, positions: list | None, heads: int) -> np.ndarray:
    length, width = tokens.shape
    size = width // heads
    projected = _linear(weights, f"{name}.qkv", tokens)
    mixed = np.zeros((length, width))
    for head in range(heads):
        q, k, v = (projected[:, start + head * size :][:, :size] for start in (0, width, 2 * width))
        if f"{name}.q_norm.weight" in weights:
            q, k = _norm(weights, f"{name}.q_norm", q, 1e-5), _norm(weights, f"{name}.k_norm", k, 1e-5)
        if positions is not None:
            q = np.stack([_turn(vector, place) for vector, place in zip(q, positions, strict=True)])
            k = np.stack([_turn(vector, place) for vector, place in zip(k, positions, strict=True)])
        for token in range(length):
            scores = k @ q[token] / math.sqrt(size)
            shares = np.exp(scores - scores.max())
            mixed[token, head * size : (head + 1) * size] = shares / shares.sum() @ v
    return _linear(weights, f"{name}.proj", mixed)


def _turn(vector: np.ndarray, place: tuple[int, int]) -> np.ndarray:
    half = len(vector) // 2
    turned = np.empty_like(vector)
    for axis in (0, 1):
        for pair in range(half // 2):
            i, j = axis * half + pair, axis * half + pair + half // 2
            angle = place[axis] * 100.0 ** (-2 * pair / half)
            turned[i] = vector[i] * math.cos(angle) - vector[j] * math.sin(angle)
            turned[j] = vector[j] * math.cos(angle) + vector[i] * math.sin(angle)
    return turned


def _bicubic(side: int, wanted: int) -> np.ndarray:
    """Weights (wanted, side) of antialiased bicubic resampling: Keys' kernel (a = -1/2), widened when shrinking."""
    scale = side / wanted
    widening = max(scale, 1.0)
    shares = np.zeros((wanted, side))
    for i in range(wanted):
        for j in range(side):
            x = abs(j + 0.5 - (i + 0.5) * scale) / widening
            if x < 1:
                shares[i, j] = 1.5 * x**3 - 2.5 * x**2 + 1
            elif x < 2:
                shares[i, j] = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
        shares[i] /= shares[i].sum()
    return shares


def _linear(weights: Arrays, name: str, values: np.ndarray) -> np.ndarray:
    return values @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def _norm(weights: Arrays, name: str, values: np.ndarray, epsilon: float) -> np.ndarray:
    centred = values - values.mean(-1, keepdims=True)
    variance = (centred**2).mean(-1, keepdims=True)
    return centred / np.sqrt(variance + epsilon) * weights[f"{name}.weight"] + weights[f"{name}.bias"]
