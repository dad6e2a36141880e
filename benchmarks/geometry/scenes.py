"""Rendered clips whose truth is known: some that a reconstruction without learned weights must support, some it cannot.

The scenes are the sample world's, larger, with finer texture and with other camera motions. Rendered clips are kept in
the system's temporary folder (1.6 GB) under a key over the parameters and the code that draws them.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from assets.geometry.estimators import Clip
from assets.processes import processes
from assets.reuse import key_of
from assets.videos import painting, raycast, scenery, things, world
from assets.videos.parameters import SampleWorldParameters
from assets.videos.scenery import Scene, Thing, draw_scene

# 32 frames over 4 seconds: the picture moves by some ten pixels from frame to frame.
SCENES = SampleWorldParameters(clips=1, width=512, height=384, fps=8, seconds=4, fewest_things=3, most_things=5)
GRAIN = 0.5
TRANSLATING = ("truck", "orbit", "push", "walk", "crane")
# What a camera does, and what is wrong with the clip.
UNSUPPORTED = ("pan", "tilt", "still", "cut", "frozen", "pan", "tilt", "still", "cut", "frozen", "pan", "still")
# Truth farther than this, in metres along the optical axis, is sky.
SKY = 50.0
_SHARD = "geometry-benchmark"
_DAY = 86_400
_CODE = [Path(module.__file__) for module in (painting, raycast, scenery, things, world)] + [Path(__file__)]


@dataclass(frozen=True)
class RenderedClip:
    """A clip and its truth, on disk.

    Attributes:
        name: unique among the benchmark's clips, for people.
        kind: the camera motion, or what is wrong with the clip.
        frames_file: ``frames`` (T, H, W, 3) u8 RGB, ``timestamps`` (T,) s and ``indices`` (T,), as the videos link
            stores them.
        truth_file: sidecar as ``assets.videos.world`` lays it out; for a cut, each half has its own truth and none is
            written (None).
    """

    name: str
    kind: str
    frames_file: Path
    truth_file: Path | None

    def clip(self) -> Clip:
        """What an estimator gets to see: the frames, without the truth."""
        row = {"clip": self.name, "shard": _SHARD, "name": f"{self.name}.mp4", "kind": "video", "has_truth": False}
        return Clip(row, self.frames_file, {}, self.frames_file)

    @property
    def frames(self) -> np.ndarray:
        """(T, H, W, 3) u8 RGB."""
        return self.clip().sampled["frames"]

    @property
    def timestamps(self) -> np.ndarray:
        """(T,) seconds."""
        return self.clip().sampled["timestamps"]

    @cached_property
    def truth(self) -> dict[str, np.ndarray]:
        """The sidecar's tensors as ``assets.videos.world`` lays them out; nothing for a cut."""
        from safetensors.numpy import load_file

        return load_file(self.truth_file) if self.truth_file else {}


def translating(count: int = 32, workers: int = 1) -> Iterator[RenderedClip]:
    """Clips whose camera translates past a textured yard in which three to five things stand or move.

    The camera motions of ``TRANSLATING`` take turns; nothing is drawn but by number.

    Args:
        count: clips.
        workers: processes that render what is not at hand yet.
    """
    kinds = [TRANSLATING[number % len(TRANSLATING)] for number in range(count)]
    return _rendered([(f"translating-{number:02d}-{kind}", kind, number) for number, kind in enumerate(kinds)], workers)


def unsupported(workers: int = 1) -> Iterator[RenderedClip]:
    """Clips that hold no third dimension or nothing to place in it, one per entry of ``UNSUPPORTED``.

    pan and tilt: the camera only turns; still: it does not move at all; cut: two translating shots, joined;
    frozen: it translates, and nothing in the scene moves.

    Args:
        workers: processes that render what is not at hand yet.
    """
    jobs = [(f"unsupported-{i:02d}-{kind}", kind, 1000 + i) for i, kind in enumerate(UNSUPPORTED)]
    return _rendered(jobs, workers)


