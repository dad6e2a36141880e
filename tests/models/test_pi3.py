import importlib
import json
import os

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from benchmarks.geometry import pi3_loops
from benchmarks.geometry.networks import TINY, figures, parity
from models.pi3 import Pi3, Pi3Config, as_images, image_size, load_pi3, nearest_rotation, valid_points
from models.weights import WeightsError

OUTPUTS = ("local_points", "confidence", "world_from_camera", "encoder_tokens", "decoder_tokens")


def weights(config: Pi3Config = TINY) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(values) for name, values in pi3_loops.random_weights(config).items()}


@pytest.fixture(scope="module")
def model() -> Pi3:
    network = Pi3(TINY).eval().requires_grad_(False)
    network.load_state_dict(weights())
    return network


def clip(frames: int, height: int, width: int, clips: int = 1) -> torch.Tensor:
    return torch.rand(clips, frames, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("config", [Pi3Config(), TINY])
def test_the_state_dict_is_the_published_one_key_for_key(config):
    with torch.device("meta"):
        network = Pi3(config)
    state = network.state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == pi3_loops.layout(config)
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}


def test_the_published_size():
    """The published safetensors file: 1,210 tensors of 958.7 M float32 parameters (3,658 MB)."""
    with torch.device("meta"):
        network = Pi3()
    assert len(network.state_dict()) == 1210
    assert sum(parameter.numel() for parameter in network.parameters()) == 958_696_732


def test_parity_with_an_independent_implementation():
    """`models.pi3` gives what another implementation gives.

    The other one is `benchmarks.geometry.pi3_loops`, plain loops written from the published description. Whoever has
    the published code can put it in its place: DSR_PI3_REFERENCE names an importable module with a function
    `reconstruct(weights, images, config)` of the same contract as `pi3_loops.reconstruct`, which builds the published
    modules at the sizes of `config` (encoder DinoVisionTransformer with `interpolate_antialias`, decoder of BlockRope,
    three TransformerDecoder, LinearPts3d, CameraHead), loads `weights` with strict=True, and returns at least
    local_points, confidence and world_from_camera of the clip as arrays.
    """
    other = importlib.import_module(os.environ.get("DSR_PI3_REFERENCE", pi3_loops.__name__))
    assert {"local_points", "confidence", "world_from_camera"} <= set(
        other.reconstruct(pi3_loops.random_weights(TINY), clip(1, 14, 14)[0].numpy(), TINY)
    )
    deeper = Pi3Config(24, 3, 1, 5, 1, 8, 4)
    assert max(parity(other.reconstruct), parity(other.reconstruct, deeper, seed=1)) <= 1e-4


def test_parity_notices_a_difference():
    def wrong(arrays, images, config):
        return pi3_loops.reconstruct(arrays | {"register_token": arrays["register_token"] * 1.01}, images, config)

    assert parity(wrong) > 1e-4


