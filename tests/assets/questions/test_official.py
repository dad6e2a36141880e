import gzip
import json
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from assets.questions.candidates import derive
from assets.questions.official import COLUMNS, import_rows, import_summary, write_imported
from assets.questions.official_export import FORMATS, export_questions
from assets.questions.official_text import (
    Entity,
    OfficialFormatError,
    UnreadError,
    infer_type,
    read_parts,
    read_states,
    unlabelled,
)
from assets.questions.parameters import QuestionParameters
from assets.questions.row import LETTERS, QUESTIONS, TEMPLATE_TYPES, TYPES, write_table
from assets.questions.states import STATE_TEXTS
from assets.questions.wording import answer_text, question_text
from tests.assets.questions.conftest import clip_of, of_templates, synthetic_record

CAMERA = Entity("camera")
TURNS = ["(1) Front.", "(1) Left.", "(1) Right.", "(1) Front|Left. (2) Front."]
TRENDS = [
    "(1) Becomes larger.",
    "(1) Becomes smaller.",
    "(1) Keep nearly constant.",
    "(1) Becomes larger. (2) Becomes smaller.",
]
GROWS = (
    "Between 1.0s and 4.0s, following the perspective of camera, how does the distance between dog and camera change?"
)


def official(**other) -> dict:
    return {"videoID": "a_1", "question": GROWS, "options": TRENDS, "answer": "A", "type": "rel_dis"} | other


def json_file(folder, content, name="rows.json"):
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


# What texts say


@pytest.mark.parametrize(
    ("kind", "question", "viewpoint", "moment", "targets", "interval"),
    [
        (
            "rel_dis",
            "Between 7.0s and 25.0s, following the perspective of child with initial bounding box coordinates "
            "[27,13,39,35], how does the distance between child with initial bounding box coordinates [3,1,4,5] and "
            "child with initial bounding box coordinates [27,13,39,35] change?",
            Entity("child", (27, 13, 39, 35), "initial"),
            None,
            (Entity("child", (3, 1, 4, 5), "initial"), Entity("child", (27, 13, 39, 35), "initial")),
            (7, 25),
        ),
        (
            "abs_dir_pred",
            "From the perspective of santa claus with bounding box coordinates [41,4,55,26] at 9.5s, predict the "
            "moving direction of car with final bounding box coordinates [5,17,63,22]",
            Entity("santa claus", (41, 4, 55, 26)),
            9.5,
            (Entity("car", (5, 17, 63, 22), "final"),),
            None,
        ),
        (
            "rel_spd_comp",
            "Between 6.0s and 16.0s, following the perspective of camera, compare the speed between woman with initial "
            "bounding box coordinates [18,5,25,29] and camera with initial bounding box coordinates [20,11,23,16].",
            CAMERA,
            None,
            (Entity("woman", (18, 5, 25, 29), "initial"), Entity("camera", (20, 11, 23, 16), "initial")),
            (6, 16),
        ),
        (
            "abs_dis",
            "Between 1 and 3 seconds, from the viewpoint of the black dog at 2 s, how did the distance from Car to the "
            "camera vary over time?",
            Entity("black dog"),
            2,
            (Entity("Car"), CAMERA),
            (1, 3),
        ),
        (
            "rel_spd",
            "How does the speed of lunch box [1, 2, 3.5, 4] change between 1.0s and 3.0s, following the perspective of "
            "the camera?",
            CAMERA,
            None,
            (Entity("lunch box", (1, 2, 3.5, 4)),),
            (1, 3),
        ),
        (
            "rel_dir",
            "Between 0.5s and 2.5s, following the perspective of horse and rider, how does the direction of black and "
            "white dog with bbox [1,2,3,4] to camera change?",
            Entity("horse and rider"),
            None,
            (Entity("black and white dog", (1, 2, 3, 4)), CAMERA),
            (0.5, 2.5),
        ),
        (
            "rel_spd_comp",
            "Between 1.0s and 3.0s, following the perspective of camera, how does the speed of red android compare to "
            "that of the dog with first bounding box [1,2,3,4]?",
            CAMERA,
            None,
            (Entity("red android"), Entity("dog", (1, 2, 3, 4), "initial")),
            (1, 3),
        ),
    ],
)
def test_parts_of_a_question(kind, question, viewpoint, moment, targets, interval):
    options = TURNS if "dir" in kind else ["(1) Nearly the same."] * 4 if "comp" in kind else TRENDS
    if kind.endswith("dir_pred"):
        options = [*TURNS[:3], "(1) Front|Left."]
    parts = read_parts(kind, question, options)
    assert parts.unread == {}
    assert parts.viewpoint_kind == kind[:3]
    assert (parts.viewpoint, parts.viewpoint_time) == (viewpoint, moment)
    assert (parts.targets, parts.interval) == (targets, interval)
    assert infer_type(question, options) == kind


