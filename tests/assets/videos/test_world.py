import json

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from assets.videos.parameters import SampleWorldParameters
from assets.videos.reader import read_clip
from assets.videos.scenery import CAMERAS, draw_scene, project
from assets.videos.shards import ShardError, read_manifest, verify_shard
from assets.videos.world import render_shard
from tests.assets.videos.conftest import TINY_WORLD

SHARD = "shard-000003"


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def truth_of(shard, clip):
    path = clip.companion_path(shard, "truth")
    with safe_open(str(path), "np") as file:
        return load_file(path), json.loads(file.metadata()["record"])


def test_another_run_with_other_workers_gives_the_same_bytes(world_shard, tmp_path):
    again = tmp_path / SHARD
    render_shard(SHARD, TINY_WORLD, again, workers=2)
    assert contents(again) == contents(world_shard)
    verify_shard(again)


def test_a_clip_depends_on_its_number_and_not_on_how_many_there_are(world_shard, tmp_path):
    fewer = tmp_path / SHARD
    render_shard(SHARD, TINY_WORLD.model_copy(update={"clips": 2}), fewer)
    assert read_manifest(fewer) == read_manifest(world_shard)[:2]


def test_rendering_replaces_what_a_killed_run_left(world_shard, tmp_path):
    (tmp_path / f".{SHARD}.partial").mkdir()
    (tmp_path / f".{SHARD}.partial" / "half.mp4").write_bytes(b"x")
    (tmp_path / SHARD).mkdir()
    (tmp_path / SHARD / "stale").write_bytes(b"x")
    render_shard(SHARD, TINY_WORLD, tmp_path / SHARD)
    assert contents(tmp_path / SHARD) == contents(world_shard)
    assert [path.name for path in tmp_path.iterdir()] == [SHARD]


def test_another_shard_or_seed_is_another_world(world_shard, tmp_path):
    one = TINY_WORLD.model_copy(update={"clips": 1})
    render_shard("shard-000004", one, tmp_path / "shard-000004")
    render_shard(SHARD, one.model_copy(update={"seed": 1}), tmp_path / SHARD)
    clips = {read_manifest(f)[0].clip for f in (world_shard, tmp_path / "shard-000004", tmp_path / SHARD)}
    assert len(clips) == 3


def test_a_key_that_is_none_is_refused(tmp_path):
    with pytest.raises(ShardError, match="no shard key"):
        render_shard("../escape", TINY_WORLD, tmp_path / "x")


def test_the_sidecar_is_as_documented(world_shard):
    frames, height, width = 12, TINY_WORLD.height, TINY_WORLD.width
    for clip in read_manifest(world_shard):
        truth, record = truth_of(world_shard, clip)
        things = len(record["names"])
        assert {name: (t.shape, str(t.dtype)) for name, t in truth.items()} == {
            "timestamps": ((frames,), "float64"),
            "intrinsics": ((3, 3), "float32"),
            "world_from_camera": ((frames, 4, 4), "float32"),
            "depth": ((frames, height, width), "float16"),
            "instances": ((frames, height, width), "uint8"),
            "centers_world": ((things, frames, 3), "float32"),
            "forward_world": ((things, frames, 3), "float32"),
        }
        assert things == len(set(record["names"])) == len(record["classes"]) == len(record["is_agent"])
        assert any(record["is_agent"])
        assert truth["instances"].max() <= things
        assert np.isfinite(truth["depth"]).all() and (truth["depth"] > 0).all()
        rotation = truth["world_from_camera"][:, :3, :3]
        assert np.abs(rotation @ rotation.transpose(0, 2, 1) - np.eye(3)).max() < 1e-5
        assert np.linalg.det(rotation) == pytest.approx(1, abs=1e-5)
        assert np.linalg.norm(truth["forward_world"], axis=-1) == pytest.approx(1, abs=1e-4)


