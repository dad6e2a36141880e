import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from safetensors.numpy import load_file

from models.module import rate_factor
from models.parameters import TrainingParameters
from models.train import main, train
from tests.models.conftest import SHARD, TINY

ROOT = Path(__file__).parents[2]


def command(release, root: Path, parameters: dict, splits: Path | None = None) -> list[str]:
    root.mkdir(exist_ok=True)
    (root / "params.json").write_text(json.dumps(parameters))
    places = {
        "splits": splits or release.splits,
        "videos": release.videos,
        "geometry": release.geometry,
        "out": root / "checkpoint",
        "work": root / "work",
        "parameters": root / "params.json",
    }
    return [part for name, path in places.items() for part in (f"--{name}", str(path))]


def start(arguments: list[str]) -> subprocess.Popen:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW")}
    return subprocess.Popen(
        [sys.executable, "-m", "models.train", *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(path: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.01)


def same_files(one: Path, other: Path) -> bool:
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in other.iterdir())
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


def test_killed_training_ends_in_the_same_bytes(release, tmp_path):
    parameters = {**TINY, "steps": 60}
    whole = tmp_path / "whole"
    assert main(command(release, whole, parameters)) == 0
    broken = tmp_path / "broken"
    arguments = command(release, broken, parameters)
    process = start(arguments)
    wait_for(broken / "work" / "last.ckpt", process)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (broken / "checkpoint").exists()
    assert (broken / "work" / "last.ckpt").exists()
    process = start(arguments)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    assert "resuming at step" in output
    assert same_files(whole / "checkpoint", broken / "checkpoint")


def test_sigterm_is_no_success(release, tmp_path):
    arguments = command(release, tmp_path / "run", {**TINY, "steps": 5000})
    process = start(arguments)
    wait_for(tmp_path / "run" / "work" / "last.ckpt", process)
    process.terminate()
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 143, output
    assert "the state is saved" in output
    assert not (tmp_path / "run" / "checkpoint").exists()
    assert "step " in output and "questions/s" in output


def test_state_of_another_run_is_not_resumed(release, tmp_path, capsys):
    run = tmp_path / "run"
    process = start(command(release, run, {**TINY, "steps": 5000}))
    wait_for(run / "work" / "last.ckpt", process)
    process.kill()
    process.wait()
    assert main(command(release, run, TINY)) == 0
    assert "starting over" in capsys.readouterr().out
    assert json.loads((run / "checkpoint" / "training.json").read_text())["steps"] == 10


def test_checkpoint_folder_is_complete_and_reproducible(checkpoint, release, parameters, tmp_path):
    names = {path.name for path in checkpoint.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "training.json", "curves.csv"} <= names
    out = tmp_path / "again"
    places = (release.splits, release.videos, release.geometry, out, tmp_path / "work")
    train(*places, parameters, progress=lambda *_: None)
    assert same_files(checkpoint, out)
    assert not (tmp_path / "work" / "last.ckpt").exists()
    for path in out.glob("*.json"):
        assert str(tmp_path.parent) not in path.read_text()


def test_report_counts_what_was_seen(checkpoint):
    report = json.loads((checkpoint / "training.json").read_text())
    assert report["questions_seen"]["reading"] == 3 * 2 * 3
    # A pack holds the three questions of a clip without a hidden part, or the one with.
    assert 7 * 2 * 1 <= report["questions_seen"]["videos"] <= 7 * 2 * 3
    assert TrainingParameters.from_mapping(report["parameters"]).steps == 7
    rows = (checkpoint / "curves.csv").read_text().splitlines()
    assert rows[0] == "step,stage,loss,accuracy,rate"
    assert [row.split(",")[:2] for row in rows[1:3]] == [["2", "reading"], ["3", "reading"]]
    assert rows[-1].startswith("10,videos,")


def test_training_learns_the_training_questions(release, tmp_path):
    parameters = TrainingParameters.from_mapping(
        {**TINY, "reading_steps": 0, "steps": 300, "log_every": 50, "learning_rates": {"language": 5e-3}}
    )
    places = (release.splits, release.videos, release.geometry, tmp_path / "out", tmp_path / "work")
    train(*places, parameters, progress=lambda *_: None)
    rows = [row.split(",") for row in (tmp_path / "out" / "curves.csv").read_text().splitlines()[1:]]
    assert float(rows[-1][3]) > 0.9
    assert float(rows[-1][2]) < float(rows[0][2])


def test_loss_that_is_no_number_stops_with_one_line(release, tmp_path, capsys):
    parameters = {**TINY, "reading_steps": 0, "learning_rates": {"language": 1e30}, "clip_norm": 0.0}
    assert main(command(release, tmp_path / "run", parameters)) == 1
    said = capsys.readouterr().err.strip()
    assert said.startswith("training failed: the loss is") and "\n" not in said
    assert not (tmp_path / "run" / "checkpoint").exists()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_both_precisions_train(release, tmp_path, precision):
    assert main(command(release, tmp_path / "run", {**TINY, "precision": precision})) == 0
    weights = load_file(tmp_path / "run" / "checkpoint" / "model.safetensors")
    assert all(np.isfinite(value).all() and value.dtype == np.float32 for value in weights.values())


def test_frozen_parts_stay_as_they_were_drawn(release, tmp_path):
    rates = {"language": 0.0, "geometry": 1e-3, "merger": 0.0, "vision": 0.0}
    parameters = {**TINY, "reading_steps": 0, "learning_rates": rates}
    assert main(command(release, tmp_path / "short", {**parameters, "steps": 1})) == 0
    assert main(command(release, tmp_path / "long", {**parameters, "steps": 4})) == 0
    short, long = (load_file(tmp_path / run / "checkpoint/model.safetensors") for run in ("short", "long"))
    changed = {name for name in short if not np.array_equal(short[name], long[name])}
    assert len(changed) > 10 and all(name.startswith("gsm.") for name in changed)


def test_training_goes_on_from_a_checkpoint_as_base(checkpoint, release, tmp_path):
    parameters = {**TINY, "base": str(checkpoint), "reading_steps": 0, "steps": 2}
    assert main(command(release, tmp_path / "run", parameters)) == 0
    assert (tmp_path / "run" / "checkpoint" / "tokenizer.json").read_bytes() == (
        checkpoint / "tokenizer.json"
    ).read_bytes()


def test_without_geometry_the_model_has_no_geometry_part(release, tmp_path):
    assert main(command(release, tmp_path / "run", {**TINY, "geometry": {"queries": 0}})) == 0
    weights = load_file(tmp_path / "run" / "checkpoint" / "model.safetensors")
    assert not any(name.startswith("gsm.") for name in weights)


def test_curves_go_to_the_run_that_mlflow_has_open(release, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = mlflow.MlflowClient(tracking_uri=uri)
    run = client.create_run(client.create_experiment("training")).info.run_id
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_RUN_ID", run)
    assert main(command(release, tmp_path / "run", TINY)) == 0
    history = client.get_metric_history(run, "videos/loss")
    assert [point.step for point in history] == [4, 6, 8, 10]


def wrong_channels(folder: Path, clip: str) -> None:
    from safetensors.numpy import save_file

    cells = {"prior_features": np.zeros((2, 2, 2, 9), np.float16), "prior_times": np.arange(2.0)}
    save_file(cells, folder / SHARD / f"{clip}.safetensors")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda videos, geometry, clip: (geometry / SHARD / f"{clip}.safetensors").unlink(), "is missing"),
        (
            lambda videos, geometry, clip: (geometry / SHARD / f"{clip}.safetensors").write_bytes(b"x" * 99),
            "cannot be read",
        ),
        (lambda videos, geometry, clip: wrong_channels(geometry, clip), "differ in their number of channels"),
    ],
)
def test_damaged_geometry_is_named(release, tmp_path, capsys, damage, said):
    videos, geometry = tmp_path / "videos", tmp_path / "geometry"
    shutil.copytree(release.videos, videos)
    shutil.copytree(release.geometry, geometry)
    damage(videos, geometry, release.clips[1])
    arguments = command(release, tmp_path / "run", TINY)
    arguments[arguments.index("--geometry") + 1] = str(geometry)
    assert main(arguments) == 2
    line = capsys.readouterr().err.strip()
    assert said in line and release.clips[1] in line and "\n" not in line