def test_a_camera_with_a_box_is_a_thing():
    assert CAMERA.is_camera
    assert not Entity("camera", (1, 2, 3, 4)).is_camera


@pytest.mark.parametrize(
    ("part", "kind", "question"),
    [
        ("question", "rel_dir", GROWS),
        ("question", "rel_dis", GROWS.replace("following", "ignoring cars, following")),
        ("question", "rel_dis", GROWS.replace("following the perspective of camera, ", "")),
        ("question", "rel_dis", GROWS + "x" * 5000),
        ("viewpoint", "abs_dis", GROWS),
        ("viewpoint", "abs_dis", GROWS.replace("following", "from")),
        ("viewpoint", "rel_dis", GROWS.replace("of camera", "of camera at 2.0s")),
        ("viewpoint", "rel_dis", GROWS.replace("of camera", "of camera, as it were")),
        ("interval", "rel_dis", GROWS.replace("4.0s", "1.0s")),
        ("interval", "rel_dis", GROWS.replace("Between 1.0s and 4.0s, ", "")),
        ("interval", "rel_dis", GROWS.replace("change", "change from 2.0s to 3.0s")),
        ("targets", "rel_dis", GROWS.replace("dog and", "dog with bounding box [4,2,3,9] and")),
        ("targets", "rel_dis", GROWS.replace("dog and", "dog [1,2,3] and")),
        ("targets", "rel_dis", GROWS.replace("dog and", "with bounding box [1,2,3,4] and")),
        ("targets", "rel_dis", GROWS.replace("dog and camera", "horse and rider and dog")),
        ("targets", "rel_dis", GROWS.replace("dog and camera", "dog")),
        ("targets", "rel_dis", GROWS.replace(" change", "")),
    ],
)
def test_a_part_that_cannot_be_read_is_named(part, kind, question):
    unread = read_parts(kind, question, TRENDS).unread
    assert part in unread
    assert "\n" not in unread[part]


@pytest.mark.parametrize(
    ("kind", "text", "states"),
    [
        ("rel_dis", "(1) Become larger. (2) Becomes smaller.", "larger smaller"),
        ("rel_dis", "Keep nearly constant and then becomes larger.", "then-larger"),
        ("abs_spd", "(1) Keep nearly constant and then become larger.. (2) Increases", "then-larger larger"),
        (
            "rel_dis",
            "(1) Becomes smaller. (2) Becomes smaller. (3) Gets closer. (4) Stays the same",
            "smaller constant",
        ),
    ],
)
def test_trends_in_other_words(kind, text, states):
    words = {
        "larger": "Becomes larger",
        "smaller": "Becomes smaller",
        "constant": "Keep nearly constant",
        "then-larger": "Keep nearly constant and then become larger",
    }
    assert read_states(kind, text) == tuple(words[state] for state in states.split())


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("(1) The former is always faster.", "The former is faster"),
        ("The latter is always faster.", "The latter is faster"),
        ("(1) Their speed is nearly the same.", "Nearly the same"),
        ("(1) the former is slower than the latter", "The latter is faster"),
    ],
)
def test_comparisons_in_the_words_of_the_reference(text, state):
    assert read_states("abs_spd_comp", text) == (state,)


