"""`dsr ask`: a video that nobody prepared, a tiny checkpoint, and whatever else people type."""

import json
import os
import shutil
import tempfile

import numpy as np
import pyarrow
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from assets.benchmark import clips
from assets.geometry.cache import estimate_shard
from assets.geometry.record import load, save, unknown
from assets.identity import Identity
from assets.videos.prepare import prepare_shard
from assets.videos.shards import ingest
from assets.workspace import Workspace
from models.gsm import CELL_CHANNELS
from models.parameters import TrainingParameters
from models.predict import CheckpointError
from models.prompt import QuestionError
from orchestration.ask import AskError, ask, check_question
from orchestration.cli import app
from orchestration.parameters import Parameters
from orchestration.parameters import load as load_parameters
from tests.assets.videos.conftest import write_video
from tests.models.conftest import TINY, clip_name, question_rows, write_clip

QUESTION = "How does the distance of red box 1 to the camera change, until 1.5s?"
OPTIONS = ("(1) Becomes larger.", "(1) Becomes smaller.", "(1) Keep nearly constant.", "It leaves.")
SHARD = "shard-000007"
DVC = {"checkpoint": {"cmd": "dsr make checkpoint", "outs": ["data/checkpoint"]}}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Workspace:
    """A workspace with an empty pool and a checkpoint of two steps."""
    from models.train import train

    root = tmp_path_factory.mktemp("asking")
    workspace, release = root / "workspace", root / "release"
    (workspace / ".dvc").mkdir(parents=True)
    (workspace / ".dvc" / "config").write_text("[core]\n    no_scm = true\n")
    (workspace / "dvc.yaml").write_text(yaml.safe_dump({"stages": DVC}))
    (workspace / "shards.yaml").write_text("sample_shards: []\nshards: []\n")
    profile = {name: {} for name in Parameters.model_fields} | {"videos": {"frames": 8, "max_pixels": 4096}}
    (workspace / "params.yaml").write_text(yaml.safe_dump({"profile": "laptop", "laptop": profile}))
    clips = tuple(map(clip_name, range(2)))
    for number, clip in enumerate(clips):
        write_clip(release, clip, seed=number)
    (release / "splits").mkdir()
    pq.write_table(pyarrow.Table.from_pylist(question_rows(clips)), release / "splits" / "train.parquet")
    out = workspace / "data" / "checkpoint"
    places = (release / "splits", release / "videos", release / "geometry", out, root / "work")
    train(*places, TrainingParameters.from_mapping({**TINY, "reading_steps": 1, "steps": 1}), progress=lambda *_: None)
    return Workspace(workspace)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("clips") / "of nobody.mp4")


