import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from assets.benchmark.official import table
from assets.benchmark.suite import read_suite
from assets.questions.official_text import OfficialFormatError

TRENDS = [
    "A. (1) Becomes larger.",
    "B. (1) Becomes smaller.",
    "C. (1) Keep nearly constant.",
    "D. (1) Becomes larger. (2) Becomes smaller.",
]
ROWS = {
    "dsr_bench": {
        "videoID": "-abc_1",
        "question": "Between 1.0s and 4.0s, following the perspective of camera, how does the speed of dog with "
        "initial bounding box coordinates [1,2,30,40] change?",
        "options": TRENDS,
        "answer": "B",
        "type": "rel_spd",
    },
    "vlm4d": {
        "id": "validation_3",
        "video": "https://host/datasets/x/resolve/main/videos_real/davis/base%20ball.mp4",
        "question_type": "multiple-choice",
        "question": "How often?",
        "choices": {"A": 1, "B": 2, "C": "there are none ", "D": 0},
        "answer": 0,
    },
    "sti_bench": {
        "Video": "scene_7.mp4",
        "Source": "Waymo",
        "Task": "Displacement & Path Length",
        "Question": "How far does it go?",
        "time_start": 0.5,
        "time_end": 12.0,
        "Candidates": {"A": "1 m", "B": "2 m", "C": "3 m", "D": "4 m", "E": None},
        "Answer": "C",
        "ID": 4,
    },
    "vsi_bench": {
        "id": 17,
        "dataset": "scannet",
        "scene_name": "scene0011_00",
        "question_type": "object_rel_distance",
        "question": "Which is closest?",
        "ground_truth": "B",
        "options": ["A. table", "B. chair", "C. sofa", "D. bed"],
    },
    "video_mme": {
        "video_id": "001",
        "duration": "short",
        "videoID": "fFjv93ACGo8",
        "question_id": "001-1",
        "task_type": "Counting Problem",
        "question": "How many?",
        "options": ["A. One.", "B. Two.", "C. Three.", "D. Four."],
        "answer": "C",
    },
}
COUNTING = {"question_type": "object_counting", "question": "How many?", "ground_truth": "4", "options": None, "id": 18}


def parquet(folder, *rows):
    path = folder / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


def lines(folder, *rows):
    path = folder / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path


def array(folder, *rows):
    path = folder / "rows.json"
    path.write_text(json.dumps(rows))
    return path


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dsr_bench", ("-abc_1", "rel_spd", "(1) Becomes larger.", "B", (1.0, 4.0))),
        ("vlm4d", ("davis/base ball", "real", "1", "D", None)),
        ("sti_bench", ("scene_7", "Displacement & Path Length", "1 m", "C", (0.5, 12.0))),
        ("vsi_bench", ("scannet/scene0011_00", "object_rel_distance", "table", "B", None)),
        ("video_mme", ("fFjv93ACGo8", "Counting Problem", "One.", "C", None)),
    ],
)
@pytest.mark.parametrize("write", [parquet, lines, array])
def test_a_published_row_becomes_an_item(tmp_path, name, expected, write):
    # A column of Parquet holds one type.
    of_one_type = {"choices": {"A": 1, "B": 2, "C": 3, "D": 0}} if name == "vlm4d" and write is parquet else {}
    suite = read_suite(name, write(tmp_path, ROWS[name] | of_one_type))
    (item,) = suite.items
    assert (item.video, item.type, item.options[0], item.answer, item.segment) == expected
    assert len(item.options) == 4
    assert not suite.unusable
    assert len(suite.digest) == 64


