import base64
import io
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from assets.benchmark.examples import draw_example
from assets.geometry.record import load, save
from models.pixels import Marks, draw_marks
from tests.assets.benchmark.conftest import HEIGHT, SHARD, WIDTH


def example_of(root, parameters, rename=None):
    """The first question of the bench, its clip's things renamed."""
    row = pq.read_table(root / "splits" / "bench.parquet").slice(0, 1).to_pylist()[0]
    path = root / "geometry" / SHARD / f"{row['clip']}.safetensors"
    record = load(path)
    if rename:
        save(replace(record, names=list(map(rename, record.names))), path)
        row["targets"] = list(map(rename, row["targets"]))
    even = np.full(4, 0.25)
    return draw_example(row, even, even, root / "videos", root / "geometry", parameters), load(path)


def pixels(picture) -> np.ndarray:
    data = base64.b64decode(picture.source.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(data)), int)


def test_an_example_shows_the_marks_that_the_model_sees(own_world, parameters):
    plain, before = example_of(own_world, parameters)
    example, record = example_of(own_world, parameters, lambda name: f"thing {before.names.index(name) + 1}")
    assert not any(before.marks) and sorted(record.marks) == [1, 2, 3, 4, 5]
    things = [before.names.index(name) for name, _ in plain.targets]
    assert len(things) == 2
    assert [name for name, _ in example.targets] == [f"thing marked {record.marks[thing]}" for thing in things]

    difference = np.abs(pixels(example.pictures[0]) - pixels(plain.pictures[0])).max(-1)
    height, width = difference.shape
    marks = Marks(tuple(record.marks), record.boxes[:, :1] / [WIDTH, HEIGHT, WIDTH, HEIGHT])
    drawn = draw_marks(np.full((1, height, width, 3), 90, np.uint8), marks)[0, ..., 0] != 90
    # Outside the discs there are the labels, which changed too, and what JPEG smears.
    assert np.mean(difference[drawn] > 40) > 0.5 > 0.2 > np.mean(difference[~drawn] > 40)


def test_the_recording_camera_is_not_a_thing_of_that_name(own_world, parameters):
    example, record = example_of(own_world, parameters, lambda name: name.replace("pillar", "camera"))
    assert "camera" in record.names
    assert [name for name, _ in example.targets] == ["green car"]
