"""Against truth about real scenes: a kitchen with known depth and poses, masks of real things, driving logs.

The files lie in ``shared/data/truth`` and ``shared/data/videos`` beside the repository; nothing of them may be kept in
it. Where they are missing, a figure has no value and says so.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from assets.geometry.estimators import Clip, build
from assets.geometry.estimators.annotated import Annotated, read_kitti
from assets.geometry.parameters import ClassicalParameters, GeometryParameters
from assets.geometry.record import SceneRecord
from assets.processes import processes
from assets.videos.parameters import VideoParameters
from assets.videos.reader import read_clip, read_frames
from benchmarks.figure import Figure
from benchmarks.geometry.accuracy import WORKERS, align, depth_error, mask_iou, masks_of, rmse, rotation_error

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
# Windows of 32 frames, every fifth of the video; depth exists at every 15th frame, so at every third of a window.
WINDOW, STRIDE, DEPTH_STEP = 32, 5, 15
WINDOW_STARTS = range(0, 1000 - WINDOW * STRIDE + STRIDE, 165)
# Pixels, and metres to the right of the depth camera: where the colour camera must be for a surface to have the same
# colour in frames half a second apart (least photometric difference over 16 pairs of frames; grid of 10 px).
DEPTH_FOCAL, COLOUR_FOCAL, COLOUR_SHIFT, KITCHEN_SIZE = 585.0, 514.0, 0.0255, (480, 640)
DAVIS = ("tennis", "schoolgirls", "bmx-trees")


def figures() -> dict[str, Figure]:
    """Figures against real truth, each null where its files are not at hand."""
    return _kitchen() | {
        "davis_mask_iou": _davis(),
        "argoverse_heading_deg": _or_missing(
            "truth/av2", 3.0, "lower", "deg", "heading against direction of motion, median", argoverse_headings
        ),
        "kitti_box_iou": _or_missing(
            "truth/kitti_tracking",
            0.97,
            "higher",
            "IoU",
            "projected 3D boxes against 2D boxes of the same label, median",
            kitti_overlaps,
        ),
    }


def _or_missing(
    where: str, bound: float, better: str, unit: str, how: str, measure: Callable[[Path], np.ndarray]
) -> Figure:
    """Median of what is measured on a folder of real data, or why there is none."""
    if not (DATA / where).is_dir():
        return Figure(None, bound, better, unit, _missing(where))
    values = measure(DATA / where)
    return Figure(float(np.median(values)), bound, better, unit, f"{how} of {len(values)}")


def _missing(where: str) -> str:
    return f"shared/data/{where} is not beside this checkout"


def _kitchen() -> dict[str, Figure]:
    """Poses and depth of the classical estimator on windows of a real, static room."""
    names = ("kitchen_rotation_error_deg", "kitchen_trajectory_error", "kitchen_depth_error", "kitchen_depth_coverage")
    units, better = ("deg", "share", "share", "share"), ("lower", "lower", "lower", "higher")
    folder = DATA / "truth" / "7scenes_redkitchen"
    if not folder.is_dir():
        how, medians = _missing("truth/7scenes_redkitchen"), [None] * len(names)
    else:
        with processes(WORKERS) as pool:
            scores = list(pool.map(partial(score_window, folder), WINDOW_STARTS))
        accepted = np.array([score for score in scores if not isinstance(score, str)])
        refused = [score for score in scores if isinstance(score, str)]
        how = "; ".join([f"median of {len(accepted)} of {len(scores)} windows of 32 frames", *refused])
        medians = np.median(accepted, axis=0).tolist() if len(accepted) else [None] * len(names)
    return {
        name: Figure(value, None, side, unit, how)
        for name, value, side, unit in zip(names, medians, better, units, strict=True)
    }


def score_window(folder: Path, start: int) -> tuple[float, float, float, float] | str:
    """Rotation error (deg), trajectory error (share), depth error (share) and coverage of a window, or its refusal.

    Nothing moves in the room, so a clip in which nothing moves is asked for.
    """
    indices = start + STRIDE * np.arange(WINDOW)
    video = folder / "redkitchen_1000f_30fps.mp4"
    frames, times = read_frames(video, indices, VideoParameters().max_pixels, "decord")
    parameters = GeometryParameters(estimators=("classical",), classical=ClassicalParameters(require_motion=False))
    record = estimate(frames, times, f"{video.stem} {start}", parameters)
    if record.status != "3d":
        return f"{start}: {record.provenance['reason']}"
    poses, true_poses = record.world_from_camera.astype(float), kitchen_poses(folder)[indices]
    aligned = align(poses[:, :3, 3], true_poses[:, :3, 3])[1]
    path = np.linalg.norm(np.diff(true_poses[:, :3, 3], axis=0), axis=1).sum()
    depth = np.stack([_kitchen_depth(folder, index) for index in indices])
    return (
        rotation_error(poses, true_poses),
        rmse(aligned, true_poses[:, :3, 3]) / path,
        *depth_error(record, depth, depth > 0),
    )


def kitchen_poses(folder: Path) -> np.ndarray:
    """(F, 4, 4) world_from_camera of the colour camera.

    The published rotations are no rotations but averages of some; the nearest one is taken (SVD).
    """
    poses = np.loadtxt(folder / "all_poses_c2w_rowmajor.txt").reshape(-1, 4, 4)
    u, _, vt = np.linalg.svd(poses[:, :3, :3])
    poses[:, :3, :3] = u @ vt
    poses[:, :3, 3] += COLOUR_SHIFT * poses[:, :3, 0]
    return poses


def _kitchen_depth(folder: Path, index: int) -> np.ndarray:
    """(H, W) metres along the optical axis of the colour camera, 0 where unknown; only every 15th frame has depth.

    Every point that the depth camera saw is seen by the colour camera; the nearest in a pixel counts.
    """
    import cv2

    depth = np.zeros(KITCHEN_SIZE)
    if index % DEPTH_STEP:
        return depth
    millimetres = cv2.imread(str(folder / f"frame-{index:06d}.depth.png"), cv2.IMREAD_UNCHANGED)
    rows, columns = np.nonzero((millimetres > 0) & (millimetres < 65535))
    z = millimetres[rows, columns] / 1000
    middle = np.array(KITCHEN_SIZE) / 2
    x = (columns - middle[1]) * z / DEPTH_FOCAL - COLOUR_SHIFT
    column = np.round(x / z * COLOUR_FOCAL + middle[1]).astype(int)
    row = np.round((rows - middle[0]) / DEPTH_FOCAL * COLOUR_FOCAL + middle[0]).astype(int)
    inside = (column >= 0) & (column < KITCHEN_SIZE[1]) & (row >= 0) & (row < KITCHEN_SIZE[0])
    order = np.flatnonzero(inside)[np.argsort(-z[inside], kind="stable")]
    depth[row[order], column[order]] = z[order]
    return depth


def _davis() -> Figure:
    """Masks of moving things of the classical estimator, whatever it says of the third dimension."""
    known = [name for name in DAVIS if _davis_files(name)[0].is_file() and _davis_files(name)[1].is_dir()]
    absent = [name for name in DAVIS if name not in known]
    if not known:
        return Figure(None, None, "higher", "IoU", _missing("videos and truth/davis_masks"))
    with processes(min(WORKERS, len(known))) as pool:
        scores = list(pool.map(score_davis, known))
    how = ", ".join(f"{name} {score:.2f}" for name, score in zip(known, scores, strict=True))
    how += f"; without {', '.join(absent)}, whose video is not at hand" if absent else ""
    return Figure(float(np.mean(scores)), None, "higher", "IoU", f"all moving pixels, mean of frames and clips: {how}")


def _davis_files(name: str) -> tuple[Path, Path]:
    return DATA / "videos" / f"davis_{name}.mp4", DATA / "truth" / "davis_masks" / name


def score_davis(name: str) -> float:
    """Mean IoU over 32 frames of a clip's moving pixels with the union of its annotated things."""
    import cv2

    video, masks = _davis_files(name)
    limits = VideoParameters()
    probed, frames, chosen = read_clip(video, limits.frames, limits.max_pixels, limits.timeout_s)
    record = estimate(frames, probed.timestamps[chosen], name, GeometryParameters(estimators=("classical",)))
    true = [cv2.imread(str(masks / f"{index:05d}.png")).any(-1) for index in probed.indices[chosen]]
    true = [cv2.resize(mask.astype(np.uint8), frames.shape[2:0:-1], interpolation=cv2.INTER_NEAREST) for mask in true]
    true = np.stack(true) > 0
    found = masks_of(record, true.shape)
    return mask_iou(found.any(0) if len(found) else np.zeros_like(true), true)


