import re
from dataclasses import replace

import numpy as np
import pytest

from assets.geometry.record import rounded
from assets.questions.candidates import derive
from assets.questions.official_text import read_parts
from assets.questions.parameters import QuestionParameters
from assets.questions.wording import answer_text, clean_names
from tests.assets.questions.conftest import clip_of, of_templates, synthetic_record

PARAMETERS = QuestionParameters(candidates_per_type=6, draws=2, pool_per_type=256)
SIZE = (90, 160)


def record_of(names: list[str]):
    """Things of those names with a box each that moves over the picture, partly out of it."""
    record = synthetic_record(3)
    objects, frames = record.boxes.shape[:2]
    assert objects == 5
    corner = 7.3 * np.arange(frames)[:, None] - [20, 40] + 11 * np.arange(objects)[:, None, None]
    boxes = np.concatenate([corner, corner + np.array([30.5, 60.5])], axis=-1)
    provenance = {**record.provenance, "frame_size": list(SIZE)}
    return rounded(replace(record, names=names, boxes=boxes, provenance=provenance))


def parts_of(row: dict):
    parts = read_parts(row["type"], row["question"], [answer_text(row["states"])] * 4)
    assert parts.unread == {}, row["question"]
    return parts


def rows_of(record, has_video=True, **other) -> list[dict]:
    rows = derive(record, clip_of(3), "shard-000000", has_video, PARAMETERS.model_copy(update=other)).rows
    assert len(rows) > 30
    return of_templates(rows)


def test_equal_names_are_told_apart_by_marks():
    record = record_of(["car 1", "car 2", "dog 1", "red crate", "horse and rider"])
    called = {
        "car 1": f"car marked {record.marks[0]}",
        "car 2": f"car marked {record.marks[1]}",
        "dog 1": "dog",
        "red crate": "red crate",
        "horse and rider": f"horse and rider marked {record.marks[4]}",
        "camera": "camera",
    }
    rows = rows_of(record)
    for row in rows:
        parts = parts_of(row)
        assert [target.name for target in parts.targets] == [called[name] for name in row["targets"]]
        assert parts.viewpoint.name == called[row["viewpoint_subject"]]
    assert {name for row in rows for name in row["targets"]} == set(called)


def test_without_a_video_the_names_of_the_record_stand():
    for row in rows_of(record_of(["car 1", "car 2", "dog 1", "crate", "van"]), has_video=False, pointing="boxes"):
        assert [target.name for target in parts_of(row).targets] == row["targets"]
        assert "marked" not in row["question"] and "box" not in row["question"]


@pytest.mark.parametrize(
    "names", [["car 1", "car 2", "dog 1", "crate", "camera"], ["a, b", "man and to", "[1,2,3,4]", "<|im_end|>", "x\n?"]]
)
def test_boxes_in_the_text_are_those_of_the_record(names):
    record = record_of(names)
    boxed = 0
    for row in rows_of(record, pointing="boxes"):
        parts = parts_of(row)
        when = "final" if row["type"].endswith("dir_pred") else "initial"
        for target, name in zip(parts.targets, row["targets"], strict=True):
            boxed += has_box(record, target, name, row["interval_start"], when)
        moment = row["viewpoint_time"]
        viewed = (row["interval_start"], when) if moment is None else (moment, "")
        boxed += has_box(record, parts.viewpoint, row["viewpoint_subject"], *viewed)
        assert not re.search(r"(car|dog) [0-9]", row["question"])
    assert boxed > 20


def has_box(record, said, name: str, time: float, when: str) -> bool:
    """Whether it is pointed at by a box, which is then that of the thing at that time, and none where none is seen."""
    if name == "camera":
        assert said.is_camera
        return False
    low, high = np.split(
        record.boxes[clean_names(record.names, 48).index(name), np.abs(record.timestamps - time).argmin()], 2
    )
    if (high <= 0).any() or (low >= SIZE[::-1]).any():
        assert said.box is None
        return False
    assert said.box_at == when
    assert np.abs(np.array(said.box) - np.clip([*low, *high], 0, [*SIZE[::-1], *SIZE[::-1]])).max() < 1
    return True
