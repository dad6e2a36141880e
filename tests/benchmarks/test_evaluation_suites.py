"""The bench of published questions, on a made-up sample; the whole bench composed."""

import json

import pytest

from assets.workspace import Workspace
from benchmarks import evaluation
from benchmarks.evaluation import suites
from benchmarks.figure import Figure
from tests.assets.videos.conftest import grey_frames, write_video


@pytest.fixture
def sample(tmp_path):
    """A workspace beside four clips with a question each, and two rows whose clip is nowhere."""
    (tmp_path / "project").mkdir()
    data = tmp_path / "shared" / "data"
    (data / "videos").mkdir(parents=True)
    asked = []
    for number in range(4):
        write_video(data / "videos" / f"clip_{number}.mp4", grey_frames(20 + number))
        choices = dict(zip("ABCD", ("left", "right", "up", "down"), strict=True))
        question = {"id": f"q{number}", "video": f"videos_real/clip/{number}.mp4", "question": "Where does it go?"}
        asked.append({**question, "question_type": "multiple-choice", "choices": choices, "answer": "up"})
    text = {"type": "abs_spd", "question": "Between 1.0s and 2.0s, how does the speed of camera change?", "answer": "A"}
    options = ["A. (1) Keep nearly constant.", "B. (1) Becomes smaller.", "C. (1) Becomes larger.", "D. It leaves."]
    rows = [{"videoID": f"nowhere_{number}", **text, "options": options} for number in range(2)]
    for place, content in ((suites.VLM4D, asked), (suites.DSR_BENCH, rows)):
        (data / "benchmarks" / place).parent.mkdir(parents=True)
        (data / "benchmarks" / place).write_text(json.dumps(content))
    return Workspace(tmp_path / "project")


def test_published_questions_are_asked_counted_and_resumed(sample):
    found = suites.figures(sample)
    values = {name: figure.value for name, figure in found.items()}
    assert values == {"vlm4d_asked": 4, "dsr_bench_missing": 2, "evaluation_resumed_equal": 1}
    assert "2 questions answered before, 2 asked after, 0 of them" in found["evaluation_resumed_equal"].how
    assert found["vlm4d_asked"].missed and not found["evaluation_resumed_equal"].missed


def test_without_the_sample_there_is_a_reason(tmp_path):
    (tmp_path / "project").mkdir()
    found = suites.figures(Workspace(tmp_path / "project"))
    assert {figure.value for figure in found.values()} == {None}
    assert all("no real data beside the repository" in figure.how for figure in found.values())


def test_the_bench_is_composed_of_its_parts(monkeypatch, tmp_path):
    from benchmarks.evaluation import extraction, speed, statistics

    one = Figure(1.0, None, "higher", "share", "as told")
    for name, part in (("a", extraction), ("b", suites), ("c", statistics), ("d", speed)):
        monkeypatch.setattr(part, "figures", lambda *_, name=name: {name: one})
    assert list(evaluation.measure(Workspace(tmp_path))) == ["a", "b", "c", "d"]
