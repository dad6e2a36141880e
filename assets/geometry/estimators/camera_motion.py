"""Cameras and static points of a clip by pycolmap, with one unknown focal length.

Global mapping (GLOMAP: Pan et al., ECCV 2024) places all frames at once; where it does not, incremental mapping
(Schoenberger & Frahm, CVPR 2016) tries. Seeds are fixed and one thread works, so that a run repeats bit for bit.
"""

from __future__ import annotations

import signal
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

import cv2  # noqa: F401  loaded before pycolmap: the other order aborts the process where both write PNG
import numpy as np
import pycolmap

from assets.geometry.estimators import EstimateError
from assets.geometry.estimators.correspondences import Correspondences, intrinsics_of
from assets.geometry.frames_of_reference import inverse
from assets.geometry.parameters import ClassicalParameters

# Loading pycolmap takes SIGTERM away from whoever waits for it, such as a run that is to stop tidily.
if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is not None:
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))

SEED = 1
# The level from which pycolmap writes to stderr.
FATAL = 3
# The field of view of an ordinary camera (58 degrees) holds unless the picture says otherwise: a focal length e times
# as long must lower the cost of the reprojection errors by as much as this share. Things that move along the way of a
# camera that does not turn lower it by 2 %.
USUAL_SHARE, PRIOR_COST = 0.9, 0.3
# A robust cost grows linearly beyond this many px: moving things are not to bend the cameras.
ROBUST_PIXELS = 1.0
# A ground that fills the picture is no plane scene as long as this share of the matches leaves it: two cameras before
# a plane can be told in two ways, and the wrong one bends whole clips.
PLANE_SHARE = 0.95
# Two frames with fewer features in common say nothing of each other.
LEAST_MATCHES = 30
# Incremental mapping starts from two frames whose rays meet at this angle at least; a clip's camera hardly moves.
START_DEGREES = 4.0


@dataclass(frozen=True)
class CameraMotion:
    """A static scene and the cameras that saw it, in the first camera's frame, in the mapper's units.

    Attributes:
        intrinsics: (3, 3) px.
        world_from_camera: (T, 4, 4).
        points: (P, 3) static points.
        observed: (P, T) bool, frames that see each point.
        errors: (P,) root mean square reprojection error in px.
        angles: (P,) degrees between the outermost rays to each point.
        registered: share of the frames that were placed; the others' poses are between their neighbours'.
        epipolar: share of the matches that keep to an epipolar geometry, median of pairs.
        focal_weight: 0..1, how much of the focal length is the picture's word rather than the usual camera's.
        mapper: which one placed the cameras.
    """

    intrinsics: np.ndarray
    world_from_camera: np.ndarray
    points: np.ndarray
    observed: np.ndarray
    errors: np.ndarray
    angles: np.ndarray
    registered: float
    epipolar: float
    focal_weight: float
    mapper: str


def recover_cameras(found: Correspondences, parameters: ClassicalParameters) -> CameraMotion:
    """Cameras of all frames and the static points they see.

    Raises:
        EstimateError: with the reason, where the features do not support a model.
    """
    _quiet()
    geometries = _verified(found, parameters)
    epipolar = float(np.median([len(g.inlier_matches) / len(found.pairs[p]) for p, g in geometries.items()] or [0.0]))
    if epipolar < parameters.min_epipolar:
        raise EstimateError(
            f"weak model: {epipolar:.0%} of the matches keep to one camera motion, {parameters.min_epipolar:.0%} "
            "asked for"
        )
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder) / "matches.db"
        _write(database, found, geometries)
        mapper, model = _mapped(database, Path(folder), len(found.xy), parameters)
    model, weight = _settled(model)
    motion = _read(model, found, epipolar=epipolar, focal_weight=weight, mapper=mapper)
    _check(motion, parameters)
    return motion