def test_bad_input_is_told_in_one_line(release, tmp_path, capsys):
    assert main(command(release, tmp_path / "run", {**TINY, "stepz": 1})) == 2
    assert "stepz: no such parameter" in capsys.readouterr().err
    assert main(command(release, tmp_path / "run", TINY, splits=tmp_path)) == 2
    assert "train.parquet is missing" in capsys.readouterr().err
    (tmp_path / "train.parquet").write_bytes(b"not parquet")
    assert main(command(release, tmp_path / "run", TINY, splits=tmp_path)) == 2
    assert "no Parquet file" in capsys.readouterr().err
    table = release.table.set_column(1, "clip", [["../../etc/passwd"] * len(release.table)])
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
    assert main(command(release, tmp_path / "run", TINY, splits=tmp_path)) == 2
    assert "is no clip of a shard" in capsys.readouterr().err


def test_each_stage_rises_and_decays():
    parameters = TrainingParameters(reading_steps=100, steps=200, warmup_share=0.1)
    rates = [rate_factor(step, parameters) for step in range(300)]
    assert rates[0] < rates[5] < rates[10] == 1.0
    assert rates[99] < 0.02
    assert rates[100] < 0.1 and rates[120] == 1.0 and 0 < rates[299] < 0.01
    cosine = TrainingParameters(reading_steps=0, steps=100, decay="cosine", warmup_share=0.0)
    assert rate_factor(50, cosine) == pytest.approx(0.5)