def test_directions_in_any_order():
    assert read_states("rel_dir", "(1) Above|left-Front (2) To the right and behind. (3) down") == (
        "Front|Left|Above",
        "Behind|Right",
        "Below",
    )


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("rel_dis", "(1) Does not become larger."),
        ("rel_dis", "(1) Becomes larger and then becomes smaller."),
        ("rel_dis", "(1) Becomes larger. (3) Becomes smaller."),
        ("rel_dis", "(2) Becomes larger."),
        ("rel_dis", "Overall: (1) Becomes larger."),
        ("rel_dis", "(1) Becomes farther left."),
        ("rel_dis", "(1) ."),
        ("rel_dis", " ".join(f"({n}) Becomes larger." for n in range(1, 99))),
        ("rel_dis", "x" * 5000),
        ("rel_dir", "(1) Front|Behind."),
        ("rel_dir", "(1) Front then Left."),
        ("rel_dir", "(1) Becomes larger."),
        ("rel_dir_pred", "(1) Front. (2) Left."),
        ("abs_spd_comp", "(1) The former."),
        ("abs_spd_comp", "(1) Becomes larger."),
    ],
)
def test_what_is_no_answer_of_the_type_is_unread(kind, text):
    with pytest.raises(UnreadError):
        read_states(kind, text)
    assert "option B" in read_parts(kind, GROWS, [*TURNS[:1], text, *TURNS[2:]]).unread


@pytest.mark.parametrize("kind", TEMPLATE_TYPES)
def test_every_state_of_the_vocabulary_is_read_as_itself(kind):
    states = [state for state in STATE_TEXTS[kind[4:]] if state]
    assert [read_states(kind, answer_text([state])) for state in states] == [(state,) for state in states]


def test_free_text_gives_the_parts_that_it_names():
    question = (
        "From the perspective of car with bounding box coordinates [25,10,28,12] at 2.5s, between 1.0s and 4.0s, "
        "between 1.0s and 4.0s, which dog, if any, ends above the car [25,10,28,12]?"
    )
    parts = read_parts("non_temp", question, ["the dog [1,2,3,4]", "no dog", "both", "the cat"])
    assert parts.free_text
    assert (parts.unread, parts.targets, parts.states) == ({}, (), (None,) * 4)
    assert (parts.viewpoint_kind, parts.viewpoint_time, parts.interval) == ("abs", 2.5, (1, 4))
    assert parts.viewpoint == Entity("car", (25, 10, 28, 12))
    assert read_parts("non_temp", "Which dog wins?", TURNS).unread == {}
    assert "interval" in read_parts("non_temp", "Between 4.0s and 1.0s, which dog wins?", TURNS).unread


@pytest.mark.parametrize(
    "text",
    [
        "[" * 4000,
        "between 1.0s and " * 240,
        "from the perspective of " * 160,
        GROWS.replace("dog", "and " * 900),
        GROWS.replace("dog", "with initial bounding box coordinates " * 90),
        "(1) " * 1000,
        "\ufdfa" * 4000,
    ],
)
def test_hostile_text_is_bounded(text):
    started = time.perf_counter()
    for kind in ("rel_dis", "abs_spd_comp", "non_temp"):
        read_parts(kind, text, [text] * 4)
    infer_type(text, [text] * 4)
    assert time.perf_counter() - started < 3


def test_our_own_questions_are_read_whole():
    parameters = QuestionParameters(candidates_per_type=4, draws=2, pool_per_type=256)
    rows = [row for n in range(2) for row in derive(synthetic_record(n), clip_of(n), "s", True, parameters).rows]
    rows = of_templates(rows)
    assert {row["type"] for row in rows} == set(TEMPLATE_TYPES)
    for row in rows:
        options = [answer_text(row["states"])] * 4
        parts = read_parts(row["type"], row["question"], options)
        assert parts.unread == {}
        assert parts.viewpoint_kind == row["viewpoint_kind"]
        assert parts.viewpoint.name == row["viewpoint_subject"]
        assert [target.name for target in parts.targets] == row["targets"]
        assert parts.states[0] == tuple(row["states"])
        assert infer_type(row["question"], options) == row["type"]
        if row["viewpoint_time"] is not None:
            assert parts.viewpoint_time == pytest.approx(row["viewpoint_time"], abs=0.051)
        if not row["type"].endswith("dir_pred"):
            assert parts.interval == pytest.approx((row["interval_start"], row["interval_end"]), abs=0.051)


