"""A tiny rendered world in the sidecar's format, and shards made of it."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from assets.geometry.estimators import Clip
from assets.geometry.frames_of_reference import rigid
from assets.geometry.parameters import GeometryParameters
from assets.geometry.prior import CHANNELS
from assets.geometry.record import encode_mask, unknown
from assets.videos.shards import RawClip, write_manifest

SHARD = "shard-000000"
# Columns: the camera's right, down and forward axes when it looks along +y of a world whose z is up.
LOOKING_ALONG_Y = np.array([[1.0, 0, 0], [0, 0, 1.0], [0, -1.0, 0]])


@dataclass
class World:
    """Rendered frames (T, H, W, 3) and the tensors and text of their truth sidecar."""

    frames: np.ndarray
    truth: dict[str, np.ndarray]
    text: dict[str, list]


def _texture(seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).uniform(0, 255, (256, 256)).astype(np.float32)
    smooth = cv2.GaussianBlur(np.tile(noise, (2, 2)), (0, 0), 1.0)
    return np.clip(128 + 3.0 * (smooth - 128), 0, 255)


def _paint(texture: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    # OpenCV takes maps of at most 32,767 rows.
    maps = [(x % 256).astype(np.float32).reshape(-1, 8) for x in (u, v)]
    return cv2.remap(texture, *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP).ravel()


def render(
    frames: int, height: int, width: int, *, slide: float, turn: float, rise: float = 0.0, seconds: float = 4.0
) -> World:
    """A textured ground and back wall, a robot (ball) that walks to the right and a crate (ball) that stands.

    Args:
        frames: T.
        height: H in pixels.
        width: W in pixels.
        slide: metres the camera slides to the right over the clip.
        rise: metres it rises, so that what walks level does not keep to the epipolar lines.
        turn: degrees the camera turns to the left over the clip.
        seconds: length of the clip.
    """
    times = np.linspace(0, seconds, frames)
    share = np.linspace(0, 1, frames)
    focal = 0.8 * width
    intrinsics = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])
    angles = np.radians(turn) * share
    turns = np.array([[[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]] for a in angles])
    positions = np.stack([slide * share, np.zeros(frames), 1.5 + rise * share], -1)
    poses = rigid(turns @ LOOKING_ALONG_Y, positions)
    robot = np.stack([-1.2 + 2.4 * share, np.full(frames, 6.0), np.full(frames, 0.6)], -1)
    crate = np.tile([1.5, 7.0, 0.6], (frames, 1))
    centers = np.stack([robot, crate])
    pixels = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).reshape(-1, 2)
    local = np.c_[pixels, np.ones(len(pixels))] @ np.linalg.inv(intrinsics).T
    images, depths, instances = zip(
        *(_frame(local, poses[t], centers[:, t], (height, width)) for t in range(frames)), strict=True
    )
    truth = {
        "timestamps": times,
        "intrinsics": intrinsics.astype(np.float32),
        "world_from_camera": poses.astype(np.float32),
        "depth": np.stack(depths).astype(np.float16),
        "instances": np.stack(instances).astype(np.uint8),
        "centers_world": centers.astype(np.float32),
        "forward_world": np.tile(np.float32([1, 0, 0]), (2, frames, 1)),
    }
    text = {"names": ["red robot", "blue crate"], "classes": ["robot", "crate"], "is_agent": [True, False]}
    return World(np.stack(images), truth, text)


def _frame(local, pose, centers, shape):
    """One frame: colour (H, W, 3), z-depth (H, W) and instance ids (H, W)."""
    origin, rays = pose[:3, 3], local @ pose[:3, :3].T
    with np.errstate(divide="ignore", invalid="ignore"):
        ground = np.where(rays[:, 2] < 0, -origin[2] / rays[:, 2], np.inf)
        wall = np.where(rays[:, 1] > 0, (10.0 - origin[1]) / rays[:, 1], np.inf)
    hits = [ground, wall, *(_ball(origin, rays, center, 0.6) for center in centers)]
    which, depth = np.argmin(hits, axis=0), np.min(hits, axis=0)
    places = origin + depth[:, None] * rays
    grey = _paint(_texture(0), 40 * places[:, 0], 40 * places[:, 1])
    grey = np.where(which == 1, _paint(_texture(1), 25 * places[:, 0], 25 * places[:, 2]), grey)
    for i, center in enumerate(centers):
        on_ball = _paint(_texture(2 + i), 60 * (places - center)[:, 0], 60 * (places - center)[:, 2])
        grey = np.where(which == 2 + i, on_ball, grey)
    tint = np.array([[1, 1, 1], [1, 1, 1], [1, 0.4, 0.4], [0.4, 0.4, 1]])[which]
    image = (grey[:, None] * tint).astype(np.uint8).reshape(*shape, 3)
    return image, depth.reshape(shape), np.where(which >= 2, which - 1, 0).reshape(shape)


def _ball(origin, rays, center, radius):
    """Depth along each ray (whose z component in the camera is 1) at which it meets a ball."""
    to = origin - center
    a, b, c = (rays**2).sum(1), rays @ to, to @ to - radius**2
    root = b * b - a * c
    return np.where(root > 0, (-b - np.sqrt(np.maximum(root, 0))) / a, np.inf)


def resized(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Frames at another (H, W), as the reader would store them."""
    return np.stack([cv2.resize(frame, size[::-1], interpolation=cv2.INTER_AREA) for frame in frames])


