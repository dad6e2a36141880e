import functools
import json
import threading
from dataclasses import fields, replace
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from transformers import GroundingDinoImageProcessorPil

from assets.geometry import cache, prior
from assets.geometry.estimators import SetupError, choose, networks
from assets.geometry.estimators import foundation as foundation_estimator
from assets.geometry.estimators.foundation import (
    Seen,
    _in_unit_scale,
    _on_grid,
    centers_of,
    intrinsics_of,
    with_headings,
)
from assets.geometry.frames_of_reference import rigid, transform
from assets.geometry.parameters import FoundationParameters, GeometryParameters
from assets.geometry.record import encode_mask, load, save, unknown
from models import orient_anything
from models.data import ClipStore
from models.gsm import PriorProjection
from models.orient_anything import Orientation
from models.parameters import GuidanceParameters, TrainingParameters
from models.pi3 import Pi3, Pi3Config
from tests.models.test_endpoint import Server, completion
from tests.models.test_grounded_sam import tiny_detector, tiny_segmenter, tiny_tokenizer
from tests.models.test_orient_anything import TINY as TINY_ORIENTATION
from tests.models.test_orient_anything import random_checkpoint

SIZE = (40, 60)


def pinhole(depth: np.ndarray, focal: float, size: tuple[int, int]) -> np.ndarray:
    """(T, h, w, 3) points of a camera whose focal length is given in pixels of frames of another (H, W)."""
    rows, columns = depth.shape[1:]
    u = (np.arange(columns) + 0.5) * size[1] / columns - size[1] / 2
    v = (np.arange(rows) + 0.5) * size[0] / rows - size[0] / 2
    x, y = np.meshgrid(u / focal, v / focal)
    return np.stack([x * depth, y * depth, depth], -1)