def test_shapes_for_any_frame_count_and_any_multiple_of_14(model):
    for frames, height, width in ((1, 14, 14), (2, 28, 70), (5, 42, 14)):
        found = model(clip(frames, height, width, clips=2))
        assert found.local_points.shape == (2, frames, height, width, 3)
        assert found.confidence.shape == (2, frames, height, width)
        assert found.world_from_camera.shape == (2, frames, 4, 4)
        assert found.encoder_tokens.shape == (2, frames, height // 14, width // 14, TINY.width)
        assert found.decoder_tokens.shape == (2, frames, height // 14, width // 14, 2 * TINY.width)


def test_clips_of_a_batch_do_not_see_each_other(model):
    images = clip(2, 28, 28, clips=2)
    both, second = model(images), model(images[1:])
    for name in OUTPUTS:
        torch.testing.assert_close(getattr(both, name)[1:], getattr(second, name), rtol=1e-4, atol=1e-5)


def test_frames_see_each_other_but_have_no_order(model):
    images = clip(4, 28, 42)
    order = torch.tensor([2, 0, 3, 1])
    straight, shuffled = model(images), model(images[:, order])
    for name in OUTPUTS:
        torch.testing.assert_close(getattr(shuffled, name), getattr(straight, name)[:, order], rtol=1e-4, atol=1e-5)
    fewer = model(images[:, :3])
    torch.testing.assert_close(fewer.encoder_tokens, straight.encoder_tokens[:, :3], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(fewer.decoder_tokens, straight.decoder_tokens[:, :3], rtol=1e-2)


def test_encode_and_decode_give_the_features_of_a_reconstruction(model):
    images = clip(2, 28, 42)
    found, tokens = model(images), model.encode(images)
    assert torch.equal(tokens, found.encoder_tokens)
    assert torch.equal(model.decode(tokens)[:, :, 5:].unflatten(2, (2, 3)), found.decoder_tokens)


def test_poses_are_rigid_and_points_lie_before_the_camera(model):
    found = model(clip(3, 28, 28))
    rotation = found.world_from_camera[0, :, :3, :3]
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).expand(3, 3, 3), rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(3))
    assert torch.equal(found.world_from_camera[0, :, 3], torch.tensor([0.0, 0, 0, 1]).expand(3, 4))
    assert (found.local_points[..., 2] > 0).all()


def test_nearest_rotation_leaves_rotations_and_turns_reflections():
    turned = torch.linalg.qr(torch.randn(5, 3, 3, generator=torch.Generator().manual_seed(1)))[0]
    turned = turned * torch.linalg.det(turned)[:, None, None]
    scales = torch.tensor([0.1, 3.0, 20.0])[:, None]
    torch.testing.assert_close(nearest_rotation(scales * turned), turned, rtol=0, atol=1e-5)
    assert (torch.linalg.det(nearest_rotation(-turned)) > 0.99).all()


def test_bfloat16_multiplies_in_bfloat16_and_stays_near(model):
    images = clip(3, 28, 42)
    half = Pi3(TINY).eval().requires_grad_(False)
    half.load_state_dict(weights())
    half.compute_in(torch.bfloat16)
    assert half.decoder[1].attn.qkv.weight.dtype is half.dtype is torch.bfloat16
    assert half.camera_head.fc_t.weight.dtype is half.decoder[0].norm1.weight.dtype is torch.float32
    exact, rough = model(images), half(images)
    for name in OUTPUTS:
        a, b = getattr(exact, name), getattr(rough, name)
        assert b.dtype is torch.float32
        assert 1e-5 < (a - b).abs().max() / a.abs().max() < 0.05
    with pytest.raises(ValueError, match="float16"):
        half.compute_in(torch.float16)


@pytest.mark.parametrize("shape", [(1, 2, 3, 28, 30), (2, 3, 28, 28), (1, 0, 3, 28, 28), (1, 2, 1, 28, 28)])
def test_images_of_another_shape_are_refused(model, shape):
    with pytest.raises(ValueError, match="multiples of 14"):
        model(torch.zeros(shape))


def write_checkpoint(folder, max_shard_size="5GB", config=TINY):
    folder.mkdir()
    huggingface_hub.save_torch_state_dict(weights(config), folder, max_shard_size=max_shard_size)
    (folder / "config.json").write_text(json.dumps({"pos_type": "rope100"} | vars(config)))
    return folder


def test_published_layout_loads_from_one_file_and_from_shards(tmp_path, model):
    images = clip(2, 28, 28)
    single, single_hash = load_pi3(str(write_checkpoint(tmp_path / "single")))
    shards = write_checkpoint(tmp_path / "shards", "100KB")
    assert len(list(shards.glob("*.safetensors"))) > 2
    sharded, sharded_hash = load_pi3(str(shards))
    assert single_hash != sharded_hash
    expected = model(images)
    for loaded in (single, sharded):
        assert not loaded.training and not any(parameter.requires_grad for parameter in loaded.parameters())
        found = loaded(images)
        assert all(torch.equal(getattr(found, name), getattr(expected, name)) for name in OUTPUTS)
    assert load_pi3(str(shards), dtype=torch.bfloat16)[0].dtype is torch.bfloat16


def test_weights_that_do_not_fit_are_refused(tmp_path):
    folder = write_checkpoint(tmp_path / "w")
    state = weights()
    del state["decoder.1.attn.q_norm.weight"]
    save_file(state, folder / "model.safetensors")
    with pytest.raises(WeightsError, match=r"model\.safetensors: tensor 'decoder\.1\.attn\.q_norm\.weight' is missing"):
        load_pi3(str(folder))
    (folder / "config.json").unlink()
    with pytest.raises(WeightsError, match=r"is \(.*\), not \(.*\); give weights of this model's size"):
        load_pi3(str(folder))


@pytest.mark.parametrize(
    "sizes", [{"width": 10**12}, {"decoder_depth": 1}, {"heads": "2"}, {"width": 34}, {"heads": True}]
)
def test_configs_that_make_no_network_are_refused(tmp_path, sizes):
    folder = write_checkpoint(tmp_path / "w")
    (folder / "config.json").write_text(json.dumps(vars(TINY) | sizes))
    with pytest.raises(WeightsError, match=r"config\.json: "):
        load_pi3(str(folder))


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (1080, 1920, (378, 672)),
        (480, 640, (434, 574)),
        (500, 500, (504, 504)),
        (352, 720, (350, 728)),
        (1, 10_000, (14, 18_214)),
    ],
)
def test_image_size_is_the_references(height, width, expected):
    assert image_size(height, width) == expected


