"""Does an answer stand when the geometry is off by as much as it is expected to be?"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from assets.questions.parameters import QuestionParameters
from assets.questions.states import Scene


def noisy(scene: Scene, error_model: Mapping[str, float | None], parameters: QuestionParameters, seed: int) -> Scene:
    """Draw scenes that the estimator could as well have meant.

    Centres move by a normal error whose standard deviation per axis is ``center`` times the distance from the camera
    plus ``position_floor``; headings turn about the viewer's up by ``heading_deg``. ``noise_correlation`` of the
    variance is one draw per object and clip (a wrong scale or size), the rest one per frame. The camera stays put: the
    error model is relative to it.

    Args:
        scene: one scene, K = 1.
        error_model: ``center`` (share), ``position_floor`` (scene units), ``heading_deg`` (degrees); missing or
            None counts as 0.
        parameters: number of draws, floors and correlation.
        seed: derived from the clip.

    Returns:
        A scene with K = ``parameters.draws``.
    """
    rng = np.random.default_rng(seed)
    objects, frames = scene.camera, len(scene.times)
    common, own = np.sqrt(parameters.noise_correlation), np.sqrt(1 - parameters.noise_correlation)

    def normal(*shape: int) -> np.ndarray:
        per_clip = rng.standard_normal((parameters.draws, objects, 1, *shape))
        per_frame = rng.standard_normal((parameters.draws, objects, frames, *shape))
        return common * per_clip + own * per_frame

    centers, cameras = scene.positions[:, :-1], scene.positions[:, -1:]
    distance = np.linalg.norm(centers - cameras, axis=-1, keepdims=True)
    share = max(float(error_model.get("center") or 0.0), parameters.center_floor)
    sigma = share * distance + float(error_model.get("position_floor") or 0.0)
    heading = max(float(error_model.get("heading_deg") or 0.0), parameters.heading_floor_degrees)
    positions = np.repeat(scene.positions, parameters.draws, axis=0)
    positions[:, :-1] += sigma * normal(3)
    axes = np.repeat(scene.axes, parameters.draws, axis=0)
    axes[:, :-1] = _about_up(np.radians(heading) * normal()) @ axes[:, :-1]
    return replace(scene, positions=positions, axes=axes)


def _about_up(angle: np.ndarray) -> np.ndarray:
    """(…) radians to (…,3,3) rotations of viewer axes (rows forward, left, up) about up."""
    cosine, sine, zero = np.cos(angle), np.sin(angle), np.zeros_like(angle)
    rows = [[cosine, sine, zero], [-sine, cosine, zero], [zero, zero, zero + 1]]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def shares(meanings: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Share of draws (K,n,L) that say the same as the reference (n,L): (n,)."""
    return (meanings == reference[None]).all(axis=-1).mean(axis=0)