def _quiet() -> None:
    """Keep pycolmap from writing its progress to stderr; mapping sets that back."""
    log = pycolmap.logging
    log.alsologtostderr, log.stderrthreshold, log.minloglevel = False, FATAL, FATAL


def _camera(size: tuple[int, int]) -> pycolmap.Camera:
    width, height = size
    model = pycolmap.CameraModelId.SIMPLE_PINHOLE
    camera = pycolmap.Camera.create_from_model_id(1, model, USUAL_SHARE * width, width, height)
    camera.has_prior_focal_length = True
    return camera


def _verified(
    found: Correspondences, parameters: ClassicalParameters
) -> dict[tuple[int, int], pycolmap.TwoViewGeometry]:
    """Two-view geometry of every pair with enough matches."""
    options = pycolmap.TwoViewGeometryOptions(compute_relative_pose=True, max_H_inlier_ratio=PLANE_SHARE)
    options.ransac.random_seed, options.ransac.max_error = SEED, parameters.inlier_pixels
    camera = _camera(found.size)
    geometries = {}
    for (i, j), rows in found.pairs.items():
        if len(rows) >= LEAST_MATCHES:
            # COLMAP's pixel centres are at halves.
            geometries[i, j] = pycolmap.estimate_two_view_geometry(
                camera, found.xy[i] + 0.5, camera, found.xy[j] + 0.5, rows.astype(np.uint32), options
            )
    return geometries


def _write(path: Path, found: Correspondences, geometries: dict[tuple[int, int], pycolmap.TwoViewGeometry]) -> None:
    """COLMAP's database of one camera, the features of every frame and the verified pairs."""
    database = pycolmap.Database.open(path)
    camera = _camera(found.size)
    database.write_camera(camera)
    rig = pycolmap.Rig(rig_id=1)
    rig.add_ref_sensor(camera.sensor_id)
    database.write_rig(rig)
    for number, xy in enumerate(found.xy, start=1):
        image = pycolmap.Image(name=f"{number:06d}", camera_id=1, image_id=number)
        database.write_image(image, use_image_id=True)
        frame = pycolmap.Frame(frame_id=number, rig_id=1)
        frame.add_data_id(image.data_id)
        database.write_frame(frame, use_frame_id=True)
        database.write_keypoints(number, (xy + 0.5).astype(np.float32))
    for (i, j), geometry in geometries.items():
        database.write_matches(i + 1, j + 1, found.pairs[i, j].astype(np.uint32))
        database.write_two_view_geometry(i + 1, j + 1, geometry)
    database.close()


def _mapped(
    database: Path, folder: Path, total: int, parameters: ClassicalParameters
) -> tuple[str, pycolmap.Reconstruction]:
    """Name and model of the first mapper that places enough frames and points; the global one comes first.

    Raises:
        EstimateError: neither does.
    """
    most = (0, 0)
    for name, run in (("global", _map_globally), ("incremental", _map_incrementally)):
        for _, model in sorted(run(database, folder).items()):
            placed, points = model.num_reg_images(), model.num_points3D()
            if placed >= parameters.min_registered * total and points >= parameters.min_points:
                return name, model
            most = max(most, (placed, points))
    raise EstimateError(
        f"weak model: {most[0]} of {total} frames and {most[1]} points could be placed, "
        f"{parameters.min_registered:.0%} and {parameters.min_points} asked for"
    )


def _map_globally(database: Path, folder: Path) -> dict[int, pycolmap.Reconstruction]:
    options = pycolmap.GlobalPipelineOptions(num_threads=1, random_seed=SEED, multiple_models=False)
    mapper = options.mapper
    mapper.num_threads = 1
    for part in (mapper, mapper.rotation_averaging, mapper.global_positioning, mapper.retriangulation):
        part.random_seed = SEED
    mapper.global_positioning.use_gpu = mapper.bundle_adjustment.ceres.use_gpu = False
    mapper.bundle_adjustment.ceres.solver_options.num_threads = 1
    mapper.bundle_adjustment.refine_focal_length = False
    return pycolmap.global_mapping(database, folder, folder, options)


