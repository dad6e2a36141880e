"""How right the classical estimator is, against rendered truth: poses, depth, moving things, and what it refuses."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial

import numpy as np

from assets.geometry.estimators import build
from assets.geometry.frames_of_reference import inverse, rotate, transform
from assets.geometry.grid import sample_cells
from assets.geometry.parameters import GeometryParameters
from assets.geometry.record import SceneRecord, decode_mask
from assets.processes import processes
from benchmarks.figure import Figure
from benchmarks.geometry.scenes import SKY, RenderedClip, moving, translating, unsupported

CLIPS, WORKERS = 32, 2
# An estimated thing is a true one if their masks overlap by this much over the whole clip.
MATCH_IOU = 0.3
# A true thing is placed if it has a centre in this share of the frames in which it is seen.
PLACED = 0.5
# A thing is seen in a frame in which it covers this share of the picture.
SEEN = 0.002


@dataclass(frozen=True)
class Scores:
    """What became of one clip.

    Attributes:
        name, kind: of the clip.
        status, reason: of its record.
        seconds: the estimator took.
        mask_iou: mean over frames of the IoU of all moving pixels, NaN where nothing moves in truth.
        things: moving things in truth.
        found: of these, by their masks.
        rotation: degrees, median over all pairs of frames of the error of their relative rotation.
        trajectory: absolute trajectory error (RMSE) after a similarity, as share of the true path.
        depth: median relative error of static points after one scale.
        coverage: share of static pixels with a depth.
        placed: of the moving things, those with a place in space.
        centers: (K,) errors of their centres in the camera frame relative to their distance.
        headings: (L,) errors of their headings in the camera frame, degrees.
    """

    name: str
    kind: str
    status: str
    reason: str
    seconds: float
    mask_iou: float
    things: int
    found: int
    rotation: float = float("nan")
    trajectory: float = float("nan")
    depth: float = float("nan")
    coverage: float = float("nan")
    placed: int = 0
    centers: tuple[float, ...] = ()
    headings: tuple[float, ...] = ()


def figures() -> dict[str, Figure]:
    """Figures of the classical estimator over the rendered clips."""
    score = partial(score_clip, parameters=GeometryParameters(estimators=("classical",)))
    with processes(WORKERS) as pool:
        supported = list(pool.map(score, translating(CLIPS, WORKERS)))
        hopeless = list(pool.map(score, unsupported(WORKERS)))
    return _of_supported(supported) | _of_hopeless(hopeless)


def score_clip(rendered: RenderedClip, parameters: GeometryParameters) -> Scores:
    """Estimate one rendered clip and hold the record against its truth; a cut has none but its outcome."""
    started = time.perf_counter()
    record = build("classical", parameters).estimate(rendered.clip())
    known = {"name": rendered.name, "kind": rendered.kind, "seconds": time.perf_counter() - started}
    known |= {"status": record.status, "reason": record.provenance["reason"]}
    if not rendered.truth:
        return Scores(**known, mask_iou=float("nan"), things=0, found=0)
    return Scores(**known, **against_truth(record, rendered.truth))


def against_truth(record: SceneRecord, truth: dict[str, np.ndarray]) -> dict[str, object]:
    """The scores of a record against the sidecar of its clip, whose frames are the record's; see ``Scores``."""
    chosen = np.flatnonzero(moving(truth))
    true_masks = truth["instances"][None] == (chosen + 1)[:, None, None, None]
    masks = masks_of(record, truth["instances"].shape)
    pairs = matched(masks, true_masks)
    union = masks.any(0) if len(masks) else np.zeros(truth["instances"].shape, bool)
    scores = {"mask_iou": mask_iou(union, true_masks.any(0)), "things": len(chosen), "found": len(pairs)}
    if record.status != "3d":
        return scores
    poses, true_poses = record.world_from_camera.astype(float), truth["world_from_camera"].astype(float)
    scale, aligned = align(poses[:, :3, 3], true_poses[:, :3, 3])
    path = float(np.linalg.norm(np.diff(true_poses[:, :3, 3], axis=0), axis=1).sum())
    depth, coverage = depth_error(record, truth["depth"], (truth["depth"] < SKY) & ~(truth["instances"] > 0))
    scores |= {
        "rotation": rotation_error(poses, true_poses),
        "trajectory": float(rmse(aligned, true_poses[:, :3, 3]) / path),
    }
    scores |= {"depth": depth, "coverage": coverage}
    return scores | _placed(record, truth, [(found, chosen[true]) for found, true in pairs], scale)