def test_image_size_keeps_to_its_bounds():
    for height, width, area in np.random.default_rng(0).integers([1, 1, 196], [4000, 4000, 300_000], (500, 3)).tolist():
        rows, columns = image_size(height, width, area)
        assert rows * columns <= area and rows % 14 == columns % 14 == 0 and min(rows, columns) >= 14


def test_as_images_keeps_colours_and_order():
    frames = np.zeros((2, 60, 90, 3), np.uint8)
    frames[0, :, :45] = (255, 0, 51)
    frames[1] = 102
    images = as_images(frames, 56 * 84)
    assert images.shape == (1, 2, 3, 56, 84) and images.dtype is torch.float32
    torch.testing.assert_close(images[0, 0, :, 20, 10], torch.tensor([1.0, 0.0, 0.2]))
    assert (images[0, 0, :, :, 60:] == 0).all() and (images[0, 1] == 0.4).all()
    assert images.min() >= 0 and images.max() <= 1


@pytest.mark.parametrize(
    "frames",
    [np.zeros((2, 20, 20, 3), np.float32), np.zeros((0, 20, 20, 3), np.uint8), np.zeros((20, 20, 3), np.uint8)],
)
def test_frames_of_another_kind_are_refused(frames):
    with pytest.raises(ValueError, match="uint8"):
        as_images(frames, 1000)
    with pytest.raises(ValueError, match="196"):
        as_images(np.zeros((1, 20, 20, 3), np.uint8), 195)


def test_valid_points_are_confident_finite_and_off_edges():
    depth = torch.full((1, 6, 8), 2.0)
    depth[:, :, 4:] = 2.1
    points = torch.stack([depth, depth, depth], -1)
    confidence = torch.zeros(1, 6, 8)
    confidence[0, 0, 0] = -3.0
    points[0, 5, 7, 0] = torch.inf
    expected = torch.ones(1, 6, 8, dtype=torch.bool)
    expected[0, :, 3:5] = False
    expected[0, 0, 0] = expected[0, 5, 7] = False
    assert torch.equal(valid_points(confidence, points), expected)
    assert valid_points(confidence, points, min_confidence=0.0, edge_rtol=0.06).sum() == 47
    assert not valid_points(torch.full((1, 6, 8), torch.nan), points).any()


def test_the_benchmark_gives_its_figures():
    found = figures()
    assert not found["pi3_parity"].missed and found["pi3_parity"].bound == 1e-4
    for name in ("pi3_peak_gb", "pi3_seconds"):
        assert (found[name].value is not None) == torch.cuda.is_available()
        assert "GPU" in found[name].how or torch.cuda.is_available()