def _map_incrementally(database: Path, folder: Path) -> dict[int, pycolmap.Reconstruction]:
    options = pycolmap.IncrementalPipelineOptions(
        num_threads=1, random_seed=SEED, multiple_models=False, extract_colors=False, ba_refine_focal_length=False
    )
    options.mapper.num_threads, options.mapper.random_seed = 1, SEED
    options.mapper.init_min_tri_angle = START_DEGREES
    options.mapper.abs_pose_refine_focal_length = False
    options.triangulation.random_seed = SEED
    return pycolmap.incremental_mapping(database, folder, folder, options)


def _settled(model: pycolmap.Reconstruction) -> tuple[pycolmap.Reconstruction, float]:
    """The model refined with the focal length that the picture and the usual field of view together make likely.

    The cost is taken as a parabola of the logarithm of the focal length through its free minimum and its value at the
    usual focal length; where a camera does not turn, that parabola is flat and the usual focal length stays.

    Returns:
        The model, and 0..1 the picture's share in its focal length.
    """
    usual, free = pycolmap.Reconstruction(model), pycolmap.Reconstruction(model)
    start = float(np.log(_adjust(usual, USUAL_SHARE * model.cameras[1].width)))
    length = float(np.log(_adjust(free, None)))
    lowest = _cost(free)
    curvature = max(_cost(usual) - lowest, 0.0) / max((length - start) ** 2, 1e-6)
    weight = curvature / (curvature + PRIOR_COST * lowest + 1e-12)
    settled = usual if weight < 0.5 else free
    _adjust(settled, np.exp(start + weight * (length - start)))
    return settled, weight


def _adjust(model: pycolmap.Reconstruction, focal: float | None) -> float:
    """Robust bundle adjustment of a model in place, with this focal length in px, or a free one; returns it."""
    camera = model.cameras[1]
    if focal is not None:
        camera.params = [focal, *camera.params[1:]]
    options = pycolmap.BundleAdjustmentOptions(refine_focal_length=focal is None, print_summary=False)
    ceres = options.ceres
    ceres.loss_function_type, ceres.loss_function_scale = pycolmap.LossFunctionType.HUBER, ROBUST_PIXELS
    ceres.solver_options.num_threads, ceres.solver_options.max_num_iterations = 1, 50
    ceres.solver_options.function_tolerance = 1e-5
    config = pycolmap.BundleAdjustmentConfig()
    for image in sorted(model.reg_image_ids()):
        config.add_image(image)
    config.fix_gauge(pycolmap.BundleAdjustmentGauge.TWO_CAMS_FROM_WORLD)
    pycolmap.create_default_bundle_adjuster(options, config, model).solve()
    return float(camera.params[0])


def _cost(model: pycolmap.Reconstruction) -> float:
    """Sum over all observations of Huber's loss of the reprojection error, px^2."""
    total = 0.0
    for image in (model.image(i) for i in model.reg_image_ids()):
        seen = [p for p in image.points2D if p.has_point3D()]
        local = image.cam_from_world() * np.array([model.point3D(p.point3D_id).xyz for p in seen]).reshape(-1, 3)
        projected = image.camera.img_from_cam(local)
        error = np.linalg.norm(projected - np.array([p.xy for p in seen]).reshape(-1, 2), axis=1)
        error = np.where(np.isfinite(error), error, 100.0)
        total += np.where(error < ROBUST_PIXELS, error**2, ROBUST_PIXELS * (2 * error - ROBUST_PIXELS)).sum()
    return float(total)