def estimate(frames: np.ndarray, times: np.ndarray, name: str, parameters: GeometryParameters) -> SceneRecord:
    """The first estimator's record of (T, H, W, 3) u8 RGB frames at (T,) s."""
    from safetensors.numpy import save_file

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "frames.safetensors"
        save_file({"frames": frames, "timestamps": times, "indices": np.arange(len(frames))}, path)
        row = {"clip": name, "shard": "shard-000000", "name": name, "kind": "video", "has_truth": False}
        return build(parameters.estimators[0], parameters).estimate(Clip(row, path, {}, path))


def argoverse_headings(folder: Path) -> np.ndarray:
    """(K,) degrees between where annotated things of Argoverse 2 logs look and where they move over a second.

    Args:
        folder: holds one folder per log. Only what moves faster than 1 m/s counts.
    """
    found = []
    for record in argoverse_records(folder):
        seconds = record.timestamps[10:] - record.timestamps[:-10]
        step = record.centers_world[:, 10:] - record.centers_world[:, :-10]
        length = np.linalg.norm(step, axis=-1)
        cosine = (step * record.forward_world[:, 5:-5]).sum(-1) / np.maximum(length, 1e-9)
        moving = (length / seconds > 1.0) & np.isfinite(cosine)
        found.append(np.degrees(np.arccos(np.clip(cosine[moving], -1, 1))))
    return np.concatenate(found)


