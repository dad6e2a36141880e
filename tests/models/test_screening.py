import json
import shutil

import pyarrow
import pyarrow.parquet
import pytest
from safetensors.numpy import load_file, save_file

from models.screening import Screening
from models.train import main
from tests.models.conftest import SHARD, TINY, made, question_rows
from tests.models.test_train import command


@pytest.fixture
def pool(release, tmp_path):
    """A copy of the release that may be damaged: runs a training on it and returns exit code and report."""
    for name in ("videos", "geometry", "splits"):
        shutil.copytree(getattr(release, name), tmp_path / name)

    def train(**changes):
        arguments = command(release, tmp_path / "run", {**TINY, "reading_steps": 0, "steps": 2, **changes})
        for name in ("videos", "geometry", "splits"):
            arguments[arguments.index(f"--{name}") + 1] = str(tmp_path / name)
        code = main(arguments)
        report = tmp_path / "run" / "checkpoint" / "training.json"
        return code, json.loads(report.read_text()) if report.exists() else None

    train.root = tmp_path
    return train


def damage(root, clips) -> None:
    """The first clip without frames, the second with half a record, the third with features of another network."""
    (root / "videos" / SHARD / "frames" / f"{clips[0]}.safetensors").unlink()
    record = root / "geometry" / SHARD / f"{clips[1]}.safetensors"
    record.write_bytes(record.read_bytes()[:-100])
    other = root / "geometry" / SHARD / f"{clips[2]}.safetensors"
    stored = load_file(other)
    stored["prior_features"] = stored["prior_features"][..., :9].copy()
    save_file(stored, other, {"record": json.dumps({"marks": []})})


def test_bad_clips_are_left_out_and_counted(pool, release, capsys):
    damage(pool.root, release.clips)
    rows = question_rows(release.clips)
    rows[12]["question"] = "How far? " * 3000
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), pool.root / "splits" / "train.parquet")
    # Two clips are left, of geometric cells and of 9 channels; equals go to the smaller number, which no cell has.
    stored = pool.root / "geometry" / SHARD / f"{release.clips[2]}.safetensors"
    stored.unlink()
    code, report = pool(bad_input="skip")
    assert code == 0
    assert report["skipped"] == {"missing file": 8, "damaged file": 4, "question too long or malformed": 1}
    assert (report["train_clips"], report["train_questions"]) == (1, 3)
    said = capsys.readouterr().out
    assert "left out 13 of 16 train questions: 4 for damaged file, 8 for missing file, 1 for question too long" in said


def test_questions_that_surely_fit_are_not_tokenized(release, parameters, monkeypatch):
    make, _, questions = made(release, parameters)
    monkeypatch.setattr(make.prompt, "asked", lambda text: pytest.fail(f"tokenized {text!r}"))
    assert Screening(parameters).with_usable_text(questions, make, 100_000) == questions
    monkeypatch.undo()
    assert Screening(parameters).with_usable_text(questions, make, 300) == questions


def test_clips_of_another_network_are_left_out(pool, release):
    stored = pool.root / "geometry" / SHARD / f"{release.clips[2]}.safetensors"
    features = load_file(stored)
    features["prior_features"] = features["prior_features"][..., :9].copy()
    save_file(features, stored, {"record": json.dumps({"marks": []})})
    code, report = pool(bad_input="skip")
    assert code == 0 and report["skipped"] == {"other channels of prior features": 4} and report["train_clips"] == 3


def test_bad_clips_stop_the_training_before_its_first_step(pool, release, capsys):
    damage(pool.root, release.clips)
    assert pool() == (2, None)
    line = capsys.readouterr().err.strip()
    assert line.startswith("bad input: clip ") and "\n" not in line
    assert not (pool.root / "run" / "work" / "last.ckpt").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"max_text_tokens": 16}, "question q03: a question has"), ({"bad_input": "skip", "max_text_tokens": 16}, "left")],
)
def test_questions_longer_than_allowed(pool, capsys, changes, said):
    assert pool(**changes) == (2, None)
    line = capsys.readouterr().err.strip()
    assert said in line and "\n" not in line


def test_questions_longer_than_the_context(pool, checkpoint, capsys):
    base = pool.root / "base"
    shutil.copytree(checkpoint, base)
    config = json.loads((base / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 40
    (base / "config.json").write_text(json.dumps(config))
    assert pool(base=str(base)) == (2, None)
    line = capsys.readouterr().err.strip()
    assert "context is 40" in line and "lower max_frames" in line and "\n" not in line


@pytest.mark.parametrize("fault", ["missing", "truncated"])
def test_damaged_base_is_told(pool, checkpoint, capsys, fault):
    base = pool.root / "base"
    shutil.copytree(checkpoint, base)
    weights = base / "model.safetensors"
    weights.unlink() if fault == "missing" else weights.write_bytes(weights.read_bytes()[:-1000])
    assert pool(base=str(base)) == (2, None)
    line = capsys.readouterr().err.strip()
    assert str(base) in line and "\n" not in line