# Real rows


@pytest.mark.parametrize("name", ["benchmark_sample.parquet", "dsr_bench_sample.jsonl"])
def test_every_real_row_is_read_whole(shared_data, name):
    imported = import_rows(shared_data / "benchmarks" / "dsr" / name)
    assert (len(imported.rows), imported.parsed, imported.refused) == (46, 46, [])
    assert {row["type"] for row in imported.rows} == set(TYPES)
    assert all(infer_type(row["question"], row["options"]) == row["type"] for row in imported.rows)
    boxes = np.array([entity.box for parts in imported.parts for entity in parts.targets if entity.box])
    assert (boxes >= 0).all() and (boxes <= [640, 360, 640, 360]).all()
    boxed = [target for parts in imported.parts for target in parts.targets if target.name == "camera" and target.box]
    assert len(boxed) == 1
    assert any(parts.viewpoint in parts.targets and parts.viewpoint.box for parts in imported.parts)
    for row, parts in zip(imported.rows, imported.parts, strict=True):
        assert not any(option.startswith(f"{letter}. ") for letter, option in zip("ABCD", row["options"], strict=True))
        if not parts.free_text:
            assert all(state in STATE_TEXTS[row["type"][4:]] for states in parts.states for state in states)


@pytest.mark.parametrize("form", FORMATS)
def test_real_rows_survive_every_format(shared_data, tmp_path, form):
    imported = import_rows(shared_data / "benchmarks" / "dsr" / "benchmark_sample.parquet")
    write_table(imported.rows, pa.schema([field for field in QUESTIONS if field.name in COLUMNS]), tmp_path / "in")
    export_questions({"bench": tmp_path / "in"}, tmp_path / "out", form)
    back = import_rows(next((tmp_path / "out").glob("*.[pj]*")) if form != "huggingface" else tmp_path / "out")
    assert back.parsed == 46
    assert by_video(back.rows) == by_video(imported.rows)


# Both ways


def by_video(rows: list[dict]) -> dict:
    grouped: dict = {}
    for row in rows:
        grouped.setdefault(row["videoID"], []).append({name: row[name] for name in COLUMNS})
    return grouped


# One line of anything that can be written down, and beginnings that look like labels.
words = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), min_size=1, max_size=12)
phrases = st.builds("".join, st.tuples(st.sampled_from(["", "A. ", "B) ", "(C) ", "D:", "A.("]), words))
names = st.from_regex(r"[a-z]{1,6}( [a-z]{1,6})?", fullmatch=True).filter(
    lambda name: not {"and", "to", "with", "at", "the", "camera"} & set(name.split())
)


@st.composite
def template_rows(draw):
    kind = draw(st.sampled_from(TEMPLATE_TYPES))
    start = draw(st.integers(0, 900)) / 10
    latter = draw(names) if kind[4:] in ("dis", "dir", "spd_comp") else None
    moment = draw(st.integers(0, 900)) / 10 if kind.startswith("abs") else None
    end = start + draw(st.integers(1, 300)) / 10
    states = st.lists(st.sampled_from([state for state in STATE_TEXTS[kind[4:]] if state]), min_size=1, max_size=4)
    if kind.endswith("dir_pred"):
        states = states.map(lambda several: several[:1])
    options = draw(st.lists(states.map(answer_text), min_size=4, max_size=4, unique=True))
    question = question_text(kind[4:], draw(names), moment, draw(names), latter, start, end)
    return {"type": kind, "question": question, "options": options}


free_rows = st.fixed_dictionaries(
    {
        "type": st.just("non_temp"),
        "question": words.filter(str.strip),
        "options": st.lists(phrases, min_size=4, max_size=4),
    }
)