def argoverse_records(folder: Path) -> Iterator[SceneRecord]:
    """Records of all frames and things within 100 m of the Argoverse 2 logs in a folder."""
    every = GeometryParameters(frames=512, max_objects=256, max_distance=100.0)
    for log in sorted(folder.iterdir()):
        row = {"clip": log.name, "shard": "shard-000000", "name": log.name, "kind": "av2"}
        clip = Clip(row, next(log.glob("annotations*")), {"pose": log / "city_SE3_egovehicle.feather"}, None)
        yield Annotated(every).estimate(clip)


def kitti_overlaps(folder: Path) -> np.ndarray:
    """(K,) IoU of the 3D boxes of KITTI tracking labels, projected into the picture, with the labels' 2D boxes.

    Args:
        folder: holds label_02 and calib. Labels cut by the picture's edge or hidden do not count.
    """
    return np.concatenate(list(_kitti_overlaps(folder)))


def _kitti_overlaps(folder: Path) -> Iterator[np.ndarray]:
    every = GeometryParameters(frames=512, max_objects=256, max_distance=1000.0)
    for labels in sorted((folder / "label_02").glob("*.txt")):
        row = {"clip": labels.stem, "shard": "shard-000000", "name": labels.name, "kind": "kitti"}
        clip = Clip(row, labels, {"calibration": folder / "calib" / labels.name}, None)
        record = Annotated(every).estimate(clip)
        numbers, _, _ = read_kitti(clip.primary, clip.companions["calibration"], every.frames)
        yield _box_overlaps(record, _sizes(labels, record.provenance["tracks"], numbers))


def _sizes(labels: Path, tracks: list[str], numbers: np.ndarray) -> np.ndarray:
    """(N, T, 3) length, height, width; NaN where a label is cut by the picture's edge or hidden."""
    sizes = np.full((len(tracks), len(numbers), 3), np.nan)
    for line in labels.read_text().splitlines():
        parts = line.split()
        if parts[1] in tracks and int(parts[0]) in numbers and parts[3] == parts[4] == "0":
            height, width, length = map(float, parts[10:13])
            sizes[tracks.index(parts[1]), np.searchsorted(numbers, int(parts[0]))] = length, height, width
    return sizes


def _box_overlaps(record: SceneRecord, sizes: np.ndarray) -> np.ndarray:
    """(K,) IoU of projected and labelled boxes where both exist."""
    ahead = record.forward_world.astype(float)
    down = np.array([0.0, 1.0, 0.0])
    axes = np.stack([ahead, np.broadcast_to(down, ahead.shape), np.cross(ahead, down)], -2)
    signs = np.stack(np.meshgrid([-0.5, 0.5], [-0.5, 0.5], [-0.5, 0.5]), -1).reshape(8, 3)
    corners = record.centers_world[:, :, None] + np.einsum("kd,ntd,ntdc->ntkc", signs, sizes, axes)
    pixels = np.einsum("tij,ntkj->ntki", record.intrinsics, corners)
    usable = np.isfinite(pixels).all((-1, -2)) & (corners[..., 2] > 1).all(-1)
    pixels = pixels[usable][..., :2] / pixels[usable][..., 2:]
    found, known = np.concatenate([pixels.min(1), pixels.max(1)], -1), record.boxes[usable]
    inner = np.minimum(found[:, 2:], known[:, 2:]) - np.maximum(found[:, :2], known[:, :2])
    inner = inner.clip(0).prod(-1)
    area = (found[:, 2:] - found[:, :2]).prod(-1) + (known[:, 2:] - known[:, :2]).prod(-1)
    return inner / (area - inner)