def align(source: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray]:
    """Scale and moved source of the similarity that brings (T, 3) source points nearest to (T, 3) targets.

    Least squares in closed form: Umeyama, "Least-squares estimation of transformation parameters between two point
    patterns", TPAMI 1991, equations 40 to 43.
    """
    center, goal = source.mean(0), target.mean(0)
    u, d, vt = np.linalg.svd((target - goal).T @ (source - center) / len(source))
    signs = np.array([1.0, 1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    scale = (d * signs).sum() / max(((source - center) ** 2).sum(1).mean(), 1e-12)
    return scale, scale * (source - center) @ (u * signs @ vt).T + goal


def rmse(points: np.ndarray, target: np.ndarray) -> float:
    """Root mean square distance of (T, 3) points from their (T, 3) targets."""
    return float(np.sqrt(((points - target) ** 2).sum(1).mean()))


def rotation_error(poses: np.ndarray, true_poses: np.ndarray) -> float:
    """Degrees, median over all pairs of frames: how far their estimated relative rotation is from the true one.

    Args:
        poses: (T, 4, 4) world_from_camera.
        true_poses: (T, 4, 4) in any other world.
    """
    one, other = np.triu_indices(len(poses), 1)
    found, known = (np.swapaxes(p[one, :3, :3], -1, -2) @ p[other, :3, :3] for p in (poses, true_poses))
    return float(np.median(angles(found, known)))


def angles(found: np.ndarray, known: np.ndarray) -> np.ndarray:
    """(K,) degrees between (K, 3, 3) rotations."""
    from scipy.spatial.transform import Rotation

    return np.degrees((Rotation.from_matrix(found).inv() * Rotation.from_matrix(known)).magnitude())


def depth_error(record: SceneRecord, depth: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """Median relative error of a record's depth after one scale for the clip, and the share of pixels that have one.

    Args:
        record: with points (T, h, w, 3) and confidence (T, h, w); no confidence, no answer.
        depth: (T, H, W) true z-depth in the frames' pixels.
        counts: (T, H, W) bool, pixels whose truth is known and counts.
    """
    size = record.confidence.shape[1:]
    known, true = sample_cells(counts, *size), sample_cells(depth, *size).astype(float)
    answered = known & (record.confidence > 0)
    if not answered.any():
        return float("nan"), 0.0
    ratio = record.points[..., 2][answered].astype(float) / true[answered]
    return float(np.median(np.abs(ratio / np.median(ratio) - 1))), float(answered.sum() / known.sum())


def masks_of(record: SceneRecord, shape: tuple[int, int, int]) -> np.ndarray:
    """(N, T, H, W) bool masks of a record's things."""
    masks = np.zeros((len(record.names), *shape), bool)
    for i, row in enumerate(record.masks):
        for t, mask in enumerate(row):
            if mask is not None:
                masks[i, t] = decode_mask(mask)
    return masks


def mask_iou(found: np.ndarray, true: np.ndarray) -> float:
    """Mean IoU of (T, H, W) masks over the frames in which there is something to find; NaN where there never is."""
    frames = true.any((1, 2))
    if not frames.any():
        return float("nan")
    both, either = (found & true).sum((1, 2)), (found | true).sum((1, 2))
    return float((both[frames] / either[frames]).mean())


def matched(masks: np.ndarray, true: np.ndarray) -> list[tuple[int, int]]:
    """Pairs (found, true) of (N, T, H, W) and (M, T, H, W) masks that overlap by ``MATCH_IOU`` over the clip.

    The assignment is the one with the greatest sum of IoUs.
    """
    from scipy.optimize import linear_sum_assignment

    iou = np.zeros((len(masks), len(true)))
    for i, j in np.ndindex(iou.shape):
        iou[i, j] = (masks[i] & true[j]).sum() / max((masks[i] | true[j]).sum(), 1)
    return [(int(i), int(j)) for i, j in zip(*linear_sum_assignment(-iou), strict=True) if iou[i, j] >= MATCH_IOU]


def _placed(record: SceneRecord, truth, pairs: list[tuple[int, int]], scale: float) -> dict[str, object]:
    """How right the places and headings of matched things are, seen from each frame's own camera.

    So an error of the poses does not count twice, and only one number, the scale of the whole clip, comes from truth.
    """
    to_camera, true_to_camera = inverse(record.world_from_camera), inverse(truth["world_from_camera"])
    seen = (truth["instances"][None] == np.arange(1, len(truth["centers_world"]) + 1)[:, None, None, None]).mean((2, 3))
    placed, centers, headings = 0, [], []
    for found, true in pairs:
        known = np.isfinite(record.centers_world[found]).all(-1) & (seen[true] > SEEN)
        if known.sum() < PLACED * (seen[true] > SEEN).sum() or not known.any():
            continue
        placed += 1
        place = scale * transform(to_camera, record.centers_world[found])[known]
        expected = transform(true_to_camera, truth["centers_world"][true])[known]
        centers += (np.linalg.norm(place - expected, axis=1) / np.linalg.norm(expected, axis=1)).tolist()
        facing = known & np.isfinite(record.forward_world[found]).all(-1)
        ahead = rotate(to_camera, record.forward_world[found])[facing]
        headings += _between(ahead, rotate(true_to_camera, truth["forward_world"][true])[facing]).tolist()
    return {"placed": placed, "centers": tuple(centers), "headings": tuple(headings)}


def _between(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(K,) degrees between (K, 3) unit vectors."""
    return np.degrees(np.arctan2(np.linalg.norm(np.cross(one, other), axis=1), (one * other).sum(1)))


def _of_supported(scores: list[Scores]) -> dict[str, Figure]:
    deep = [score for score in scores if score.status == "3d"]
    count = f"{len(deep)} of {len(scores)} rendered clips with a translating camera"
    things, placed = sum(s.things for s in deep), sum(s.placed for s in deep)
    every = sum(s.things for s in scores)
    centers = np.concatenate([score.centers for score in deep]) if deep else np.zeros(0)
    headings = np.concatenate([score.headings for score in deep]) if deep else np.zeros(0)
    refused = [f"{score.name}: {score.reason}" for score in scores if score.status != "3d"]
    return {
        "rotation_error_deg": Figure(
            _median([s.rotation for s in deep]),
            1.5,
            "lower",
            "deg",
            f"relative rotations of all pairs of frames, median of {count}; {_spread([s.rotation for s in deep])}",
        ),
        "trajectory_error": Figure(
            _median([s.trajectory for s in deep]),
            0.025,
            "lower",
            "share",
            f"ATE over path length, median of clips; {_spread([s.trajectory for s in deep])}",
        ),
        "depth_error": Figure(
            _median([s.depth for s in deep]),
            0.07,
            "lower",
            "share",
            f"static pixels, one scale per clip, median of clips; {_spread([s.depth for s in deep])}",
        ),
        "depth_coverage": Figure(
            _median([s.coverage for s in deep]),
            0.7,
            "higher",
            "share",
            f"static pixels below the sky that have a depth, median of clips; {_spread([s.coverage for s in deep])}",
        ),
        "moving_mask_iou": Figure(
            _mean([s.mask_iou for s in scores]),
            0.5,
            "higher",
            "IoU",
            f"all moving pixels of a frame, mean of frames and of all {len(scores)} clips, refused ones too",
        ),
        "center_error": Figure(
            _median(centers),
            0.10,
            "lower",
            "share",
            f"of the distance, scale from the camera path, median of {len(centers)} places; {_spread(centers)}",
        ),
        "object_recall": Figure(
            placed / things if things else None,
            0.5,
            "higher",
            "share",
            f"{placed} of {things} moving things of the accepted clips are placed in half of their frames (mask IoU ≥ "
            f"{MATCH_IOU:g} over the clip; {sum(s.found for s in scores)} of {every} in all clips are found in 2D)",
        ),
        "heading_error_deg": Figure(
            _median(headings), None, "lower", "deg", f"median of {len(headings)} headings of placed things"
        ),
        "refused_share": Figure(
            len(refused) / len(scores), 0.2, "lower", "share", "; ".join(refused) or f"{count} accepted"
        ),
        "classical_seconds": Figure(
            _median([s.seconds for s in scores]),
            None,
            "lower",
            "s",
            f"per clip of 32 frames of 512x384, {WORKERS} at a time; {_spread([s.seconds for s in scores])}",
        ),
    }


def _of_hopeless(scores: list[Scores]) -> dict[str, Figure]:
    accepted = [score.name for score in scores if score.status == "3d"]
    how = "accepted: " + ", ".join(accepted) if accepted else "none accepted"
    kinds = ", ".join(sorted({score.kind for score in scores}))
    return {"false_accepts": Figure(len(accepted), 0, "lower", "clips", f"of {len(scores)} clips ({kinds}): {how}")}


def _median(values) -> float | None:
    known = [value for value in values if np.isfinite(value)]
    return float(np.median(known)) if known else None


def _mean(values) -> float | None:
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else None


def _spread(values) -> str:
    known = [value for value in values if np.isfinite(value)]
    return f"90th percentile {np.percentile(known, 90):.3g}, worst {max(known):.3g}" if known else "nothing measured"
