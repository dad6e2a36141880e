from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from models.orient_anything import (
    OrientAnything,
    OrientConfig,
    decoded,
    forward_in_camera,
    load_orient_anything,
    normalised,
    picture_of,
    published_name,
)
from models.weights import WeightsError

TINY = OrientConfig(width=32, layers=2, heads=2, image_size=28)


def published_shapes(config: OrientConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of dino_weight.pt, written down from the release: transformers 4's DINOv2 and the head."""
    width, wide, out = config.width, 4 * config.width, config.outputs
    shapes = {
        "dinov2.embeddings.cls_token": (1, 1, width),
        "dinov2.embeddings.mask_token": (1, width),
        "dinov2.embeddings.position_embeddings": (1, (config.image_size // 14) ** 2 + 1, width),
        "dinov2.embeddings.patch_embeddings.projection.weight": (width, 3, 14, 14),
        "dinov2.embeddings.patch_embeddings.projection.bias": (width,),
        "dinov2.layernorm.weight": (width,),
        "dinov2.layernorm.bias": (width,),
    }
    layer = {f"layer_scale{n}.lambda1": (width,) for n in (1, 2)}
    layer |= {f"norm{n}.{part}": (width,) for n in (1, 2) for part in ("weight", "bias")}
    linear = {f"attention.attention.{name}": (width, width) for name in ("query", "key", "value")}
    linear |= {"attention.output.dense": (width, width), "mlp.fc1": (wide, width), "mlp.fc2": (width, wide)}
    layer |= {f"{name}.weight": shape for name, shape in linear.items()}
    layer |= {f"{name}.bias": shape[:1] for name, shape in linear.items()}
    for number in range(config.layers):
        shapes |= {f"dinov2.encoder.layer.{number}.{name}": shape for name, shape in layer.items()}
    for net, inside in (("net1", width), ("net2", out)):
        shapes |= {f"down_sampler.{net}.0.weight": (out, inside), f"down_sampler.{net}.0.bias": (out,)}
        norm = ("weight", "bias", "running_mean", "running_var")
        shapes |= {f"down_sampler.{net}.1.{name}": (out,) for name in norm}
        shapes[f"down_sampler.{net}.1.num_batches_tracked"] = ()
    return shapes


def random_checkpoint(config: OrientConfig) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in published_shapes(config).items():
        tensors[name] = torch.randn(shape, generator=generator) * 0.3
        if "running_var" in name or "norm" in name:
            tensors[name] = tensors[name].abs() + 0.5
        if "num_batches" in name:
            tensors[name] = torch.tensor(7)
    return tensors


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("orient") / "croplargeEX2"
    folder.mkdir()
    torch.save(random_checkpoint(TINY), folder / "dino_weight.pt")
    return folder


def test_full_size_takes_the_published_checkpoint_key_for_key():
    with torch.device("meta"):
        model = OrientAnything()
    ours = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert {published_name(name): shape for name, shape in published_shapes(OrientConfig()).items()} == ours
    assert OrientConfig().outputs == 722 and replace(OrientConfig(), rotation_bins=360).outputs == 902
    assert 304e6 < sum(tensor.numel() for tensor in model.parameters()) < 307e6
    assert not [name for name, _ in model.named_buffers() if name not in ours]


@pytest.mark.parametrize("place", ["repository", "folder", "file"])
def test_loads_from_a_repository_a_folder_or_a_file(checkpoint, place):
    location = {"repository": checkpoint.parent, "folder": checkpoint, "file": checkpoint / "dino_weight.pt"}[place]
    model, sha256 = load_orient_anything(str(location), config=TINY)
    assert sha256 == hashlib.sha256((checkpoint / "dino_weight.pt").read_bytes()).hexdigest()
    assert not model.training
    query = random_checkpoint(TINY)["dinov2.encoder.layer.1.attention.attention.query.weight"]
    assert torch.equal(model.dinov2.encoder.layer[1].attention.q_proj.weight, query)


def test_weights_of_another_size_are_refused_in_one_line(checkpoint):
    with pytest.raises(WeightsError, match=r"dino_weight\.pt") as caught:
        load_orient_anything(str(checkpoint), config=replace(TINY, rotation_bins=360))
    assert "\n" not in str(caught.value)


def test_forward_is_the_class_token_through_linear_norm_relu_linear_norm(checkpoint):
    model, _ = load_orient_anything(str(checkpoint), config=TINY)
    pixels = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    tensors = random_checkpoint(TINY)

    def dense_and_norm(x, net):
        x = x @ tensors[f"down_sampler.{net}.0.weight"].T + tensors[f"down_sampler.{net}.0.bias"]
        mean, spread = (tensors[f"down_sampler.{net}.1.running_{name}"] for name in ("mean", "var"))
        scaled = (x - mean) / torch.sqrt(spread + 1e-5)
        return scaled * tensors[f"down_sampler.{net}.1.weight"] + tensors[f"down_sampler.{net}.1.bias"]

    with torch.no_grad():
        token = model.dinov2(pixels).last_hidden_state[:, 0]
        expected = dense_and_norm(dense_and_norm(token, "net1").relu(), "net2")
        assert torch.allclose(model(pixels), expected, atol=1e-4)


def test_half_precision_backbone_keeps_the_head_single(checkpoint):
    model, _ = load_orient_anything(str(checkpoint), dtype=torch.bfloat16, config=TINY)
    assert model.dinov2.dtype == torch.bfloat16
    assert model.down_sampler.net1[0].weight.dtype == torch.float32
    assert model(torch.zeros(1, 3, 28, 28)).dtype == torch.float32


@pytest.mark.parametrize("bins", [180, 360])
def test_decoding_counts_bins_from_the_published_offsets(bins):
    outputs = torch.zeros(2, 360 + 180 + bins + 2)
    outputs[0, [12, 360 + 95, 540 + 3]] = 9.0
    outputs[0, -2:] = torch.tensor([2.0, 0.0])
    outputs[1, [359, 360 + 179, 540 + bins - 1]] = 9.0
    outputs[1, -2:] = torch.tensor([0.0, 3.0])
    azimuth, polar, rotation, confidence = decoded(outputs, bins)
    assert azimuth.tolist() == [12, 359] and polar.tolist() == [5, 89]
    assert rotation.tolist() == [3 - bins // 2, bins // 2 - 1]
    assert confidence == pytest.approx([1 / (1 + np.exp(-2)), 1 / (1 + np.exp(3))])


def thing_on(background: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mask = np.zeros(background.shape[:2], bool)
    mask[10:30, 20:28] = True
    mask[10:14, 20:22] = False
    crop = background.copy()
    crop[mask] = np.random.default_rng(5).integers(1, 256, (mask.sum(), 3), np.uint8)
    return crop, mask


def test_pixels_outside_the_mask_do_not_change_the_answer(checkpoint):
    model, _ = load_orient_anything(str(checkpoint), config=TINY)
    noise = np.random.default_rng(3).integers(0, 256, (2, 40, 50, 3), np.uint8)
    one, mask = thing_on(noise[0])
    other, _ = thing_on(noise[1])
    assert (one != other).any()
    assert np.array_equal(picture_of(one, mask), picture_of(other, mask))
    seen = model(normalised([picture_of(one, mask)]))
    assert torch.equal(seen, model(normalised([picture_of(other, mask)])))
    assert not torch.allclose(seen, model(normalised([picture_of(one, np.ones_like(mask))])))


def test_picture_is_square_black_and_filled_to_85_percent():
    crop, mask = thing_on(np.full((40, 50, 3), 255, np.uint8))
    picture = picture_of(crop, mask)
    assert picture.shape == (23, 23, 3)
    assert np.array_equal(np.argwhere(picture.any(-1)).min(0), [1, 7])
    assert np.array_equal(picture[1:21, 7:15], np.where(mask[10:30, 20:28, None], crop[10:30, 20:28], 0))


def test_pixels_are_those_of_the_published_preprocessing():
    from PIL import Image

    picture = np.random.default_rng(0).integers(0, 256, (97, 97, 3), np.uint8)
    resized = np.asarray(Image.fromarray(picture).resize((256, 256), Image.Resampling.BICUBIC))[16:240, 16:240]
    expected = (resized / 255.0 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    result = normalised([picture, picture[:1, :1]])
    assert result.shape == (2, 3, 224, 224)
    assert np.abs(result[0].permute(1, 2, 0).numpy() - expected).max() < 1e-5


def test_batches_answer_as_single_pictures_do_and_empty_masks_are_unknown(checkpoint, monkeypatch):
    monkeypatch.setattr("models.orient_anything.PICTURES_AT_ONCE", 2)
    model, _ = load_orient_anything(str(checkpoint), config=TINY)
    crops = list(np.random.default_rng(4).integers(0, 256, (4, 20, 16, 3), np.uint8))
    masks = [np.ones((20, 16), bool)] * 4
    masks[1] = np.zeros((20, 16), bool)
    together = model.orient(crops, masks)
    for place in (0, 2, 3):
        alone = model.orient([crops[place]], [masks[place]])
        assert alone.azimuth_deg[0] == together.azimuth_deg[place]
        assert alone.confidence[0] == pytest.approx(together.confidence[place], abs=1e-5)
    assert np.isnan([together.azimuth_deg[1], together.polar_deg[1], together.rotation_deg[1]]).all()
    assert together.confidence[1] == 0
    assert model.orient([], []).azimuth_deg.shape == (0,)
    with pytest.raises(ValueError, match="same size"):
        model.orient([crops[0]], [masks[0][:5]])
    with pytest.raises(ValueError, match="one mask per picture"):
        model.orient(crops, masks[:1])


@pytest.mark.parametrize(
    ("angles", "expected"),
    [
        ((0, 0, 0), (0, 0, -1)),
        ((90, 0, 0), (-1, 0, 0)),
        ((180, 0, 0), (0, 0, 1)),
        ((270, 0, 0), (1, 0, 0)),
        ((0, 90, 0), (0, 1, 0)),
        ((0, 30, 0), (0, 0.5, -np.sqrt(0.75))),
        ((180, 30, 0), (0, -0.5, np.sqrt(0.75))),
        ((90, 0, 90), (0, 1, 0)),
        ((270, 0, 90), (0, -1, 0)),
        ((0, 0, 45), (0, 0, -1)),
    ],
)
def test_canonical_headings(angles, expected):
    assert forward_in_camera(*np.array(angles)[:, None])[0] == pytest.approx(np.array(expected, float), abs=1e-12)


def test_heading_is_the_agent_frames_x_axis_brought_back_to_the_camera():
    """Paper section 1.3, whose matrices turn the frame and not the vector; rotation has the release's sign."""

    def turned(axis, degrees):
        matrix, (i, j) = np.eye(3), {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        matrix[[i, i, j, j], [i, j, i, j]] = c, s, -s, c
        return matrix

    angles = np.random.default_rng(2).uniform((0, -90, -90), (360, 90, 90), (20, 3))
    for azimuth, polar, rotation in angles:
        upright = turned("z", 270) @ turned("x", 90) @ turned("y", azimuth) @ turned("x", polar)
        agent = upright @ turned("z", -rotation)
        assert forward_in_camera(azimuth, polar, rotation) == pytest.approx(agent.T @ [1, 0, 0], abs=1e-12)


def test_heading_is_drawn_where_the_published_axis_drawing_puts_it():
    """The release draws the front of an upright thing, then turns the drawing counter-clockwise by the rotation."""
    azimuth, polar, rotation = np.random.default_rng(2).uniform((0, -90, -90), (360, 90, 90), (20, 3)).T
    phi, theta = np.radians(azimuth), np.radians(polar)
    drawn = (-np.sin(phi) - 1j * np.cos(phi) * np.sin(theta)) * np.exp(1j * np.radians(rotation))
    headings = forward_in_camera(azimuth, polar, rotation)
    assert headings[:, 0] == pytest.approx(drawn.real) and -headings[:, 1] == pytest.approx(drawn.imag)
    assert np.linalg.norm(headings, axis=1) == pytest.approx(1.0)
    assert np.isnan(forward_in_camera(np.array([np.nan]), np.zeros(1), np.zeros(1))).any()
