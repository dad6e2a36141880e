import json
import re

import pytest

from assets.benchmark.boxes import BoxError, rescale_text
from assets.benchmark.suite import (
    SUITES,
    Item,
    Suite,
    SuiteError,
    credit,
    for_clip,
    match_videos,
    mean_relative_accuracy,
    read_suite,
)

BOX = "dog with initial bounding box coordinates [10,20,630,350]"


def item(**other) -> Item:
    given = {"item_id": "q", "video": "clip", "type": "t", "question": "Where?", "options": ("left", "right")}
    return Item(**(given | {"answer": "B"} | other))


def suite(*videos: str) -> Suite:
    items = tuple(item(item_id=str(number), video=video) for number, video in enumerate(videos))
    return Suite("vlm4d", "1", items, (), "0" * 64)


def lay(folder, *names: str, content: bytes = b"video"):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


# Boxes


@pytest.mark.parametrize(
    ("clip", "box"),
    [
        ((640, 360), "[10,20,630,350]"),
        ((1280, 720), "[20,40,1260,700]"),
        ((320, 180), "[5,10,315,175]"),
    ],
)
def test_boxes_move_to_the_clips_pixels(clip, box):
    moved = for_clip(item(question=BOX, options=(BOX, "none"), frame_limit=(640, 360)), *clip, 10.0)
    assert box in moved.question
    assert box in moved.options[0]
    assert moved.options[1] == "none"


def test_a_clip_of_another_shape_was_scaled_to_fit_inside():
    # 4:3 inside 640x360 is 480x360, portrait 202.5x360.
    assert rescale_text("[0,0,480,360]", (640, 360), (1024, 768)) == "[0,0,1024,768]"
    assert rescale_text("[0,0,202,360]", (640, 360), (720, 1280)) == "[0,0,718,1280]"


def test_a_box_at_the_edge_is_clipped_and_one_outside_refused():
    assert rescale_text("[-2,0,645,361]", (640, 360), (640, 360)) == "[0,0,640,360]"
    with pytest.raises(BoxError, match=re.escape("box [0,0,640,360] lies outside a 480x360 frame")):
        rescale_text("[0,0,640,360]", (640, 360), (1024, 768))
    with pytest.raises(BoxError, match="must be positive"):
        rescale_text("[1,2,3,4]", (640, 360), (0, 720))


def test_text_without_boxes_and_items_without_a_frame_stay_as_they_are():
    text = "between [1, 2] and [a,b,c,d] [1,2,3,4,5]"
    assert rescale_text(text, (640, 360), (1280, 720)) == text
    assert for_clip(item(question=BOX), 1280, 720, 10.0).question == BOX


def test_the_end_that_a_type_hides_follows_from_the_clips_length():
    assert for_clip(item(hidden_seconds=1.0), 640, 360, 12.5).visible_until == 11.5
    assert for_clip(item(hidden_seconds=1.0, visible_until=3.0), 640, 360, 12.5).visible_until == 3.0
    assert for_clip(item(hidden_seconds=1.0), 640, 360, 0.5).visible_until == 0.0
    assert for_clip(item(), 640, 360, 12.5).visible_until is None


# What an answer is worth


def test_credit_of_letters_and_numbers():
    assert [credit(item(), answer) for answer in ("B", "A", None)] == [1.0, 0.0, 0.0]
    number = item(options=(), answer="10")
    assert [credit(number, answer) for answer in ("10", "12.4", "100", None, "many", "nan", "inf")] == [
        1,
        0.6,
        0,
        0,
        0,
        0,
        0,
    ]


@pytest.mark.parametrize(
    ("said", "share"),
    [(10, 1.0), (10.5, 1.0), (10.51, 0.9), (9, 0.9), (11, 0.9), (12.5, 0.6), (15, 0.1), (15.1, 0.0), (-10, 0.0)],
)
def test_mean_relative_accuracy_counts_thresholds(said, share):
    assert mean_relative_accuracy(said, 10) == pytest.approx(share)


# Videos


def test_videos_are_found_by_name_at_any_depth(tmp_path):
    lay(tmp_path, "a/b/one.mp4", "two.WEBM", "two.txt", ".hidden/three.mp4", ".three.mp4", "fo.ur.mp4")
    videos = match_videos(suite("one", "two", "three", "fo.ur", "one"), tmp_path)
    assert {name: path.name for name, path in videos.found.items()} == {
        "one": "one.mp4",
        "two": "two.WEBM",
        "fo.ur": "fo.ur.mp4",
    }
    assert videos.missing == {"three": "no file of this name"}