@pytest.fixture(scope="session")
def world() -> World:
    """Twelve small frames with a sliding, turning camera."""
    return render(12, 48, 64, slide=1.0, turn=8.0)


@pytest.fixture(scope="session")
def large_world() -> World:
    """Frames large enough for structure from motion."""
    return render(14, 180, 320, slide=2.0, rise=0.6, turn=4.0)


@pytest.fixture(scope="session")
def still_world() -> World:
    """The same seen by a camera that stands still."""
    return render(10, 120, 200, slide=0.0, turn=0.0)


@pytest.fixture(scope="session")
def turning_world() -> World:
    """The same seen by a camera that only turns."""
    return render(12, 120, 200, slide=0.0, turn=12.0)


def _clip_of(
    world: World,
    folder: Path,
    indices: np.ndarray | None = None,
    size: tuple[int, int] | None = None,
    truth: bool = True,
) -> Clip:
    """Write a world as the videos link would, and what an estimator gets to see of it."""
    indices = np.arange(len(world.frames)) if indices is None else np.asarray(indices)
    frames = world.frames[indices] if size is None else resized(world.frames[indices], size)
    times = world.truth["timestamps"][indices]
    name = hashlib.sha256(frames.tobytes()).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.safetensors"
    _save_frames(path, frames, times, indices)
    companions = {}
    if truth:
        companions["truth"] = folder / f"{name}.truth.safetensors"
        save_file(world.truth, companions["truth"], metadata={"record": json.dumps(world.text)})
    row = {"clip": name, "shard": SHARD, "name": "a.mp4", "kind": "video", "has_truth": truth}
    return Clip(row, folder / f"{name}.mp4", companions, path)


@pytest.fixture
def parameters() -> GeometryParameters:
    return GeometryParameters()


@pytest.fixture(scope="session")
def clip_of():
    """``clip_of(world, folder, indices, size, truth)``: write a world as the videos link would."""
    return _clip_of


@pytest.fixture
def make_clip(clip_of, tmp_path):
    """``clip_of`` in this test's folder."""
    return lambda world, **how: clip_of(world, tmp_path / "clips", **how)