def _read(model: pycolmap.Reconstruction, found: Correspondences, **figures) -> CameraMotion:
    """The model as arrays, in the first camera's frame."""
    total = len(found.xy)
    placed = {i - 1: model.image(i).cam_from_world().matrix() for i in model.reg_image_ids()}
    camera_from_model = _completed(placed, total)
    world_from_model = camera_from_model[0]
    ids = sorted(model.points3D)
    points = np.array([model.point3D(i).xyz for i in ids]).reshape(-1, 3)
    observed = np.zeros((len(ids), total), bool)
    for row, point in enumerate(ids):
        observed[row, [element.image_id - 1 for element in model.point3D(point).track.elements]] = True
    points = points @ world_from_model[:3, :3].T + world_from_model[:3, 3]
    poses = world_from_model @ inverse(camera_from_model)
    poses[0] = np.eye(4)
    model.update_point_3d_errors()
    return CameraMotion(
        intrinsics=intrinsics_of(*found.size, float(model.cameras[1].params[0])),
        world_from_camera=poses,
        points=points,
        observed=observed,
        errors=np.array([model.point3D(i).error for i in ids]),
        angles=ray_angles(points, poses[:, :3, 3], observed),
        registered=len(placed) / total,
        **figures,
    )


def _completed(placed: dict[int, np.ndarray], total: int) -> np.ndarray:
    """(T, 4, 4) camera_from_world; a frame that was not placed lies between its neighbours that were."""
    from scipy.spatial.transform import Rotation, Slerp

    known = np.array(sorted(placed))
    cameras = np.tile(np.eye(4), (total, 1, 1))
    cameras[known, :3] = [placed[t] for t in known]
    poses = inverse(cameras)
    wanted = np.arange(total).clip(known[0], known[-1])
    turns = Slerp(known, Rotation.from_matrix(poses[known, :3, :3]))(wanted).as_matrix()
    places = np.stack([np.interp(wanted, known, poses[known, k, 3]) for k in range(3)], -1)
    between = np.setdiff1d(np.arange(total), known)
    poses[between, :3, :3], poses[between, :3, 3] = turns[between], places[between]
    return inverse(poses)


def ray_angles(points: np.ndarray, positions: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """(P,) degrees between the rays from the first and from the last of (T, 3) positions that sees each point."""
    first, last = observed.argmax(1), observed.shape[1] - 1 - observed[:, ::-1].argmax(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        a, b = points - positions[first], points - positions[last]
        cosine = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return np.degrees(np.arccos(np.clip(cosine, -1, 1)))


def forward_share(world_from_camera: np.ndarray) -> float:
    """Median cosine, without sign, between the camera's optical axis and the way it goes, over steps of the path."""
    steps = np.diff(world_from_camera[:, :3, 3], axis=0)
    lengths = np.linalg.norm(steps, axis=1)
    cosine = np.abs((steps * world_from_camera[:-1, :3, 2]).sum(1)) / np.maximum(lengths, 1e-12)
    return float(np.median(cosine[lengths >= np.median(lengths)]))


def _check(motion: CameraMotion, parameters: ClassicalParameters) -> None:
    """Raise ``EstimateError`` where a model is too weak to be believed."""
    angle, error = float(np.median(motion.angles)), float(np.median(motion.errors))
    focal = float(motion.intrinsics[0, 0] / (2 * motion.intrinsics[0, 2] + 1))
    forward = forward_share(motion.world_from_camera)
    if angle < parameters.min_angle:
        raise EstimateError(
            f"weak model: median triangulation angle {angle:.1f} degrees, {parameters.min_angle:g} asked for"
        )
    if error > parameters.inlier_pixels:
        raise EstimateError(
            f"weak model: median reprojection error {error:.2f} px, {parameters.inlier_pixels:g} allowed"
        )
    if not 0.5 <= focal <= 2:
        raise EstimateError(f"weak model: a focal length of {focal:.2f} widths, 0.5 to 2 are believed")
    if forward > parameters.forward_cosine and motion.focal_weight < 0.5:
        raise EstimateError(
            "forward motion: the camera goes where it looks and hardly turns, its focal length cannot be told"
        )