def moving(truth: dict[str, np.ndarray], share: float = 0.05) -> np.ndarray:
    """(N,) which things of a truth sidecar move: those whose path spans more than a share of their median distance."""
    extent = np.linalg.norm(np.ptp(truth["centers_world"], axis=1), axis=-1)
    away = np.linalg.norm(truth["centers_world"] - truth["world_from_camera"][None, :, :3, 3], axis=-1)
    return extent > share * np.median(away, axis=1)


def _rendered(jobs: list[tuple[str, str, int]], workers: int) -> Iterator[RenderedClip]:
    if workers == 1:
        yield from map(_clip, jobs)
        return
    with processes(workers) as pool:
        yield from pool.map(_clip, jobs)


def _clip(job: tuple[str, str, int]) -> RenderedClip:
    """The clip of one job, rendered unless it lies on disk."""
    name, kind, number = job
    folder = _folder()
    frames_file, truth_file = folder / f"{name}.safetensors", folder / f"{name}.truth.safetensors"
    rendered = RenderedClip(name, kind, frames_file, None if kind == "cut" else truth_file)
    if not frames_file.exists():
        _render(rendered, number)
    return rendered


def _folder() -> Path:
    """The folder of this user's clips as the present code and parameters draw them; others are removed after a day."""
    key = key_of({"parameters": SCENES.model_dump(mode="json")}, _CODE)
    folder = Path(tempfile.gettempdir()) / f"dsr-scenes-{os.getuid()}" / key[:16]
    if not folder.exists():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for other in folder.parent.iterdir():
            if time.time() - other.stat().st_mtime > _DAY:
                shutil.rmtree(other, ignore_errors=True)
    return folder


def _render(clip: RenderedClip, number: int) -> None:
    """Write a clip's truth, then its frames; each appears whole or not at all."""
    from safetensors.numpy import save_file
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        if clip.kind == "cut":
            first, second = (_pictures(_scene(kind, number + k)) for k, kind in ((0, "truck"), (100, "orbit")))
            pictures = first[: len(first) // 2] + second[len(second) // 2 :]
        else:
            scene = _scene(clip.kind, number)
            pictures = _pictures(scene)
    if clip.truth_file:
        partial = _partial(clip.truth_file)
        world.write_truth(partial, scene, pictures, SCENES.fps)
        os.replace(partial, clip.truth_file)
    indices = np.arange(len(pictures))
    # safetensors writes memory as it lies, whatever the strides.
    frames = np.ascontiguousarray(np.stack([picture.rgb for picture in pictures]))
    partial = _partial(clip.frames_file)
    save_file({"frames": frames, "timestamps": indices / SCENES.fps, "indices": indices}, partial)
    os.replace(partial, clip.frames_file)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


def _pictures(scene: Scene) -> list[painting.Picture]:
    painter = painting.Painter(scene, SCENES.width, SCENES.height)
    return [painter.paint(frame) for frame in range(len(scene.world_from_camera))]


def _scene(kind: str, number: int) -> Scene:
    """A drawn scene in which what goes nowhere does not turn on the spot either."""
    scene = draw_scene(_SHARD, number, SCENES, "push" if kind == "frozen" else kind, GRAIN)
    stands = [kind == "frozen" or thing.travelled[-1] == 0 for thing in scene.things]
    things = [_standing(thing) if still else thing for thing, still in zip(scene.things, stands, strict=True)]
    return replace(scene, things=things)


def _standing(thing: Thing) -> Thing:
    """The thing, held where it is in the middle of the clip."""
    middle = len(thing.ground) // 2
    return replace(
        thing,
        ground=np.repeat(thing.ground[middle : middle + 1], len(thing.ground), axis=0),
        rotation=np.repeat(thing.rotation[middle : middle + 1], len(thing.rotation), axis=0),
        travelled=np.zeros_like(thing.travelled),
    )