@st.composite
def finished_rows(draw):
    row = draw(st.one_of(template_rows(), free_rows))
    bare = [unlabelled(option, letter) for letter, option in zip(LETTERS, row["options"], strict=True)]
    assume(all(option.strip() for option in bare))
    for options in (bare, row["options"]):
        assume(len({" ".join(option.casefold().split()).rstrip(".") for option in options}) == 4)
    return row | {
        "videoID": draw(st.from_regex(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,9}", fullmatch=True)),
        "answer": draw(st.sampled_from(LETTERS)),
        "clip": "c" * 64,
        "split": "train",
        "targets": draw(st.lists(words, max_size=2)),
        "stability": draw(st.floats(0, 1, width=32)),
        "visible_until": draw(st.none() | st.floats(0, 99)),
        "quad": "q",
        "has_video": True,
        "estimator": "rendered",
        "generator_version": "1",
    }


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(rows=st.lists(finished_rows(), min_size=1, max_size=5))
def test_what_is_exported_comes_back_as_it_was(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("both_ways")
    write_table(rows, QUESTIONS, folder / "train.parquet")
    for form in FORMATS:
        out = folder / form
        files = export_questions({"train": folder / "train.parquet"}, out, form)
        back = import_rows(out if form == "huggingface" else files[0])
        assert back.refused == []
        if form == "huggingface":
            assert [{name: row[name] for name in rows[0]} for row in back.rows] == rows
            assert set(back.rows[0]) == set(QUESTIONS.names)
        elif form == "parquet":
            assert back.rows == [{name: row[name] for name in COLUMNS} for row in rows]
        else:
            assert by_video(back.rows) == by_video(rows)
        template = [parts for parts in back.parts if not parts.free_text]
        assert not any(parts.unread for parts in template)


def test_layouts_are_the_official_ones(tmp_path):
    write_table([official(), official(type="non_temp", question="Who?", answer="C")], QUESTIONS, tmp_path / "in")
    parts = {"train": tmp_path / "in"}
    table = pq.read_table(export_questions(parts, tmp_path / "p", "parquet")[0])
    assert table.column_names == list(COLUMNS)
    assert table["options"][0].as_py() == [f"{letter}. {said}" for letter, said in zip("ABCD", TRENDS, strict=True)]
    answers = dict(zip("ABCD", TRENDS, strict=True))
    assert json.loads(export_questions(parts, tmp_path / "t", "train_json")[0].read_text()) == {
        "a_1": [
            {"Type": "rel_dis", "Question": GROWS, **answers, "Correct": "A"},
            {"Question": "Who?", **answers, "Correct": "C"},
        ]
    }
    options = "\n".join(f"{letter} {said}" for letter, said in answers.items())
    assert json.loads(export_questions(parts, tmp_path / "c", "conversations")[0].read_text())[0] == {
        "video": "a_1.mp4",
        "conversations": [
            {"from": "human", "value": f"<video>\n{GROWS}\nOptions:\n{options}"},
            {"from": "gpt", "value": "A"},
        ],
    }


def test_hub_folder_has_shards_and_a_card_that_names_them(tmp_path):
    hostile = "<b>|`[x](http://y)"
    rows = [official(videoID=f"v{n}", estimator=hostile, quad=f"q{n // 4}", stability=0.5) for n in range(5)]
    write_table(rows, QUESTIONS, tmp_path / "train.parquet")
    write_table(rows[:4], QUESTIONS, tmp_path / "aside.parquet")
    write_table([], QUESTIONS, tmp_path / "val.parquet")
    parts = {name: tmp_path / f"{name}.parquet" for name in ("train", "val", "aside")}
    audit = [{"reader": "words | options", "accuracy": 0.253218, "n": 400}]
    for out in (tmp_path / "one", tmp_path / "two"):
        files = export_questions(parts, out, "huggingface", license="cc-by-4.0", audit=audit, rows_per_shard=2)
    assert [str(file.relative_to(out)) for file in files] == [
        *(f"train/train-0000{n}-of-00003.parquet" for n in range(3)),
        *(f"aside/aside-0000{n}-of-00002.parquet" for n in range(2)),
        "README.md",
    ]
    card = (out / "README.md").read_text()
    assert card == (tmp_path / "one" / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert (front["license"], front["size_categories"]) == ("cc-by-4.0", ["n<1K"])
    assert front["configs"] == [
        {"config_name": "default", "data_files": [{"split": "train", "path": "train/train-*.parquet"}]},
        {"config_name": "aside", "data_files": [{"split": "aside", "path": "aside/aside-*.parquet"}]},
    ]
    assert all(list(out.glob(data["path"])) for config in front["configs"] for data in config["data_files"])
    assert "| words \\| options | 0.2532 | 400 |" in card
    assert "| rel\\_dis | 5 | 0 | 4 |" in card
    assert "<b>" not in card
    assert "](http" not in card
    assert str(tmp_path) not in card
    assert [row["videoID"] for row in import_rows(out).rows] == ["v0", "v1", "v2", "v3", "v0", "v1", "v2", "v3", "v4"]


@pytest.mark.parametrize(
    ("rows", "form", "said"),
    [
        ([official(answer="E")], "parquet", "answer is no letter"),
        ([official(answer="A.")], "parquet", "read back as another"),
        ([official(options=TRENDS[:3])], "train_json", "options are not four"),
        ([official(options=[*TRENDS[:3], None])], "train_json", "an option is no text"),
        ([official(question="Who?\nHe?")], "conversations", "a line break"),
        ([official()], "excel", "choose one of"),
    ],
)
def test_what_could_not_be_read_back_is_not_written(tmp_path, rows, form, said):
    write_table(rows, QUESTIONS, tmp_path / "in")
    with pytest.raises(OfficialFormatError, match=said) as caught:
        export_questions({"train": tmp_path / "in"}, tmp_path / "out", form)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("out/*"))


def test_export_leaves_a_folder_in_use_alone(tmp_path):
    write_table([official()], QUESTIONS, tmp_path / "in")
    with pytest.raises(OfficialFormatError, match="not an empty folder"):
        export_questions({"train": tmp_path / "in"}, tmp_path, "parquet")
    with pytest.raises(OfficialFormatError, match="no plain name"):
        export_questions({"../train": tmp_path / "in"}, tmp_path / "out", "parquet")


# What comes in broken


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html>", "web page"),
        (gzip.compress(b"PAR1", mtime=0), "gzip"),
        (b"PK\x03\x04" + b"0" * 90, "zip"),
        (b"PAR1 but not really", "damaged"),
        (b"videoID,question\n", "neither Parquet nor JSON"),
        (b'{"a": [', "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b'{"a": 1}', "no list of questions"),
        (b'{"a": [], "a": []}', "twice"),
        (b"[1]", "no object"),
        (b'{"a": "\xff"}', "UTF-8"),
    ],
)
def test_another_kind_of_file_is_named_in_one_line(tmp_path, content, said):
    path = tmp_path / "benchmark.parquet"
    path.write_bytes(content)
    with pytest.raises(OfficialFormatError, match=said) as caught:
        import_rows(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_missing_file_column_or_shard_is_named(tmp_path):
    with pytest.raises(OfficialFormatError, match="existing file"):
        import_rows(tmp_path / "none")
    with pytest.raises(OfficialFormatError, match="no Parquet files"):
        import_rows(tmp_path)
    pq.write_table(pa.table({"videoID": ["a"], "question\n": ["b"]}), tmp_path / "x.parquet")
    with pytest.raises(OfficialFormatError, match=r"'question' is missing \(has 'videoID', 'question\\n'\)"):
        import_rows(tmp_path / "x.parquet")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (official(options=["same", "B. Same.", "c", "d"]), "two options are equal"),
        (official(options=["a", "b", "c"]), "options are not four"),
        (official(options="a b c d"), "options are not four"),
        (official(options=["a", "b", "C. ", "d"]), "an option is empty"),
        (official(options=["a", "b", "c", 4]), "an option is no text of at most 4096 characters"),
        (official(options=["a", "b", "c", "\ud800"]), "an option is no text of at most 4096 characters"),
        (official(answer="E"), "answer is no letter A to D"),
        (official(answer=0), "answer is no text"),
        (official(type="abs"), "type is none of the 13"),
        (official(videoID="../../etc/passwd"), "videoID is no plain name"),
        (official(videoID=".hidden"), "videoID is no plain name"),
        (official(question=" "), "question is empty or longer than 4096 characters"),
        (official(question="x" * 5000), "question is empty or longer than 4096 characters"),
        ({"question": "Who?"}, "videoID is missing"),
    ],
)
def test_a_bad_row_is_skipped_and_counted(tmp_path, row, reason):
    path = json_file(tmp_path, [official(), row, official(answer=" (C). ")])
    imported = import_rows(path)
    assert [row["answer"] for row in imported.rows] == ["A", "C"]
    assert [(refused.place, refused.reason) for refused in imported.refused] == [("item 1", reason)]
    assert imported.reasons() == {f"skipped: {reason}": 1}
    lines = import_summary(path, imported)
    assert lines[0].endswith("2 rows, 2 read whole, 1 skipped")
    assert lines[-1].startswith(f"  for example {path}: item 1: {reason}")
    assert all("\n" not in line and len(line) < 400 for line in lines)
    with pytest.raises(OfficialFormatError, match="item 1: "):
        import_rows(path, skip_bad=False)


