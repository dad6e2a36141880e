"""Scenes of the sample world to learn from and to be asked about: frames, scene records and questions.

They are drawn and measured as the chain does it, without the video file in between, at half the size, which the tiny
model's pixel budget hides anyway. What was made lies in `.cache` and is used again until a parameter or a source file
that makes it changes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save_file

from assets.geometry.estimators import Clip
from assets.geometry.estimators.rendered import Rendered
from assets.geometry.parameters import GeometryParameters
from assets.geometry.record import save
from assets.processes import processes
from assets.questions.build import finish
from assets.questions.candidates import derive
from assets.questions.parameters import QuestionParameters
from assets.questions.row import QUESTIONS
from assets.reuse import key_of
from assets.videos.painting import Painter
from assets.videos.parameters import SampleWorldParameters
from assets.videos.scenery import draw_scene
from assets.videos.world import write_truth

SHARD = "shard-000000"
SCENES, HELD_OUT = 450, 60
WORLD = SampleWorldParameters(width=96, height=72)
# As the laptop profile asks: steps of a second, answers of at most two states.
ASKED = QuestionParameters(step_seconds=1.0, max_states=2, candidates_per_type=14, max_per_clip=10_000)
# Distances, speeds, directions and orientations. A geometry token of the laptop profile sees one moment and the one
# before it: what is seen from a viewpoint frozen at another moment, or turns with the viewer, is beyond it.
TYPES = ("abs_dis", "rel_dis", "abs_spd", "abs_spd_comp", "rel_dir", "rel_ori")
ROOT = Path(__file__).parents[2]
CODE = (
    Path(__file__),
    *(path for link in ("videos", "geometry", "questions") for path in (ROOT / "assets" / link).rglob("*.py")),
)


@dataclass(frozen=True)
class World:
    """Folders laid out as a training wants them."""

    root: Path

    @property
    def videos(self) -> Path:
        """Holds `<shard>/frames/<clip>.safetensors`."""
        return self.root / "videos"

    @property
    def geometry(self) -> Path:
        """Holds `<shard>/<clip>.safetensors`."""
        return self.root / "geometry"

    @property
    def splits(self) -> Path:
        """Holds train.parquet and val.parquet, the held-out questions."""
        return self.root / "splits"

    def held_out(self) -> pa.Table:
        """The questions that nothing learns from."""
        return pq.read_table(self.splits / "val.parquet")

    def all_questions(self) -> pa.Table:
        """Both sides, named in the column `split`."""
        return pa.concat_tables([pq.read_table(self.splits / f"{side}.parquet") for side in ("train", "val")])


def world(cache: Path) -> World:
    """The world, made or found under a folder."""
    parts = {"world": WORLD.model_dump(), "asked": ASKED.model_dump(), "scenes": [SCENES, HELD_OUT], "types": TYPES}
    made = World(cache / f"training-world-{key_of(parts, CODE)[:12]}")
    if (made.splits / "val.parquet").is_file():
        return made
    for folder in (made.videos / SHARD / "frames", made.geometry / SHARD, made.splits):
        folder.mkdir(parents=True, exist_ok=True)
    with processes(2) as workers:
        rows = [row for rows in workers.map(partial(_scene, made=made), range(SCENES), chunksize=4) for row in rows]
    held_out = {clip_of(number) for number in range(HELD_OUT)}
    finished = finish(rows, ASKED, lambda clip: "val" if clip in held_out else "train")[0]
    for side in ("train", "val"):
        some = [row for row in finished if row["split"] == side]
        table = pa.Table.from_pylist([{name: row.get(name) for name in QUESTIONS.names} for row in some], QUESTIONS)
        pq.write_table(table, made.splits / f"{side}.parquet")
    return made


def clip_of(number: int) -> str:
    """Identity of a scene without a video file."""
    return hashlib.sha256(f"scene {number}".encode()).hexdigest()


def _scene(number: int, made: World) -> list[dict]:
    """Draw one scene, save its frames and record, and derive its questions."""
    from threadpoolctl import threadpool_limits

    clip = clip_of(number)
    frames, truth = made.videos / SHARD / "frames" / f"{clip}.safetensors", made.root / f"{clip}.truth"
    with threadpool_limits(1):
        scene = draw_scene(SHARD, number, WORLD)
        painter = Painter(scene, WORLD.width, WORLD.height)
        pictures = [painter.paint(frame) for frame in range(WORLD.fps * WORLD.seconds)]
        write_truth(truth, scene, pictures, WORLD.fps)
        moments = np.arange(len(pictures))
        shown = np.ascontiguousarray(np.stack([picture.rgb for picture in pictures]))
        save_file({"frames": shown, "timestamps": moments / WORLD.fps, "indices": moments}, str(frames))
        record = Rendered(GeometryParameters()).estimate(Clip({"kind": "video"}, truth, {"truth": truth}, frames))
        truth.unlink()
        save(record, made.geometry / SHARD / f"{clip}.safetensors")
        return [row for row in derive(record, clip, SHARD, True, ASKED).rows if row["type"] in TYPES]