def test_centres_project_into_their_masks_at_their_depth(world_shard):
    """Where the mask's thing is in front, its surface is nearer than its centre by less than its size."""
    hits = total = 0
    for clip in read_manifest(world_shard):
        truth, _ = truth_of(world_shard, clip)
        _, height, width = truth["depth"].shape
        for thing, centers in enumerate(truth["centers_world"]):
            pixels, depth = project(
                centers.astype(float), truth["world_from_camera"].astype(float), truth["intrinsics"]
            )
            x, y = np.round(pixels).astype(int).T
            seen = (depth > 0) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
            frame = np.flatnonzero(seen)
            owner = truth["instances"][frame, y[frame], x[frame]]
            surface = truth["depth"][frame, y[frame], x[frame]].astype(float)
            own = owner == thing + 1
            gap = depth[frame][own] - surface[own]
            assert (gap > 0).all() and (gap < 2.0).all()
            # Whatever else is seen there stands in front.
            assert (surface[~own] < depth[frame][~own]).all()
            hits, total = hits + own.sum(), total + len(frame)
    assert total > 100 and hits > 0.8 * total


def test_depth_and_poses_explain_the_static_world(world_shard):
    """Background points of one frame land, seen from another, where that frame's own depth says."""
    clip = read_manifest(world_shard)[CAMERAS.index("truck")]
    truth, _ = truth_of(world_shard, clip)
    height, width = truth["depth"].shape[1:]
    rows, columns = np.mgrid[4 : height - 4 : 3, 4 : width - 4 : 3].reshape(2, -1)
    static = truth["instances"][0, rows, columns] == 0
    rows, columns = rows[static], columns[static]
    rays = np.linalg.inv(truth["intrinsics"].astype(float)) @ np.stack([columns, rows, np.ones(len(rows))])
    first, last = truth["world_from_camera"][[0, -1]].astype(float)
    points = (first @ np.vstack([rays * truth["depth"][0, rows, columns].astype(float), np.ones(len(rows))]))[:3].T
    assert np.linalg.norm(first[:3, 3] - last[:3, 3]) > 1.5
    pixels, depth = project(points, np.broadcast_to(last, (len(points), 4, 4)), truth["intrinsics"])
    x, y = np.round(pixels).astype(int).T
    ahead = (depth > 0) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    there = truth["depth"][-1, y[ahead], x[ahead]].astype(float)
    assert ahead.sum() > 100
    assert np.median(np.abs(there - depth[ahead]) / depth[ahead]) < 0.02


def test_the_video_shows_what_the_sidecar_says(world_shard):
    """Time by time, and thing by thing: pixels of a red thing are red."""
    reddish = 0
    for clip in read_manifest(world_shard):
        probed, frames, chosen = read_clip(clip.path(world_shard), 100, 10**6, 20)
        truth, record = truth_of(world_shard, clip)
        assert np.array_equal(probed.timestamps[chosen], truth["timestamps"])
        assert frames.shape[1:3] == truth["depth"].shape[1:]
        for thing, name in enumerate(record["names"]):
            mask = truth["instances"] == thing + 1
            if name.split()[0] in ("red", "orange") and mask.sum() > 200:
                mean = frames[mask].mean(axis=0)
                assert mean[0] > 1.2 * mean[2]
                reddish += 1
    assert reddish


@pytest.mark.parametrize("number", range(12))
def test_scenes_hold_what_questions_need(number):
    parameters = SampleWorldParameters()
    scene = draw_scene("shard-000000", number, parameters)
    assert 3 <= len(scene.things) <= 5
    assert len({thing.name for thing in scene.things}) == len(scene.things)
    assert scene.camera == CAMERAS[number % len(CAMERAS)]
    moving = [thing.travelled[-1] for thing in scene.things if thing.travelled[-1] > 0.5]
    assert len(moving) >= 3
    assert max(moving) > 2 * min(moving)
    for thing in scene.things:
        step = np.linalg.norm(np.diff(thing.ground[:, :2], axis=0), axis=1)
        assert step.max() < 4.5 / parameters.fps
        assert np.abs(thing.ground[:, :2]).max() < scene.yard
    eye = scene.world_from_camera[:, :3, 3]
    assert np.abs(eye[:, :2]).max() < scene.yard
    if scene.camera in ("still", "pan"):
        assert np.ptp(eye, axis=0).max() == 0
    if scene.camera == "truck":
        assert np.abs(scene.world_from_camera[:, :3, :3] - scene.world_from_camera[0, :3, :3]).max() < 1e-5