def test_train_json_of_others(tmp_path):
    answers = {letter: f"{letter}. {letter * 3}" for letter in "ABCD"}
    good = {"Question": "Who?", **answers, "Correct": "B. BBB"[:2]}
    path = json_file(tmp_path, {"v": [good, {"Question": "Who?", "A": "a"}], "w/x": [good], "y": []})
    imported = import_rows(path)
    assert imported.rows == [
        {"videoID": "v", "question": "Who?", "options": ["AAA", "BBB", "CCC", "DDD"], "answer": "B", "type": "non_temp"}
    ]
    assert [refused.place for refused in imported.refused] == ["'v' question 1", "'w/x' question 0"]


@pytest.mark.parametrize(
    "item",
    [
        {"video": "v.mp4", "conversations": []},
        {
            "video": "v.mp4",
            "conversations": [{"from": "human", "value": "<video>\nWho?"}, {"from": "gpt", "value": "A"}],
        },
        {"video": "../v.mp4", "conversations": "?"},
        {"conversations": [None, {"from": "gpt", "value": []}]},
    ],
)
def test_a_conversation_in_another_layout_is_skipped(tmp_path, item):
    imported = import_rows(json_file(tmp_path, [item]))
    assert (imported.rows, len(imported.refused)) == ([], 1)