def about_y(degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


@pytest.fixture
def seen() -> Seen:
    """Three frames at 28 x 42 of a wavy wall, from cameras that move and turn, in a world of its own."""
    rng = np.random.default_rng(0)
    depth = 2.0 + rng.uniform(0, 1, (3, 28, 42))
    poses = rigid(np.stack([about_y(a) for a in (20.0, 25.0, 30.0)]), rng.normal(size=(3, 3)))
    return Seen(pinhole(depth, 50.0, SIZE), np.ones(depth.shape), poses, None)


def test_focal_length_comes_from_the_points_in_pixels_of_the_frames(seen):
    usable = np.ones((3, 28, 42), bool)
    usable[1, :, :40] = False
    points = np.where(usable[..., None], seen.points, np.nan)
    found = intrinsics_of(points, usable, SIZE)
    np.testing.assert_allclose(found, np.tile([[50, 0, 29.5], [0, 50, 19.5], [0, 0, 1]], (3, 1, 1)), rtol=1e-6)


def test_focal_length_is_unknown_where_nothing_gives_one(seen):
    usable = np.zeros((3, 28, 42), bool)
    usable[0] = True
    mirrored = seen.points * [-1, -1, 1]
    assert np.isfinite(intrinsics_of(seen.points, usable, SIZE)[0]).all()
    assert np.isnan(intrinsics_of(seen.points, usable, SIZE)[1:]).all()
    assert np.isnan(intrinsics_of(mirrored, usable, SIZE)).all()


def test_the_world_is_the_first_camera_and_ten_units_the_median_depth(seen):
    scaled = _in_unit_scale(seen)
    np.testing.assert_allclose(scaled.world_from_camera[0], np.eye(4), atol=1e-12)
    assert np.median(scaled.points[0, ..., 2]) == pytest.approx(prior.LENGTH_UNIT)
    # One similarity for everything: distances between points of different cameras all grow by the same factor.
    before = transform(seen.world_from_camera[:, None, None], seen.points)
    after = transform(scaled.world_from_camera[:, None, None], scaled.points)
    factor = prior.LENGTH_UNIT / np.median(seen.points[0, ..., 2])
    there = factor * (before[2] - before[0, 0, 0]) @ about_y(20.0)
    np.testing.assert_allclose(after[2] - after[0, 0, 0], there, atol=1e-5)


def test_scale_survives_an_empty_first_frame_and_points_that_half_precision_cannot_hold(seen):
    confidence = seen.confidence.copy()
    confidence[0] = 0
    points = seen.points.copy()
    points[1, 3, 4] = (1.0, 1.0, 1e5)
    scaled = _in_unit_scale(Seen(points, confidence, seen.world_from_camera, None))
    assert scaled.confidence[1, 3, 4] == 0 and not scaled.points[1, 3, 4].any()
    assert np.median(scaled.points[1, ..., 2]) == pytest.approx(prior.LENGTH_UNIT, rel=1e-3)


def test_cells_of_the_grid_are_points_under_their_centres(seen):
    points, confidence = _on_grid(seen, (10, 15), SIZE)
    assert points.shape == (3, 10, 15, 3) and confidence.shape == (3, 10, 15)
    # Cell (2, 7) covers rows 8..11 and columns 28..31 of the frame; its centre is row 10 of 40 and column 30 of 60.
    np.testing.assert_array_equal(points[1, 2, 7], seen.points[1, 7, 21])


def test_a_centre_is_the_mean_of_the_usable_points_under_the_mask(seen):
    masks = np.zeros((2, 3, *SIZE), bool)
    masks[0, :, 10:20, 30:40] = True
    masks[1, 0, 5, 5] = True
    seen.confidence[0, :, :25] = 0
    found = centers_of(masks, seen, 6)
    rows = np.floor((np.arange(10, 20) + 0.5) * 28 / 40).astype(int)
    columns = np.floor((np.arange(30, 40) + 0.5) * 42 / 60).astype(int)
    np.testing.assert_allclose(found[0, 1], seen.points[1][rows[:, None], columns].mean((0, 1)))
    np.testing.assert_allclose(found[0, 0], seen.points[0][rows[:, None], columns[columns >= 25]].mean((0, 1)))
    assert np.isnan(found[1]).all()
    seen.confidence[2] = 0
    assert np.isnan(centers_of(masks, seen, 6)[0, 2]).all()
    assert centers_of(masks[:0], seen, 6).shape == (0, 3, 3)


class Facing:
    """Says the same angles of every crop, and remembers what it was shown."""

    def __init__(self, azimuth: float, confidence: float = 0.9):
        self.says, self.shown = (azimuth, 0.0, 0.0, confidence), []

    def orient(self, crops, masks):
        self.shown += [(crop.shape[:2], int(mask.sum())) for crop, mask in zip(crops, masks, strict=True)]
        return Orientation(*(np.full(len(crops), value, np.float32) for value in self.says))


def heading_of(azimuth: float, column: int, turn: float = 0.0, confidence: float = 0.9):
    """What ``with_headings`` makes of an agent (and of a thing that is none) around a column of one of two frames."""
    mask = np.zeros(SIZE, bool)
    mask[18:22, column - 2 : column + 3] = True
    boxes = np.full((2, 2, 4), np.nan)
    boxes[:, 1] = column - 2, 18, column + 3, 22
    record = unknown(
        np.arange(2.0),
        ["dog 1", "ball 1"],
        ["dog", "ball"],
        intrinsics=np.tile([[50.0, 0, 29.5], [0, 50, 19.5], [0, 0, 1]], (2, 1, 1)),
        world_from_camera=rigid(np.stack([np.eye(3), about_y(turn)]), np.zeros((2, 3))),
        is_agent=np.array([True, False]),
        masks=[[encode_mask(np.zeros(SIZE, bool)), encode_mask(mask)]] * 2,
        boxes=boxes,
    )
    network = Facing(azimuth, confidence)
    return with_headings(record, np.zeros((2, *SIZE, 3), np.uint8), network), network


def test_only_agents_that_are_seen_are_shown_cut_out():
    record, network = heading_of(0.0, 30)
    assert network.shown == [((4, 5), 20)]
    assert np.isnan(record.forward_world[0, 0]).all() and np.isnan(record.forward_world[1]).all()
    np.testing.assert_allclose(record.forward_confidence, [[0, 0.9], [0, 0]], atol=1e-6)


def test_azimuth_zero_faces_the_camera_and_ninety_the_left_edge_of_the_picture():
    np.testing.assert_allclose(heading_of(0.0, 30)[0].forward_world[0, 1], [-0.01, 0, -1], atol=2e-4)
    np.testing.assert_allclose(heading_of(90.0, 30)[0].forward_world[0, 1], [-1, 0, 0.01], atol=2e-4)


def test_a_thing_beside_the_axis_is_seen_along_its_own_ray():
    record, _ = heading_of(0.0, 50)
    towards = np.array([(50 - 29.5) / 50, 0, 1])
    np.testing.assert_allclose(record.forward_world[0, 1], -towards / np.linalg.norm(towards), atol=1e-5)


def test_headings_turn_with_the_camera_into_the_world():
    record, _ = heading_of(180.0, 30, turn=90.0)
    np.testing.assert_allclose(record.forward_world[0, 1], [1, 0, 0], atol=1.1e-2)


def test_angles_that_are_no_numbers_are_no_heading():
    record, _ = heading_of(np.nan, 30, confidence=np.nan)
    assert np.isnan(record.forward_world).all() and not record.forward_confidence.any()


def as_floats(bits: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(bits).view(torch.bfloat16).float()


def test_stacked_tokens_are_what_gsm_merges_by_itself():
    tokens = torch.randn(5, 3, 4, 6, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16).float()
    bits = prior.stacked(tokens)
    assert bits.shape == (3, 2, 2, 48) and bits.dtype == np.uint16
    projection = PriorProjection(8, {"channels": 6, "octaves": 0, "prior": "tokens", "merge_time": 2, "merge_space": 2})
    projection.norm, projection.mlp = torch.nn.Identity(), torch.nn.Sequential(torch.nn.Linear(48, 48))
    torch.nn.init.eye_(projection.mlp[0].weight)
    torch.nn.init.zeros_(projection.mlp[0].bias)
    merged = projection(tokens[None], torch.tensor([[5, 3, 4]]), torch.arange(5.0)[None])
    torch.testing.assert_close(as_floats(bits).reshape(-1, 48), merged.keys[0])
    assert merged.values is merged.keys


def test_pooled_tokens_are_means_on_a_coarse_grid():
    tokens = torch.arange(3 * 4 * 8.0).reshape(3, 4, 8, 1)
    bits = prior.pooled(tokens, 4)
    assert bits.shape == (2, 2, 4, 1)
    torch.testing.assert_close(as_floats(bits)[0, 0, 0, 0], tokens[:2, :2, :2].mean(), rtol=1e-2, atol=0)
    torch.testing.assert_close(as_floats(bits)[1, 1, 3, 0], tokens[2:, 2:, 6:].mean(), rtol=1e-2, atol=0)


def test_tokens_keep_their_bits_in_a_record_and_training_reads_them(tmp_path, record):
    tokens = torch.randn(5, 4, 4, 6, generator=torch.Generator().manual_seed(0)) * 100
    bits = prior.stacked(tokens)
    times = prior.slot_times(record.timestamps)
    assert times.tolist() == pytest.approx([1 / 3, 1.0, 4 / 3])
    path = tmp_path / "shard-000000" / f"{'0' * 64}.safetensors"
    path.parent.mkdir()
    save(replace(record, prior_features=bits, prior_times=times), path)
    np.testing.assert_array_equal(load(path, ["prior_features"]).prior_features, bits)
    parameters = TrainingParameters.from_mapping(
        {
            "geometry": {"prior": "tokens"},
            "naming_steps": 0,
            "grounding_steps": 0,
            "guidance": {entry.name: 0.0 for entry in fields(GuidanceParameters)},
        }
    )
    read = ClipStore(tmp_path, tmp_path, parameters).prior("shard-000000", "0" * 64, 1.0)
    np.testing.assert_array_equal(read.features, as_floats(bits)[:2].numpy())


def test_without_weights_the_next_estimator_has_the_clip():
    row = {"kind": "video"}
    parameters = GeometryParameters(estimators=("foundation", "classical"))
    assert choose(row, {}, parameters)[0] == "classical"
    only = GeometryParameters(estimators=("foundation",))
    assert choose(row, {}, only) is None
    job = SimpleNamespace(parameters=only, clip=SimpleNamespace(row=row))
    assert "no weights, name them under geometry.foundation" in cache._unsupported(job)


TINY_PI3 = {"width": 16, "heads": 2, "encoder_depth": 1, "decoder_depth": 2, "task_depth": 1} | {
    "camera_width": 8,
    "position_grid": 4,
}


def flat_pi3() -> dict[str, torch.Tensor]:
    """Random weights of a network that sees a wall: depth 1 everywhere, confidence 0.88, a camera that moves."""
    torch.manual_seed(2)
    weights = {name: torch.randn_like(tensor) * 0.3 for name, tensor in Pi3(Pi3Config(**TINY_PI3)).state_dict().items()}
    for head in ("point_head", "conf_head"):
        weights[f"{head}.proj.weight"].zero_()
        weights[f"{head}.proj.bias"].fill_(2.0 if head == "conf_head" else 0.0)
    weights["point_head.proj.bias"][: 2 * 14 * 14] = torch.linspace(-0.5, 0.5, 14).repeat(28)
    return weights


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, str]:
    """Checkpoints of all networks, tiny and random, in the published layouts."""
    root = tmp_path_factory.mktemp("weights")
    folders = {name: root / name for name in ("pi3", "detector", "segmenter", "orientation")}
    tiny_detector().save_pretrained(folders["detector"])
    tiny_tokenizer().save_pretrained(folders["detector"])
    GroundingDinoImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(folders["detector"])
    tiny_segmenter().save_pretrained(folders["segmenter"])
    folders["pi3"].mkdir()
    save_file(flat_pi3(), folders["pi3"] / "model.safetensors")
    (folders["pi3"] / "config.json").write_text(json.dumps(TINY_PI3))
    folders["orientation"].mkdir()
    torch.save(random_checkpoint(TINY_ORIENTATION), folders["orientation"] / "dino_weight.pt")
    return {name: str(folder) for name, folder in folders.items()}


@pytest.fixture
def foundation(places, monkeypatch):
    """``foundation(**options)``: parameters that run the tiny networks."""
    sized = functools.partial(orient_anything.load_orient_anything, config=TINY_ORIENTATION)
    monkeypatch.setattr(orient_anything, "load_orient_anything", sized)
    thresholds = {"box_threshold": 0.01, "text_threshold": 0.01, "redetect_every": 6, "max_pixels": 42 * 56}
    looked_for = {"agents": ("dog", "car"), "objects": ("person",)}

    def parameters(**options) -> GeometryParameters:
        return GeometryParameters(
            estimators=("foundation", "classical"),
            max_objects=3,
            foundation=FoundationParameters(**{**places, **thresholds, **looked_for, **options}),
        )

    return parameters


@pytest.fixture
def same_networks(foundation, monkeypatch):
    """Every estimator of the test runs the networks that ``foundation()`` loads."""
    loaded = networks.load_networks(foundation().foundation, 3)
    monkeypatch.setattr(foundation_estimator, "load_networks", lambda options, max_objects: loaded)


def test_networks_make_a_whole_record(make_clip, world, foundation, tmp_path):
    clip = make_clip(world, indices=range(5), truth=False)
    parameters = foundation(prior_merge="stack")
    name, estimator = choose(clip.row, clip.companions, parameters)
    record = estimator.estimate(clip)
    assert name == "foundation" and record.status == "3d" and 1 <= len(record.names) <= 3
    np.testing.assert_array_equal(record.world_from_camera[0], np.eye(4))
    np.testing.assert_allclose(np.median(record.points[0, ..., 2]), prior.LENGTH_UNIT)
    np.testing.assert_allclose(np.unique(record.confidence), [1 / (1 + np.exp(-2.0))], rtol=1e-3)
    assert np.isfinite(record.intrinsics).all()
    seen = np.isfinite(record.boxes).all(-1)
    agents = np.isin(record.classes, ["dog", "car"])
    assert seen.any() and (record.is_agent == agents).all()
    assert (np.isfinite(record.forward_world).all(-1) == (seen & agents[:, None])).all()
    assert np.isfinite(record.centers_world[seen]).all() and np.isnan(record.centers_world[~seen]).all()
    assert record.prior_features.shape == (3, 2, 2, 128) and record.prior_features.dtype == np.uint16
    known = record.provenance
    assert known["error_model"]["measured"] is False and set(known["weights"]) == set(networks.WEIGHTS)
    assert all(len(digest) == 64 for digest in known["weights"].values())
    assert str(tmp_path.parent) not in json.dumps(known)
    save(record, tmp_path / "one.safetensors")
    save(estimator.estimate(clip), tmp_path / "two.safetensors")
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()


def test_the_prior_is_what_the_parameters_say(make_clip, world, foundation, same_networks):
    clip = make_clip(world, indices=range(3), truth=False)
    shapes = {}
    for kind, merge in (("decoder", "stack"), ("encoder", "mean"), ("cells", "stack")):
        parameters = foundation(prior=kind, prior_merge=merge)
        record = choose(clip.row, {}, parameters)[1].estimate(clip)
        shapes[kind, merge] = record.prior_features.shape
        assert len(record.prior_times) == 2
    assert shapes["decoder", "stack"] == (2, 2, 2, 256) and shapes["encoder", "mean"] == (2, 3, 4, 16)
    assert shapes["cells", "stack"][-1] == prior.CHANNELS


@pytest.fixture
def run(make_shard, world, tmp_path):
    """``run(parameters, **how)``: estimate a shard of two clips; the rows of its table."""
    short = replace(world, frames=world.frames[:2], truth={"timestamps": world.truth["timestamps"][:2]})
    shard = make_shard([short] * 2)

    def estimate(parameters, **how):
        cache.estimate_shard(*shard, tmp_path / "out", "shard-000000", parameters, **how)
        return pq.read_table(tmp_path / "out" / "scenes.parquet").to_pylist()

    return estimate


def test_networks_are_loaded_once_and_records_are_kept_where_weights_only_moved(run, foundation, tmp_path, monkeypatch):
    networks.load_networks.cache_clear()
    assert [row["estimator"] for row in run(foundation())] == ["foundation"] * 2
    assert networks.load_networks.cache_info().misses == 1
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.safetensors")}
    (tmp_path / "moved").symlink_to(foundation().foundation.pi3)
    monkeypatch.setattr(foundation_estimator, "load_networks", None)
    run(foundation(pi3=str(tmp_path / "moved")))
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


def other_weights(folder):
    folder.mkdir()
    save_file({name: tensor + 0.01 for name, tensor in flat_pi3().items()}, folder / "model.safetensors")


def truncated_weights(folder):
    folder.mkdir()
    save_file(flat_pi3(), folder / "model.safetensors")
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def test_other_weights_are_another_identity(foundation, tmp_path):
    other_weights(tmp_path / "other")
    identities = {
        choose({"kind": "video"}, {}, parameters)[1].identity()
        for parameters in (foundation(), foundation(device="cuda"), foundation(pi3=str(tmp_path / "other")))
    }
    assert len(identities) == 2


@pytest.mark.parametrize("harm", ["missing", "truncated"])
def test_weights_that_fail_stop_the_run_and_refuse_no_clip(run, foundation, tmp_path, harm):
    if harm == "truncated":
        truncated_weights(tmp_path / "broken")
    with pytest.raises(SetupError, match=r"geometry\.foundation: .*broken") as caught:
        run(foundation(pi3=str(tmp_path / "broken")))
    assert "\n" not in str(caught.value) and not list((tmp_path / "out").glob("*.safetensors"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_a_card_that_is_not_there_stops_the_run(run, foundation, tmp_path):
    with pytest.raises(SetupError, match=r"geometry\.foundation\.device: cuda, but torch sees no card"):
        run(foundation(device="cuda"))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("2 GiB"), torch.AcceleratorError("lost\nit")])
def test_a_card_that_fails_is_no_clips_fault(error):
    with (
        pytest.raises(SetupError, match=r"^geometry\.foundation: the card") as caught,
        networks.machine_answers_for_failures(),
    ):
        raise error
    assert "\n" not in str(caught.value)


def test_networks_run_in_one_process_however_many_workers_there_are(foundation, monkeypatch, tmp_path):
    asked = []

    def remember(jobs, workers):
        asked.append(([job.clip.row["kind"] for job in jobs], workers))
        yield from ((job, False) for job in jobs)

    monkeypatch.setattr(cache, "_run_in_processes", remember)
    parameters = foundation().model_copy(update={"estimators": ("foundation", "annotated")})
    rows = [{"kind": "video"}, {"kind": "av2"}, {"kind": "video"}]
    jobs = [
        cache.Job(
            cache.Clip(row, tmp_path, {"pose": tmp_path} if row["kind"] == "av2" else {}, None),
            (),
            tmp_path,
            parameters,
        )
        for row in rows
    ]
    assert len(list(cache._run(jobs, 4))) == 3
    assert asked == [(["av2"], 4), (["video"] * 2, 1)]


def test_a_caption_decides_what_is_looked_for(make_clip, world, foundation, same_networks, tmp_path):
    server = Server()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    server.script[:] = [(200, completion('{"agents": ["person"], "objects": ["sports car"]}'), {}, 0.0)]
    endpoint = {"url": server.url, "model": "m", "answers": str(tmp_path / "answers")}
    (tmp_path / "caption.txt").write_text("a person beside a sports car")
    clip = replace(make_clip(world, indices=range(2), truth=False), companions={"caption": tmp_path / "caption.txt"})
    record = choose(clip.row, {}, foundation(endpoint=endpoint))[1].estimate(clip)
    assert record.provenance["looked_for"] == {"agents": ["person"], "objects": ["sports car"]}
    assert record.provenance["classes_from"] == "caption" and set(record.classes) <= {"person", "sports car"}
    assert len(server.seen) == 1 and len(list((tmp_path / "answers").iterdir())) == 1
    server.shutdown()
    server.server_close()


def test_an_endpoint_that_is_down_stops_the_run(make_clip, world, foundation, tmp_path):
    (tmp_path / "caption.txt").write_text("a dog")
    clip = replace(make_clip(world, indices=range(2), truth=False), companions={"caption": tmp_path / "caption.txt"})
    endpoint = {"url": "http://127.0.0.1:9/v1", "model": "m", "attempts": 1, "answers": str(tmp_path / "answers")}
    with pytest.raises(SetupError, match=r"127\.0\.0\.1:9/v1: no connection"):
        choose(clip.row, {}, foundation(endpoint=endpoint))[1].estimate(clip)
