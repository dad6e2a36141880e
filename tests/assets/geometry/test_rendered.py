import dataclasses

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from assets.geometry.estimators import EstimateError, choose
from assets.geometry.estimators.rendered import Rendered
from assets.geometry.frames_of_reference import inverse, transform
from assets.geometry.grid import cell_pixels
from assets.geometry.record import decode_mask


@pytest.fixture
def estimate(parameters, make_clip):
    return lambda world, **how: Rendered(parameters).estimate(make_clip(world, **how))


def projected(record, points):
    """Pixels of (N, T, 3) world points."""
    local = transform(inverse(record.world_from_camera), points)
    homogeneous = np.einsum("tij,ntj->nti", record.intrinsics, local)
    return homogeneous[..., :2] / homogeneous[..., 2:]


def test_a_clip_with_a_sidecar_is_rendered(parameters, make_clip, world):
    clip = make_clip(world)
    assert choose(clip.row, clip.companions, parameters)[0] == "rendered"
    assert choose(clip.row, {}, parameters)[0] == "classical"
    assert choose({"kind": "kitti"}, {}, parameters) is None


@pytest.mark.parametrize("indices, size", [(None, None), ([1, 4, 9], None), ([0, 3, 5, 11], (36, 48))])
def test_centres_project_into_their_masks(estimate, world, indices, size):
    record = estimate(world, indices=indices, size=size)
    pixels = projected(record, record.centers_world)
    seen = np.isfinite(record.centers_world).all(-1)
    assert seen.any(1).all()
    inside = [
        decode_mask(record.masks[i][t])[round(pixels[i, t, 1]), round(pixels[i, t, 0])]
        for i, t in zip(*np.nonzero(seen), strict=True)
        if (pixels[i, t] > 1).all() and (pixels[i, t] < np.array(record.frame_size)[::-1] - 2).all()
    ]
    # The crate stands behind the robot for a while; where both are seen, the robot's centre is never hidden.
    assert np.mean(inside) > 0.8


def test_the_world_is_the_first_sampled_camera(estimate, world):
    record = estimate(world, indices=[2, 5, 8])
    assert np.array_equal(record.world_from_camera[0], np.eye(4))
    truth = world.truth["world_from_camera"][[2, 5, 8]].astype(float)
    assert np.allclose(record.world_from_camera, inverse(truth[0]) @ truth, atol=2e-5)
    expected = transform(inverse(truth[0]), world.truth["centers_world"][0, [2, 5, 8]])
    assert np.allclose(record.centers_world[0], expected, atol=1e-4)
    assert np.allclose(record.forward_world[0], inverse(truth[0])[:3, :3] @ [1, 0, 0], atol=2e-5)
    assert np.isnan(record.forward_world[1]).all() and not record.forward_confidence[1].any()
    assert np.allclose(record.provenance["up_world"], inverse(truth[0])[:3, :3] @ [0, 0, 1], atol=1e-5)


def test_points_lie_on_the_rendered_surfaces(estimate, world):
    """Ground at height 0, back wall 10 m ahead, in the sidecar's own world; depth is float16."""
    record = estimate(world, size=(36, 48))
    world_of_truth = world.truth["world_from_camera"].astype(float)
    places = transform(world_of_truth[:, None, None], record.points)
    rows = cell_pixels(48, 36)[cell_pixels(36, record.points.shape[1])]
    columns = cell_pixels(64, 48)[cell_pixels(48, record.points.shape[2])]
    free = world.truth["instances"][:, rows[:, None], columns] == 0
    off = np.minimum(np.abs(places[..., 2]), np.abs(places[..., 1] - 10.0))
    assert (record.confidence == 1).all()
    assert np.quantile(off[free], 0.99) < 0.02


def test_a_hidden_object_is_not_seen(estimate, world):
    truth = world.truth | {"instances": np.where(world.truth["instances"] == 2, 0, world.truth["instances"])}
    truth["instances"][3] = 0
    truth["instances"][4].flat[:3] = 1
    record = estimate(dataclasses.replace(world, truth=truth))
    assert np.isnan(record.centers_world[1]).all() and np.isnan(record.boxes[1]).all()
    assert np.isnan(record.centers_world[0, 3]).all() and not decode_mask(record.masks[0][3]).any()


def test_a_mask_of_a_few_pixels_counts_as_not_seen(parameters, make_clip, world):
    strict = parameters.model_copy(update={"min_pixels": 10**6})
    record = Rendered(strict).estimate(make_clip(world))
    assert np.isnan(record.centers_world).all()


def test_the_boxes_are_those_of_the_masks(estimate, world):
    record = estimate(world)
    x1, y1, x2, y2 = record.boxes[0, 0].astype(int)
    mask = decode_mask(record.masks[0][0])
    assert mask[y1:y2, x1:x2].sum() == mask.sum() > 0
    assert np.array_equal(mask, world.truth["instances"][0] == 1)


def test_the_sidecar_of_another_video_is_refused(parameters, make_clip, world):
    clip = make_clip(world)
    stored = load_file(clip.frames_file)
    for change, message in (
        ({"timestamps": stored["timestamps"] + 0.5}, "clock"),
        ({"indices": stored["indices"] + 3}, "14"),
    ):
        save_file(stored | change, clip.frames_file)
        with pytest.raises(EstimateError, match=message):
            Rendered(parameters).estimate(dataclasses.replace(clip))


def test_a_damaged_sidecar_is_refused(parameters, make_clip, world):
    clip = make_clip(world)
    path = clip.companions["truth"]
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(EstimateError, match="damaged"):
        Rendered(parameters).estimate(clip)


def test_missing_frames_are_refused(parameters, make_clip, world):
    clip = make_clip(world)
    clip.frames_file.unlink()
    with pytest.raises(EstimateError, match="prepare"):
        Rendered(parameters).estimate(clip)
