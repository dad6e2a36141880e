import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from assets.geometry.marks import marks_of, pointed, printable_name, unnumbered
from assets.geometry.record import RecordError, load, save, unknown


def boxes_of(count: int, frames: int = 3) -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 40, (count, frames, 4)).astype(np.float32)


@pytest.mark.parametrize(
    ("names", "marked"),
    [
        (["red car", "blue car"], []),
        (["car 1"], []),
        (["car 1", "dog 1"], []),
        (["car 1", "car 2", "dog 1"], [0, 1]),
        (["moving thing 1", "moving thing 2"], [0, 1]),
        (["Car", "ca\u200br 7"], [0, 1]),
        (["man", "man in red"], [0]),
        (["horse", "seahorse"], []),
        (["camera"], [0]),
        (["video camera"], []),
        (["12", "3 4"], [0, 1]),
        (["horse and rider"], [0]),
        (["", "\x00", "object 9"], [0, 1, 2]),
    ],
)
def test_what_a_name_does_not_point_at_is_marked(names, marked):
    marks = marks_of(names, boxes_of(len(names)))
    assert [index for index, mark in enumerate(marks) if mark] == marked
    assert sorted(mark for mark in marks if mark) == list(range(1, len(marked) + 1))


@given(st.lists(st.text(st.sampled_from("ab 12<,\u202e") | st.characters(), max_size=6), max_size=6))
def test_what_texts_say_is_never_the_same_for_two_things(names):
    marks = marks_of(names, boxes_of(len(names)))
    said = [pointed(printable_name(name), mark).casefold() for name, mark in zip(names, marks, strict=True)]
    assert len({*said, "camera"}) == len(names) + 1
    assert all(name.isprintable() for name in said)


def test_a_running_number_is_no_part_of_a_name():
    assert [unnumbered(name) for name in ("car 2", "car 2 10", "mp3", "7", "")] == [
        "car",
        "car",
        "mp3",
        "object",
        "object",
    ]


def test_numbers_do_not_follow_the_order_of_the_things():
    """Things come the longest seen first: over many clips, a number must not tell who that is."""
    rng = np.random.default_rng(0)
    first = [marks_of(["car 1", "car 2"], rng.uniform(0, 9, (2, 3, 4)).astype(np.float32))[0] for _ in range(400)]
    assert 160 < first.count(1) < 240


def test_marks_are_stored_with_the_record(tmp_path):
    record = unknown(
        np.arange(3.0),
        ["car 1", "car 2", "dog"],
        ["car", "car", "dog"],
        boxes=boxes_of(3),
        provenance={"status": "3d", "frame_size": [40, 40]},
    )
    save(record, tmp_path / "a")
    with safe_open(tmp_path / "a", "np") as file:
        assert json.loads(file.metadata()["record"])["marks"] == record.marks
    assert load(tmp_path / "a", ["timestamps"]).marks == record.marks
    assert sorted(record.marks) == [0, 1, 2] and record.marks[2] == 0
    # Whatever a caller holds, names and boxes decide.
    save(replace(record, marks=[9, 9, 9]), tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with pytest.raises(RecordError, match="boxes"):
        save(replace(record, boxes=boxes_of(1)), tmp_path / "c")