def test_ids_are_the_publishers_where_it_gives_plain_ones(tmp_path):
    assert read_suite("vlm4d", array(tmp_path, ROWS["vlm4d"])).items[0].item_id == "validation_3"
    assert read_suite("vsi_bench", array(tmp_path, ROWS["vsi_bench"])).items[0].item_id == "17"
    first = read_suite("sti_bench", array(tmp_path, ROWS["sti_bench"])).items[0].item_id
    again = read_suite("sti_bench", lines(tmp_path, ROWS["sti_bench"] | {"ID": 99})).items[0].item_id
    other = read_suite("sti_bench", lines(tmp_path, ROWS["sti_bench"] | {"time_end": 13.0})).items[0].item_id
    assert first == again != other
    evil = read_suite("vlm4d", array(tmp_path, ROWS["vlm4d"] | {"id": "../<script>"})).items[0].item_id
    assert evil.isalnum()


def test_a_segment_stands_before_the_question(tmp_path):
    (item,) = read_suite("sti_bench", parquet(tmp_path, ROWS["sti_bench"])).items
    assert item.question == "From 0.5 seconds to 12 seconds. How far does it go?"


def test_predictions_hide_the_last_second(tmp_path):
    row = ROWS["dsr_bench"] | {
        "type": "rel_dir_pred",
        "question": "Following the perspective of camera, predict the moving direction of car with final bounding box "
        "coordinates [1,2,3,4]",
        "options": ["A. (1) Left.", "B. (1) Right.", "C. (1) Front.", "D. (1) Above."],
    }
    predicted, described = read_suite("dsr_bench", lines(tmp_path, row, ROWS["dsr_bench"])).items
    assert (predicted.hidden_seconds, described.hidden_seconds) == (1.0, 0.0)
    assert predicted.frame_limit == (640, 360)


@pytest.mark.parametrize("write", [parquet, lines])
def test_numeric_and_multiple_choice_rows_stand_in_one_file(tmp_path, write):
    suite = read_suite("vsi_bench", write(tmp_path, ROWS["vsi_bench"], ROWS["vsi_bench"] | COUNTING))
    assert [(len(item.options), item.answer) for item in suite.items] == [(4, "B"), (0, "4")]


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("vlm4d", {"choices": {"A": "left", "B": "Left. ", "C": "up", "D": 0}}, "two options are equal"),
        ("vlm4d", {"answer": "sideways"}, "answer is none of the options"),
        ("vlm4d", {"answer": None}, "answer is missing"),
        ("vlm4d", {"choices": {"A": 1, "C": 0}}, "options are not under the first letters"),
        ("vlm4d", {"choices": [1, 0]}, "choices are no mapping"),
        ("vlm4d", {"choices": {"A": True, "B": 0}}, "an option is no text"),
        ("vlm4d", {"question": "x" * 5000}, "question is empty or longer than 4096"),
        ("vlm4d", {"question": "\ud800"}, "question is no text"),
        ("vlm4d", {"video": "https://host/"}, "the video has no name"),
        ("dsr_bench", {"videoID": "../x"}, "videoID is no plain name"),
        ("dsr_bench", {"type": "other"}, "type is none of the 13"),
        ("sti_bench", {"time_end": 0.25}, "the segment does not end after it starts"),
        ("sti_bench", {"time_start": "soon"}, "time_start is no number"),
        ("sti_bench", {"time_start": -1}, "time_start is no time"),
        ("sti_bench", {"Answer": "E"}, "answer is none of the 4 letters"),
        ("vsi_bench", {"options": []}, "a question of object_rel_distance has no options"),
        ("vsi_bench", {"question_type": "object_counting"}, "a question of object_counting has options"),
        ("vsi_bench", COUNTING | {"ground_truth": "0"}, "ground_truth is no positive number"),
        ("vsi_bench", COUNTING | {"ground_truth": "four"}, "ground_truth is no number"),
        ("vsi_bench", COUNTING | {"ground_truth": "inf"}, "ground_truth is no positive number"),
        ("video_mme", {"options": ["A. One."]}, "options are not 2 to 26"),
        ("video_mme", {"options": ["A. One.", "B. "]}, "an option is empty"),
        ("video_mme", {"answer": "CD"}, "answer is none of the 4 letters"),
    ],
)
def test_a_bad_row_is_set_aside_with_its_number_and_reason(tmp_path, name, change, reason):
    suite = read_suite(name, lines(tmp_path, ROWS[name], ROWS[name] | {"id": "other", "question_id": "o"} | change))
    assert len(suite.items) == 1
    (bad,) = suite.unusable
    assert bad.row == 1
    assert bad.reason.startswith(reason)
    assert len(bad.reason) < 300 and bad.reason.isprintable()


