"""The rendered sample world: raw shards of clips whose geometry is known exactly.

Every clip comes with a truth sidecar (safetensors, one entry per video frame; metres; world frame z up; camera frame
x right, y down, z forward; pixel centres at whole numbers):

    timestamps (T,) f64 s         intrinsics (3, 3) f32         world_from_camera (T, 4, 4) f32
    depth (T, H, W) f16 z-depth   instances (T, H, W) u8, 0 background, i + 1 object i
    centers_world (N, T, 3) f32   forward_world (N, T, 3) f32
    metadata "record": JSON {"names", "classes", "is_agent"}
"""

import json
import os
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np

from assets.processes import processes
from assets.progress import Progress
from assets.reuse import sha256_of
from assets.videos.painting import Painter, Picture
from assets.videos.parameters import SampleWorldParameters
from assets.videos.scenery import Scene, draw_scene
from assets.videos.shards import RawClip, ShardError, seal
from assets.videos.things import SHAPES
from assets.workspace import SHARD_KEY

# Whatever x264 would choose by processor or by number of cores is fixed, so that the bytes are the same everywhere.
_X264 = "threads=1:lookahead-threads=1:sliced-threads=0:cpu-independent=1:keyint=24:scenecut=0"


def render_shard(
    shard: str,
    parameters: SampleWorldParameters,
    destination: Path,
    workers: int = 1,
    progress: Progress = lambda done, total, what: None,
) -> None:
    """Render the clips of one shard and seal them like ingested ones; an earlier rendering is replaced.

    Args:
        shard: shard key; the scenes depend on it, on each clip's number and on parameters.seed alone.
        parameters: of the sample world.
        destination: folder of the shard.
        workers: processes; their number changes no byte.
        progress: told after each clip.

    Raises:
        ShardError: `shard` is no shard key.
    """
    if not SHARD_KEY.fullmatch(shard):
        raise ShardError(f"{shard!r} is no shard key; write it like shard-000042")
    partial = destination.with_name(f".{shard}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    jobs = [(shard, number, parameters, partial) for number in range(parameters.clips)]
    clips = []
    for clip in _run(jobs, workers):
        clips.append(clip)
        progress(len(clips), len(jobs), clip.name)
    shutil.rmtree(destination, ignore_errors=True)
    seal(partial, shard, clips, destination)


def _run(jobs: list, workers: int):
    """Render the jobs, in their order."""
    if workers == 1:
        yield from map(_render_clip, jobs)
        return
    with processes(workers) as pool:
        yield from pool.map(_render_clip, jobs)


def _render_clip(job: tuple[str, int, SampleWorldParameters, Path]) -> RawClip:
    """Render one clip and its sidecar into a folder."""
    from threadpoolctl import threadpool_limits

    shard, number, parameters, folder = job
    with threadpool_limits(1):
        scene = draw_scene(shard, number, parameters)
        painter = Painter(scene, parameters.width, parameters.height)
        pictures = [painter.paint(frame) for frame in range(parameters.fps * parameters.seconds)]
    name = f"{shard}-{number:04d}"
    video, truth = folder / f"{name}.mp4", folder / f"{name}.truth.safetensors"
    encode(video, np.stack([picture.rgb for picture in pictures]), parameters.fps, parameters.crf)
    write_truth(truth, scene, pictures, parameters.fps)
    sha256 = sha256_of(video)
    companion = {
        "sha256": sha256_of(truth),
        "suffix": ".safetensors",
        "bytes": truth.stat().st_size,
        "name": truth.name,
    }
    clip = RawClip(sha256, video.name, ".mp4", video.stat().st_size, "video", {"truth": companion})
    os.replace(video, clip.path(folder))
    os.replace(truth, clip.companion_path(folder, "truth"))
    return clip


def encode(path: Path, frames: np.ndarray, fps: int, crf: int = 18) -> None:
    """Write frames as H.264 in MP4; the same frames give the same bytes on every run and machine.

    Args:
        path: file to write.
        frames: (T, H, W, 3) u8 RGB; H and W even.
        fps: frames per second.
        crf: x264 constant rate factor.
    """
    import av

    with av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, fps)
        stream.codec_context.thread_count = 1
        stream.options = {"crf": str(crf), "preset": "veryfast", "x264-params": _X264, "flags": "+bitexact"}
        for index, planes in enumerate(_yuv420(frames)):
            frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
            frame.pts, frame.time_base = index, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _yuv420(frames: np.ndarray) -> np.ndarray:
    """(T, H, W, 3) u8 RGB to (T, H * 3 // 2, W) u8 planar 4:2:0, ITU-R BT.601 studio range.

    Integer arithmetic of ours rather than swscale's, whose result depends on the processor.
    """
    count, height, width = frames.shape[:3]
    r, g, b = np.moveaxis(frames.astype(np.int32), -1, 0)
    luma = ((66 * r + 129 * g + 25 * b + 128) >> 8) + 16
    halved = [(c[:, ::2, ::2] + c[:, 1::2, ::2] + c[:, ::2, 1::2] + c[:, 1::2, 1::2] + 2) >> 2 for c in (r, g, b)]
    r, g, b = halved
    blue = ((-38 * r - 74 * g + 112 * b + 128) >> 8) + 128
    red = ((112 * r - 94 * g - 18 * b + 128) >> 8) + 128
    planes = [luma.reshape(count, -1), blue.reshape(count, -1), red.reshape(count, -1)]
    return np.concatenate(planes, axis=1).astype(np.uint8).reshape(count, height * 3 // 2, width)


def write_truth(path: Path, scene: Scene, pictures: list[Picture], fps: int) -> None:
    """Write a clip's truth sidecar, laid out as the module's docstring says."""
    from safetensors.numpy import save_file

    record = {
        "names": [thing.name for thing in scene.things],
        "classes": [thing.shape for thing in scene.things],
        "is_agent": [SHAPES[thing.shape].is_agent for thing in scene.things],
    }
    forward = [facing(thing.rotation, SHAPES[thing.shape].rolls) for thing in scene.things]
    tensors = {
        "timestamps": np.arange(len(pictures)) / fps,
        "intrinsics": scene.intrinsics.astype(np.float32),
        "world_from_camera": scene.world_from_camera.astype(np.float32),
        "depth": np.stack([picture.depth for picture in pictures]).astype(np.float16),
        "instances": np.stack([picture.instances for picture in pictures]),
        "centers_world": np.stack([thing.centers() for thing in scene.things]).astype(np.float32),
        "forward_world": np.stack(forward).astype(np.float32),
    }
    save_file(tensors, str(path), {"record": json.dumps(record, sort_keys=True)})


def facing(rotation: np.ndarray, rolls: bool) -> np.ndarray:
    """(T, 3) unit vectors: a thing's own x axis; for what rolls, the level direction it rolls in."""
    if not rolls:
        return rotation[:, :, 0]
    axle = rotation[:, :, 1]
    return np.column_stack([axle[:, 1], -axle[:, 0], np.zeros(len(axle))])
