"""`dsr evaluate`, from the command line to the report."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from assets.benchmark.comparison import ComparisonError
from assets.benchmark.readers import EndpointReader, LocalReader
from assets.identity import Identity
from models.weights import WeightsError
from orchestration.cli import app
from orchestration.evaluate import EvaluateError, check_manner, open_reader
from tests.assets.benchmark.test_run import LIKE, chances
from tests.models.test_endpoint import completion, serving
from tests.orchestration.test_ask import place, video  # noqa: F401

PUBLISHED = [
    {
        "id": f"q{number}",
        "video": f"https://example.org/videos_{kind}/davis/{name}.mp4",
        "question_type": "multiple-choice",
        "question": question,
        "choices": dict(zip("ABCD", choices, strict=True)),
        "answer": choices[number % 4],
    }
    for number, (kind, name, question, choices) in enumerate(
        [
            ("real", "one", "Where does it go?", ("left", "right", "up", "down")),
            ("synthetic", "one", "How many turn?", (1, 2, 3, 4)),
            ("real", "gone", "Does it turn?", ("to the left", "to the right", "no", "both")),
        ]
    )
]


@pytest.fixture
def call(place, video, monkeypatch, tmp_path):  # noqa: F811
    """Runs the command on three questions in VLM4D's published form, two of them about a real file."""
    folder = tmp_path / "videos"
    folder.mkdir()
    shutil.copy(video, folder / "davis_one.mp4")
    (tmp_path / "real_mc.json").write_text(json.dumps([*PUBLISHED, {"id": "no question"}]))
    monkeypatch.setenv("DSR_WORKSPACE", str(place.root))
    monkeypatch.setenv("DAGSTER_HOME", str(place.root / ".dagster"))

    def run(model, *more, clips=True, out="out"):
        where = ["--clips", str(folder)] if clips else []
        arguments = ["evaluate", "vlm4d", str(tmp_path / "real_mc.json"), "--model", str(model), *where, *more]
        return CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / out)])

    return run


def test_a_checkpoint_is_evaluated_and_its_answers_are_kept(call, place, tmp_path):  # noqa: F811
    done = call(place.checkpoint)
    assert done.exit_code == 0, done.output
    assert "1 not asked, missing: no file of this name" in done.stdout
    assert "1 not asked, unusable: video is missing" in done.stdout
    first = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert first["overall"]["n"] == 2 and first["reader"]["name"] == "checkpoint"
    assert first["by_type"].keys() == {"real", "synthetic"} and first["overall"]["chance"] == 0.25
    assert first["identity"]["checkpoint"] == Identity(place.root).hash_on_disk("checkpoint")
    rows = pq.read_table(tmp_path / "out" / "predictions.parquet").to_pylist()
    assert [(row["item_id"], row["status"]) for row in rows] == [("q0", "asked"), ("q1", "asked"), ("q2", "missing")]
    # What the classical estimator found in the flat clip of nobody is what the geometry module was given.
    (note,) = (place.root / ".cache" / "clips").glob("*/clips/*.json")
    made = json.loads(note.read_text())
    assert made["provenance"]["estimator"] == "classical" and made["provenance"]["status"] == "2d" and made["channels"]
    assert str(place.root) not in json.dumps(first)
    assert (place.root / ".cache" / "predictions.sqlite").is_file()
    again = call(place.checkpoint)
    assert again.exit_code == 0 and "preparing clips" not in again.output
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == first
    turned = call(place.checkpoint, "--rotations", out="turned")
    assert "over all 4 rotations" in turned.stdout and "of 4 options 2 replies name A" in turned.stdout
    spoken = call(place.checkpoint, "--protocol", "generation", "--max-tokens", "3", out="spoken")
    assert spoken.exit_code == 0, spoken.output
    blind = call(place.checkpoint, "--blind", clips=False)
    assert blind.exit_code == 0, blind.output
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["overall"]["n"] == 3


def test_two_evaluations_are_compared_and_other_questions_refused(call, place, tmp_path):  # noqa: F811
    for out, more in (("seeing", []), ("blind", ["--blind"]), ("fewer", ["--clips", str(tmp_path / "videos")])):
        done = call(place.checkpoint, *more, clips=out == "seeing", out=out)
        assert done.exit_code == 0, done.output
    folders = [str(tmp_path / name) for name in ("seeing", "fewer", "blind")]
    same = CliRunner().invoke(app, ["compare", *folders[:2]])
    assert same.exit_code == 0, same.output
    assert "checkpoint (letters): " in same.stdout and "difference +0.0 points" in same.stdout
    assert "on 2 questions of 1 clips" in same.stdout and "p = 1 " in same.stdout and "g +0.00 (none)" in same.stdout
    refused = CliRunner().invoke(app, ["compare", *folders[1:]])
    assert "one answered 2 questions, the other 3, of which 2 are the same" in str(refused.exception)
    assert isinstance(refused.exception, ComparisonError) and "\n" not in str(refused.exception)


def test_an_endpoint_that_fails_ends_in_one_line_and_goes_on_later(call):
    with serving() as server:
        named = ("--served-name", "m", "--protocol", "generation")
        server.script[:] = [(200, completion("B"), {}, 0.0), (403, b"{}", {}, 0.0)]
        stopped = call(server.url, *named)
        assert isinstance(stopped.exception, EvaluateError) and "run the same again" in str(stopped.exception)
        server.script[:] = [(200, completion("B"), {}, 0.0)]
        done = call(server.url, *named)
        assert done.exit_code == 0, done.output
        assert len(server.seen) == 3
        server.script[:] = [(200, chances(A=0.9), {}, 0.0)]
        assert call(server.url, "--served-name", "m").exit_code == 0
        refused = call(server.url, "--served-name", "other", "--max-requests", "1")
        assert "all 1 requests of the budget are made" in str(refused.exception)


def test_wrong_words_are_said_before_anything_is_read(call, place):  # noqa: F811
    assert call(place.checkpoint, clips=False).exit_code == 2
    nothing = call(place.checkpoint, "--clips", str(place.root / "data"), clips=False)
    assert nothing.exit_code == 1 and "no question could be asked" in nothing.stdout
    assert "'tea' is no protocol: choose letters or generation" in str(
        call(place.checkpoint, "--protocol", "tea").exception
    )
    with pytest.raises(EvaluateError, match="which of its models is meant"):
        open_reader("http://localhost:1/v1", LIKE)
    with pytest.raises(EvaluateError, match="without user or password") as caught:
        open_reader("http://me:secret@localhost:1/v1", LIKE)
    assert "secret" not in str(caught.value)
    with pytest.raises(WeightsError, match="no such folder"):
        open_reader("nowhere at all", LIKE)
    assert check_manner("letters", True, 5).blind


def test_names_lead_to_readers(place):  # noqa: F811
    assert isinstance(open_reader(str(place.checkpoint), LIKE), LocalReader)
    reader = open_reader("https://example.org/v1", LIKE, served_name="m", max_requests=3)
    assert isinstance(reader, EndpointReader) and reader.name == "m at https://example.org/v1"
    assert Path(place.checkpoint).name == open_reader(str(place.checkpoint), LIKE).name