@pytest.mark.parametrize("name", ROWS)
def test_a_row_that_stands_there_twice_counts_once(tmp_path, name):
    suite = read_suite(name, lines(tmp_path, ROWS[name], ROWS[name]))
    assert len(suite.items) == 1
    assert suite.unusable[0].reason.startswith("the same question as row 0")


def test_letters_go_only_where_all_options_carry_their_own():
    assert table.options_of(["(A) left", "(B) right"]) == ("left", "right")
    assert table.options_of(["A. left", "right"]) == ("A. left", "right")
    assert table.options_of(["B. left", "A. right"]) == ("B. left", "A. right")
    assert table.options_of([1, 2.5]) == ("1", "2.5")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "neither Parquet nor JSON"),
        (b"PK\x03\x04zip", "neither Parquet nor JSON"),
        (b"version https://git-lfs", "neither Parquet nor JSON"),
        (b"PAR1 and nothing more", "is damaged"),
        (b"[{", "is no JSON"),
        (b"[1, 2]", "row 0 is 1, no object"),
        (b"[" * 100_000, "is no JSON"),
        (b'[{"a": 1}]', "no row has id, video"),
        (b'{"id": "\xff"}', "is no JSON"),
    ],
)
def test_another_kind_of_file_is_refused_in_one_line(tmp_path, content, why):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(OfficialFormatError, match=why) as error:
        read_suite("vlm4d", path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_a_missing_file_column_and_too_much_are_refused(tmp_path, monkeypatch):
    with pytest.raises(OfficialFormatError, match="cannot be read"):
        read_suite("vlm4d", tmp_path / "nowhere.json")
    with pytest.raises(OfficialFormatError, match="column 'videoID' is missing"):
        read_suite("video_mme", parquet(tmp_path, {"question": "?"}))
    path = lines(tmp_path, *[ROWS["vlm4d"]] * 3)
    monkeypatch.setattr(table, "MOST_ROWS", 2)
    with pytest.raises(OfficialFormatError, match="more than 2 rows"):
        read_suite("vlm4d", path)
    monkeypatch.setattr(table, "MOST_BYTES", 10)
    with pytest.raises(OfficialFormatError, match="larger than 10 bytes"):
        read_suite("vlm4d", path)


# The published samples


@pytest.mark.parametrize("file", ["benchmark_sample.parquet", "dsr_bench_sample.jsonl"])
def test_every_published_dsr_row_is_read(shared_data, file):
    suite = read_suite("dsr_bench", shared_data / "benchmarks" / "dsr" / file)
    assert (len(suite.items), suite.unusable) == (46, ())
    assert len({item.type for item in suite.items}) == 13
    assert not any(option.startswith(("A. ", "B. ", "C. ", "D. ")) for item in suite.items for option in item.options)


def test_both_files_of_dsr_give_the_same_items(shared_data):
    folder = shared_data / "benchmarks" / "dsr"
    first, second = (
        read_suite("dsr_bench", folder / f) for f in ("benchmark_sample.parquet", "dsr_bench_sample.jsonl")
    )
    assert first.items == second.items


def test_of_the_published_vlm4d_rows_one_has_two_right_answers(shared_data):
    suite = read_suite("vlm4d", shared_data / "benchmarks" / "vlm4d" / "real_mc_first700.json")
    assert len(suite.items) == 699
    assert [bad.row for bad in suite.unusable] == [632]
    assert suite.unusable[0].reason == "two options are equal ('away from the camera')"