def test_json_lines_and_a_single_row(tmp_path):
    lines = "\n".join(json.dumps(official(videoID=f"v{n}")) for n in range(3))
    assert len(import_rows(json_file(tmp_path, lines + "\n")).rows) == 3
    assert import_rows(json_file(tmp_path, official(split="train"))).rows == [official()]
    with pytest.raises(OfficialFormatError, match="line 4"):
        import_rows(json_file(tmp_path, lines + "\n[1]\n"))


def test_imported_rows_are_written_with_their_parts(tmp_path):
    odd = official(question=GROWS.replace("dog and camera", "dog"), answer="D")
    write_imported(import_rows(json_file(tmp_path, [official(), odd])), tmp_path / "rows.parquet")
    first, second = pq.read_table(tmp_path / "rows.parquet").to_pylist()
    assert (first["viewpoint_kind"], first["viewpoint_subject"], first["viewpoint_time"]) == ("rel", "camera", None)
    assert (first["targets"], first["target_boxes"]) == (["dog", "camera"], [None, None])
    assert (first["interval_start"], first["interval_end"], first["states"]) == (1, 4, ["Becomes larger"])
    assert (first["unread"], first["free_text"]) == ("", False)
    assert second["states"] == ["Becomes larger", "Becomes smaller"]
    assert second["unread"].startswith("targets: 'dog' does not name two targets")