def _record(frames: int = 5, objects: int = 2, seed: int = 0):
    """A record with something in every field."""
    rng = np.random.default_rng(seed)
    poses = np.tile(np.eye(4), (frames, 1, 1))
    poses[:, 0, 3] = np.arange(frames) * 0.3
    masks = rng.uniform(size=(objects, frames, 12, 16)) > 0.5
    return unknown(
        np.arange(frames) / 3,
        [f"robot {i + 1}" for i in range(objects)],
        ["robot"] * objects,
        intrinsics=np.tile(np.diag([20.0, 20.0, 1.0]), (frames, 1, 1)),
        world_from_camera=poses,
        points=rng.uniform(1, 5, (frames, 6, 8, 3)),
        confidence=rng.uniform(0, 1, (frames, 6, 8)),
        is_agent=np.arange(objects) % 2 == 0,
        masks=[[encode_mask(mask) for mask in row] for row in masks],
        boxes=rng.uniform(0, 12, (objects, frames, 4)),
        centers_world=rng.normal([0, 0, 8], 3, (objects, frames, 3)),
        forward_world=np.tile([0.0, 0, 1], (objects, frames, 1)),
        forward_confidence=np.ones((objects, frames)),
        prior_features=rng.normal(size=((frames + 1) // 2, 3, 4, CHANNELS)),
        prior_times=np.arange((frames + 1) // 2) / 1.5,
        provenance={
            "estimator": "rendered",
            "version": "rendered/1",
            "status": "3d",
            "reason": "",
            "frame_size": [12, 16],
            "metric": True,
            "poses": "truth",
            "up_world": [0.0, -1.0, 0.0],
        },
    )


@pytest.fixture(scope="session")
def make_record():
    """``make_record(frames, objects, seed)``: a record with something in every field."""
    return _record


@pytest.fixture
def record(make_record):
    return make_record()


@pytest.fixture
def make_shard(tmp_path):
    """``make_shard(worlds)``: raw and videos folders of a shard of rendered worlds."""

    def make(worlds: list[World]) -> tuple[Path, Path]:
        raw, videos = tmp_path / "raw" / SHARD, tmp_path / "videos" / SHARD
        raw.mkdir(parents=True)
        (videos / "frames").mkdir(parents=True)
        clips = [_raw_clip(raw, f"{i}.mp4", f"{i}|".encode(), world) for i, world in enumerate(worlds)]
        for clip, world in zip(clips, worlds, strict=True):
            _save_frames(videos / "frames" / f"{clip.clip}.safetensors", world.frames, world.truth["timestamps"])
        rows = [{"clip": c.clip, "shard": SHARD, "name": c.name, "kind": "video", "has_truth": True} for c in clips]
        write_manifest(raw, SHARD, clips)
        pq.write_table(pa.Table.from_pylist(rows), videos / "clips.parquet")
        return raw, videos

    return make


def _raw_clip(raw: Path, name: str, content: bytes, world: World) -> RawClip:
    clip = hashlib.sha256(content).hexdigest()
    sidecar = raw / f"{clip}.truth.safetensors"
    save_file(world.truth, sidecar, metadata={"record": json.dumps(world.text)})
    truth = {
        "sha256": hashlib.sha256(sidecar.read_bytes()).hexdigest(),
        "suffix": ".safetensors",
        "bytes": sidecar.stat().st_size,
        "name": sidecar.name,
    }
    (raw / f"{clip}.mp4").write_bytes(content)
    return RawClip(clip, name, ".mp4", len(content), "video", {"truth": truth})


def _save_frames(path: Path, frames: np.ndarray, timestamps: np.ndarray, indices: np.ndarray | None = None) -> None:
    indices = np.arange(len(frames)) if indices is None else indices
    save_file({"frames": frames, "timestamps": timestamps, "indices": indices.astype(np.int64)}, path)


@pytest.fixture
def read_clip(tmp_path):
    """``read_clip(path, count, step)``: what an estimator gets of the first ``count`` frames of a real video."""

    def read(path: Path, count: int, step: int | None = None) -> Clip:
        import av

        with av.open(str(path)) as container:
            frames = [frame for frame, _ in zip(container.decode(video=0), range(count), strict=False)]
        places = np.arange(0, len(frames), step) if step else np.linspace(0, len(frames) - 1, 32).round().astype(int)
        scale = min(1.0, (640 * 360 / (frames[0].width * frames[0].height)) ** 0.5)
        size = round(frames[0].width * scale), round(frames[0].height * scale)
        images = np.stack([cv2.resize(frames[i].to_ndarray(format="rgb24"), size) for i in places])
        times = np.array([frames[i].time - frames[0].time for i in places])
        stored = tmp_path / f"{path.stem}.safetensors"
        _save_frames(stored, images, times, places)
        row = {"clip": "0" * 64, "shard": SHARD, "name": path.name, "kind": "video"}
        return Clip(row, path, {}, stored)

    return read