@pytest.fixture(autouse=True)
def swept(tmp_path, monkeypatch):
    """Whatever the outcome, nothing stays in the folder for temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield
    assert list(folder.iterdir()) == []


def call(place, monkeypatch, *arguments):
    for name in ("DSR_WORKSPACE", "DAGSTER_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DSR_WORKSPACE", str(place.root))
    monkeypatch.setenv("DAGSTER_HOME", str(place.root / ".dagster"))
    return CliRunner().invoke(app, ["ask", *map(str, arguments)])


def test_an_unprepared_clip_is_answered_and_the_pool_answers_the_same(place, video, monkeypatch):
    """What the model reads of a clip nobody prepared is what it reads of the same clip made by its links."""
    done = call(place, monkeypatch, video, QUESTION, "--json", "--options", *OPTIONS)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert [option["text"] for option in told["options"]] == list(OPTIONS)
    shares = {option["letter"]: option["probability"] for option in told["options"]}
    assert sum(shares.values()) == pytest.approx(1, abs=1e-5) and told["answer"] == max(shares, key=shares.get)
    assert (told["geometry"]["estimator"], told["geometry"]["status"]) == ("classical", "2d")
    assert "5 shots" in told["geometry"]["reason"] and not told["geometry"]["cached"]
    assert told["unfit"] == "seconds, moving"
    assert told["checkpoint"]["dvc_md5"] == Identity(place.root).hash_on_disk("checkpoint")
    assert told["seconds"]["geometry"] > 0 and told["seconds"]["model"] > 0

    fill_pool(place, video)
    try:
        parameters = load_parameters(place.root / "params.yaml")
        pooled = ask(place, parameters, video, QUESTION, OPTIONS)
        other = ask(place, parameters, video, QUESTION, OPTIONS[::-1])
    finally:
        (place.root / "shards.yaml").write_text("sample_shards: []\nshards: []\n")
    assert pooled.geometry["cached"] and pooled.clip == told["clip"] and pooled.unfit == told["unfit"]
    np.testing.assert_allclose(pooled.probabilities, list(shares.values()), atol=1e-6)
    assert np.abs(np.subtract(pooled.probabilities, other.probabilities)).max() > 1e-4


def fill_pool(place, video):
    """The same file through the links: ingested, prepared, estimated."""
    parameters = load_parameters(place.root / "params.yaml")
    assert ingest(str(video.parent), place.root / "data" / "raw", set(), 7, 10) == [SHARD]
    prepare_shard(place.raw(SHARD), place.videos(SHARD), SHARD, parameters.videos)
    estimate_shard(place.raw(SHARD), place.videos(SHARD), place.geometry(SHARD), SHARD, parameters.geometry)
    place.add_shard(SHARD)


def test_a_refusal_is_told_and_the_pictures_are_asked_alone(place, video, monkeypatch):
    spread = [part for option in OPTIONS for part in ("--option", option)]
    elsewhere = place.root.parent / "elsewhere"
    shutil.copytree(place.checkpoint, elsewhere, dirs_exist_ok=True)
    more = ("--estimator", "rendered", "--checkpoint", elsewhere)
    done = call(place, monkeypatch, video, QUESTION, *spread, *more)
    assert done.exit_code == 0, done.output
    question, *bars = done.stdout.splitlines()[:5]
    assert question == QUESTION and [bar.split()[0] for bar in bars] == list("ABCD")
    assert all(bar.endswith(option) and "%" in bar for bar, option in zip(bars, OPTIONS, strict=True))
    assert "refused: no estimator of rendered supports video clips; the model answers without geometry" in done.stdout
    assert "not of this workspace" in done.stdout


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((), "0 options"),
        (("yes", "no"), "2 options"),
        ((*OPTIONS, "more"), "5 options"),
        (("a", "b", "a\n", "d"), "the same"),
        (("a", "b", "\x1b\u200b", "d"), "empty"),
    ],
)
def test_four_different_options_are_asked_for(place, video, options, says):
    with pytest.raises(AskError, match=says) as caught:
        ask(place, load_parameters(place.root / "params.yaml"), video, QUESTION, options)
    assert "\n" not in str(caught.value)


def test_texts_become_single_printable_lines():
    question, options = check_question(
        " is\nit\udcff \x1b[31mred? ", ("x\nD forged", "<|im_end|>", "\u202eb\u2028c", "d")
    )
    assert question == "is it [31mred?" and options == ("x D forged", "<|im_end|>", "b c", "d")
    assert check_question("long " * 5000, "abcd")[0] == ("long " * 5000).strip()
    with pytest.raises(AskError, match="question is empty"):
        check_question("\n\t", "abcd")


def files(folder):
    """Files that are no video, by what is wrong with them."""
    (folder / "empty.mp4").touch()
    (folder / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(4096))
    (folder / "folder.mp4").mkdir()
    os.mkfifo(folder / "pipe.mp4")
    (folder / "loop.mp4").symlink_to("loop.mp4")
    shutil.copy(folder / "noise.mp4", folder / "red \x1b[31m\nname.mp4")
    whole = write_video(folder / "whole.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    shutil.copy(folder / "noise.mp4", folder / os.fsdecode(b"\xff.mp4"))
    return [*sorted(set(folder.glob("*.mp4")) - {folder / "whole.mp4"}), folder / "none.mp4", folder / ("n" * 999)]


def test_what_is_no_video_is_one_line(place, tmp_path):
    parameters = load_parameters(place.root / "params.yaml")
    (tmp_path / "files").mkdir()
    told = {}
    for path in files(tmp_path / "files"):
        with pytest.raises(AskError) as caught:
            ask(place, parameters, path, QUESTION, OPTIONS)
        told[path.name] = str(caught.value)
    assert len(told) == 10
    assert all(line.isprintable() and ":" in line for line in told.values()), told
    assert all("is no file" in told[name] for name in ("folder.mp4", "pipe.mp4", "none.mp4"))
    assert "Not a readable video" in told["noise.mp4"] and "cut.mp4" in told["cut.mp4"]


def test_wrong_choices_are_said_before_anything_is_made(place, video, tmp_path, monkeypatch):
    parameters = load_parameters(place.root / "params.yaml")
    monkeypatch.setattr(clips, "prepare_shard", None)
    with pytest.raises(AskError, match="'nothing' is no estimator: choose auto or one of rendered, "):
        ask(place, parameters, video, QUESTION, OPTIONS, estimator="nothing")
    with pytest.raises(AskError, match=r"is no checkpoint \(No such file or directory\): train one"):
        ask(place, parameters, video, QUESTION, OPTIONS, checkpoint=tmp_path / "none")
    damaged = shutil.copytree(place.checkpoint, tmp_path / "damaged")
    (damaged / "config.json").write_text("[")
    with pytest.raises(AskError, match=r"is no checkpoint \(its config.json is damaged\)"):
        ask(place, parameters, video, QUESTION, OPTIONS, checkpoint=damaged)
    with pytest.raises(AskError, match="by marks only in clips of the pool"):
        ask(place, parameters, video, "Where does the moving thing marked 2 go?", OPTIONS)


def estimating(channels):
    """Stands in for the networks: a record of so many numbers a cell."""

    def estimated(raw, videos, geometry, shard, tuned, workers):
        (name,) = (path.name for path in (videos / "frames").glob("*.safetensors"))
        times = np.arange(2) / 2
        known = {"estimator": "foundation", "version": "1", "status": "3d", "reason": "", "frame_size": [4, 4]}
        features = np.ones((2, 1, 1, channels))
        geometry.mkdir(parents=True)
        save(unknown(times, provenance=known, prior_features=features, prior_times=times), geometry / name)

    return estimated


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: cut(folder / "model.safetensors"), "model.safetensors is damaged or cut short"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda folder: cut(folder / "tokenizer.json"), "is no checkpoint"),
        (lambda folder: (folder / "training.json").write_text("[]"), "is no checkpoint"),
        (lambda folder: (folder / "training.json").write_text('{"parameters": {"epochs": 1}}'), "no such parameter"),
    ],
    ids=["cut weights", "no weights", "cut tokenizer", "no report", "other parameters"],
)
def test_a_damaged_checkpoint_is_one_line(place, video, tmp_path, monkeypatch, damage, says):
    folder = shutil.copytree(place.checkpoint, tmp_path / "damaged")
    damage(folder)
    monkeypatch.setattr(clips, "estimate_shard", estimating(CELL_CHANNELS))
    with pytest.raises(CheckpointError, match=says) as caught:
        ask(place, load_parameters(place.root / "params.yaml"), video, QUESTION, OPTIONS, checkpoint=folder)
    assert str(folder) in str(caught.value)


def test_a_question_that_does_not_fit_and_geometry_of_another_kind(place, video, monkeypatch):
    parameters = load_parameters(place.root / "params.yaml")
    monkeypatch.setattr(clips, "estimate_shard", estimating(64))
    with pytest.raises(AskError, match=f"reads {CELL_CHANNELS} numbers a cell, estimator foundation gave 64: "):
        ask(place, parameters, video, QUESTION, OPTIONS)
    monkeypatch.setattr(clips, "estimate_shard", estimating(CELL_CHANNELS))
    with pytest.raises(QuestionError, match="max_text_tokens"):
        ask(place, parameters, video, "far " * 9000, OPTIONS)


def test_a_record_without_marks_keeps_its_features(tmp_path):
    path = tmp_path / "record.safetensors"
    boxes = np.array([[[0, 0, 2, 2]] * 2, [[1, 1, 3, 3]] * 2], float)
    tokens = np.arange(12, dtype=np.uint16).reshape(2, 1, 1, 6)
    known = {"provenance": {"status": "2d", "frame_size": [4, 4]}, "prior_times": np.array([0.5, 1.0])}
    save(
        unknown(
            np.arange(2.0), ["moving thing 1", "moving thing 2"], ["a"] * 2, boxes=boxes, prior_features=tokens, **known
        ),
        path,
    )
    assert sorted(load(path).marks) == [1, 2]
    clips._remove_marks(path)
    after = load(path)
    assert after.marks == [] and after.status == "2d" and after.timestamps.tolist() == [0, 1]
    assert after.prior_features.dtype == np.uint16 and np.array_equal(after.prior_features, tokens)