def test_the_publishers_folder_decides_between_two_of_a_name(tmp_path):
    lay(tmp_path, "davis/bear.mp4", "zoo/bear.mp4", "davis_lady_running.mp4")
    videos = match_videos(suite("davis/bear", "zoo/bear", "bear", "davis/lady-running"), tmp_path)
    assert videos.found["davis/bear"] == tmp_path / "davis" / "bear.mp4"
    assert videos.found["zoo/bear"] == tmp_path / "zoo" / "bear.mp4"
    assert videos.found["davis/lady-running"] == tmp_path / "davis_lady_running.mp4"
    assert videos.missing == {"bear": "2 files of this name: 'davis/bear.mp4', 'zoo/bear.mp4'; keep one"}


def test_exact_spelling_goes_before_like_spelling(tmp_path):
    lay(tmp_path, "aB_1.mp4", "ab_1.mp4", "c-d.mp4", "C_d.mp4")
    videos = match_videos(suite("aB_1", "c-d", "c d"), tmp_path)
    assert {name: path.name for name, path in videos.found.items()} == {"aB_1": "aB_1.mp4", "c-d": "c-d.mp4"}
    assert "2 files of this name" in videos.missing["c d"]


def test_a_file_that_is_no_video_is_said_before_anything_costly(tmp_path):
    lay(tmp_path, "empty.mp4", content=b"")
    lay(tmp_path, "pointer.mp4", content=b"version https://git-lfs.github.com/spec/v1\n")
    missing = match_videos(suite("empty", "pointer"), tmp_path).missing
    assert missing == {
        "empty": "its file is empty; download it again",
        "pointer": "its file is a Git LFS pointer; fetch it with `git lfs pull`",
    }


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "..", "secret\x00", "/secret", "*", "a/../../secret"])
def test_a_name_never_becomes_a_path(tmp_path, name):
    lay(tmp_path, "secret.mp4", "videos/other.mp4")
    videos = match_videos(suite(name), tmp_path / "videos")
    assert not videos.found
    assert videos.missing == {name: "no file of this name"}


def test_links_to_folders_are_not_followed(tmp_path):
    lay(tmp_path, "outside/one.mp4", "videos/two.mp4")
    (tmp_path / "videos" / "round").symlink_to(tmp_path)
    assert match_videos(suite("one"), tmp_path / "videos").missing


def test_a_missing_folder_and_an_unknown_suite_are_refused(tmp_path):
    with pytest.raises(SuiteError, match="no such folder"):
        match_videos(suite("one"), tmp_path / "nowhere")
    with pytest.raises(SuiteError, match=r"no benchmark '\.\./evil'; choose one of dsr_bench"):
        read_suite("../evil", tmp_path)


def test_a_file_without_a_usable_row_is_refused_with_a_reason(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text("[]")
    with pytest.raises(SuiteError, match="no question of vlm4d can be used, it is empty"):
        read_suite("vlm4d", path)
    row = {"id": "a", "video": "v.mp4", "question": "?", "choices": {"A": 1, "B": 1}, "answer": 1, "question_type": "x"}
    path.write_text(json.dumps([row]))
    with pytest.raises(SuiteError, match="for example row 0: two options are equal"):
        read_suite("vlm4d", path)


# The published samples


def test_every_question_with_a_local_clip_finds_it(shared_data):
    found = read_suite("vlm4d", shared_data / "benchmarks" / "vlm4d" / "real_mc_with_local_clips.json")
    rows = json.loads((shared_data / "benchmarks" / "vlm4d" / "real_mc_with_local_clips.json").read_text())
    videos = match_videos(found, shared_data / "videos")
    assert len(found.items) == 24
    assert not videos.missing
    assert [str(videos.found[item.video].relative_to(shared_data)) for item in found.items] == [
        row["local_video"] for row in rows
    ]


def test_every_suite_has_a_reader():
    from importlib import import_module

    for name in SUITES:
        module = import_module(f"assets.benchmark.official.{name}")
        assert module.VERSION
        assert "arXiv" in module.__doc__, f"{name} does not say where its schema is from"
