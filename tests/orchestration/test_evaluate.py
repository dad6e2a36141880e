"""`dsr evaluate`, from the command line to the report; suite and extraction are stood in for by what they return."""

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from assets.benchmark.readers import EndpointReader, LocalReader
from models.weights import WeightsError
from orchestration.cli import app
from orchestration.evaluate import EvaluateError, check_manner, open_reader
from tests.assets.benchmark.test_run import ITEMS, LIKE, chances, first_letter, suite_of
from tests.models.test_endpoint import completion, serving
from tests.orchestration.test_ask import place, video  # noqa: F401


@pytest.fixture
def call(place, video, monkeypatch, tmp_path):  # noqa: F811
    """Runs the command on three questions, two of them about a real file."""
    folder = tmp_path / "videos"
    folder.mkdir()
    shutil.copy(video, folder / "one.mp4")
    read = SimpleNamespace(
        read_suite=lambda name, path: suite_of(*ITEMS[:2], ITEMS[4]),
        match_videos=lambda suite, folder: ({"one": folder / "one.mp4"}, {"gone": "gone.mp4 is missing"}),
    )
    monkeypatch.setitem(sys.modules, "assets.benchmark.suite", read)
    monkeypatch.setitem(sys.modules, "assets.benchmark.extraction", SimpleNamespace(extract=first_letter))
    monkeypatch.setenv("DSR_WORKSPACE", str(place.root))
    monkeypatch.setenv("DAGSTER_HOME", str(place.root / ".dagster"))

    def run(model, *more, clips=True):
        where = ["--clips", str(folder)] if clips else []
        arguments = ["evaluate", "tiny", "questions.json", "--model", str(model), *where, *more]
        return CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out")])

    return run


def test_a_checkpoint_is_evaluated_and_its_answers_are_kept(call, place, tmp_path):  # noqa: F811
    done = call(place.checkpoint)
    assert done.exit_code == 0, done.output
    assert "1 not asked, missing: gone.mp4 is missing" in done.stdout
    first = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert first["overall"]["n"] == 2 and first["reader"]["name"] == "checkpoint"
    assert str(place.root) not in json.dumps(first)
    assert (place.root / ".cache" / "predictions.sqlite").is_file()
    again = call(place.checkpoint)
    assert again.exit_code == 0 and "preparing clips" not in again.output
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == first
    blind = call(place.checkpoint, "--blind", clips=False)
    assert blind.exit_code == 0, blind.output
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["overall"]["n"] == 3


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
