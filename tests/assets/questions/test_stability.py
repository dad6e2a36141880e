import numpy as np

from assets.questions.candidates import scene_of
from assets.questions.parameters import QuestionParameters
from assets.questions.stability import noisy, shares

from .conftest import synthetic_record

PARAMETERS = QuestionParameters(draws=400, center_floor=0.0, heading_floor_degrees=0.0)


def test_noise_has_the_spread_that_the_error_model_says():
    scene = scene_of(synthetic_record(1), 0.6)
    drawn = noisy(scene, {"center": 0.05, "position_floor": 0.1, "heading_deg": 5.0}, PARAMETERS, 0)
    distance = np.linalg.norm(scene.positions[0, :-1] - scene.positions[0, -1:], axis=-1)
    spread = (drawn.positions - scene.positions)[:, :-1].std(axis=(0, 3))
    assert np.allclose(spread, 0.05 * distance + 0.1, rtol=0.15)
    agent = np.flatnonzero(np.isfinite(scene.axes[0, :-1, 0, 0, 0]))[0]
    cosine = np.einsum("ktj,tj->kt", drawn.axes[:, agent, :, 0], scene.axes[0, agent, :, 0])
    assert np.isclose(np.degrees(np.arccos(np.clip(cosine, -1, 1))).std(), 5 * np.sqrt(1 - 2 / np.pi), rtol=0.15)


def test_noise_keeps_axes_orthonormal_and_the_camera_in_place():
    scene = scene_of(synthetic_record(2), 0.6)
    drawn = noisy(scene, {"center": 0.05, "heading_deg": 10.0}, PARAMETERS, 3)
    assert np.array_equal(drawn.positions[7, -1], scene.positions[0, -1])
    seen = drawn.axes[np.isfinite(drawn.axes).all(axis=(-2, -1))]
    assert np.allclose(seen @ np.swapaxes(seen, -1, -2), np.eye(3), atol=1e-6)


def test_correlated_noise_moves_a_thing_as_a_whole():
    scene = scene_of(synthetic_record(2), 0.6)
    for correlation, together in ((1.0, True), (0.0, False)):
        parameters = PARAMETERS.model_copy(update={"noise_correlation": correlation})
        drawn = noisy(scene, {"position_floor": 0.1}, parameters, 3)
        offsets = (drawn.positions - scene.positions)[:, 0]
        assert np.allclose(offsets, offsets[:, :1]) is together


def test_draws_depend_on_the_seed_alone():
    scene = scene_of(synthetic_record(2), 0.6)
    one, same, other = (noisy(scene, {"center": 0.05}, PARAMETERS, seed).positions for seed in (1, 1, 2))
    assert np.array_equal(one, same, equal_nan=True) and not np.array_equal(one, other, equal_nan=True)


def test_an_unknown_error_counts_as_none():
    scene = scene_of(synthetic_record(2), 0.6)
    drawn = noisy(scene, {"center": None, "heading_deg": None, "position_floor": None}, PARAMETERS, 1)
    assert np.allclose(drawn.positions, scene.positions, equal_nan=True)


def test_shares_count_draws_that_say_the_same():
    reference = np.array([[0, 1, -1], [2, -1, -1]])
    draws = np.stack([reference, reference, reference, [[0, 1, 2], [2, -1, -1]]])
    assert shares(draws, reference).tolist() == [0.75, 1.0]
