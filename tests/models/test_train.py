import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from safetensors.numpy import load_file

from benchmarks.training.processes import start
from models.parameters import TrainingParameters
from models.predict import predict
from models.train import main, train
from tests.models.conftest import GUIDED, SHARD, TINY
from tests.models.processes import finish, wait_for


@pytest.fixture(scope="session")
def both_sides(release, tmp_path_factory) -> Path:
    """The release with validation questions; that they are the training questions does not matter here."""
    splits = tmp_path_factory.mktemp("splits")
    for side in ("train", "val"):
        shutil.copy(release.splits / "train.parquet", splits / f"{side}.parquet")
    return splits


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


def killed(arguments: list[str], root: Path, processes: int = 1) -> None:
    """A training that dies, all of its processes at once, as soon as it has saved its state."""
    running = start(main, [arguments], root / "killed", processes)
    wait_for(root / "work" / "last.ckpt", running)
    for process in running:
        process.kill()
    finish(running, root / "killed")
    assert {process.exitcode for process in running} == {-signal.SIGKILL}
    assert not (root / "checkpoint").exists()


def same_files(one: Path, other: Path) -> bool:
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in other.iterdir())
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names if (one / name).is_file())


EVERYTHING = {
    **GUIDED,
    "reading_steps": 2,
    "steps": 10,
    "checkpoint_every": 4,
    "clips_per_batch": 3,
    "lora": {"rank": 2, "dropout": 0.3, "targets": ["q_proj", "v_proj"]},
    "evaluate_every": 4,
    "evaluate_questions": 6,
    "keep": "best",
}
UNGUIDED = {name: TINY[name] for name in ("guidance", "naming_steps", "grounding_steps")}


@pytest.mark.parametrize(
    ("parameters", "processes"),
    [
        ({**TINY, "steps": 20}, 1),
        ({**EVERYTHING, "accumulate": 2}, 1),
        ({**EVERYTHING, "devices": 2}, 2),
        ({**EVERYTHING, **UNGUIDED, "devices": 2, "strategy": "fsdp"}, 2),
    ],
    ids=["plain", "everything", "two processes", "two shards"],
)
def test_killed_training_ends_in_the_same_bytes(release, both_sides, tmp_path, parameters, processes):
    folders = {name: tmp_path / name for name in ("whole", "broken")}
    arguments = {name: command(release, folder, parameters, both_sides) for name, folder in folders.items()}
    whole = start(main, [arguments["whole"]], tmp_path / "log", processes)
    killed(arguments["broken"], folders["broken"], processes)
    said = finish(whole, tmp_path / "log")
    assert {process.exitcode for process in whole} == {0}, said
    resumed = start(main, [arguments["broken"]], tmp_path / "resumed", processes)
    said = finish(resumed, tmp_path / "resumed")
    assert {process.exitcode for process in resumed} == {0}, said
    assert "resuming at step" in said
    assert same_files(folders["whole"] / "checkpoint", folders["broken"] / "checkpoint")
    left = sorted(path.name for path in (folders["broken"] / "work").iterdir())
    assert left == sorted(path.name for path in (folders["whole"] / "work").iterdir()) and "last.ckpt" not in left


def test_sigterm_is_no_success(release, tmp_path):
    root = tmp_path / "run"
    running = start(main, [command(release, root, {**TINY, "steps": 5000})], tmp_path / "log")
    wait_for(root / "work" / "last.ckpt", running)
    running[0].terminate()
    said = finish(running, tmp_path / "log")
    assert running[0].exitcode == 143, said
    assert "the state is saved" in said
    assert not (root / "checkpoint").exists()
    assert "step " in said and "questions/s" in said and "tokens/s" in said and " GB" in said and " left" in said


def test_state_of_another_run_is_not_resumed(release, tmp_path, capsys):
    run = tmp_path / "run"
    killed(command(release, run, {**TINY, "steps": 5000}), run)
    (run / "work" / "best-00000002.safetensors").write_bytes(b"of the other run")
    assert main(command(release, run, TINY)) == 0
    assert "starting over" in capsys.readouterr().out
    assert json.loads((run / "checkpoint" / "training.json").read_text())["steps"] == 10
    assert not list((run / "work").glob("best*"))


def test_damaged_state_is_told(release, tmp_path, capsys):
    (tmp_path / "run" / "work").mkdir(parents=True)
    (tmp_path / "run" / "work" / "last.ckpt").write_bytes(b"PK half a file")
    assert main(command(release, tmp_path / "run", TINY)) == 2
    line = capsys.readouterr().err.strip()
    assert "last.ckpt: cannot be read" in line and "delete it to start over" in line and "\n" not in line


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_train_to_what_one_does(release, tmp_path, strategy):
    # Adam divides by the size of a gradient, so rounding shows in weights whose gradient is next to nothing.
    parameters = {**TINY, "steps": 3, "learning_rates": {"geometry": 1e-4, "language": 1e-4, "merger": 1e-4}}
    assert main(command(release, tmp_path / "one", parameters)) == 0
    shared = {**parameters, "devices": 2, "strategy": strategy}
    running = start(main, [command(release, tmp_path / "two", shared)], tmp_path / "log", 2)
    said = finish(running, tmp_path / "log")
    assert {process.exitcode for process in running} == {0}, said
    one, two = (load_file(tmp_path / run / "checkpoint/model.safetensors") for run in ("one", "two"))
    assert set(one) == set(two)
    assert max(float(np.abs(one[name] - two[name]).max()) for name in one) < 1e-4
    curves = [(tmp_path / run / "checkpoint" / "curves.csv").read_text().splitlines() for run in ("one", "two")]
    losses = [[float(row.split(",")[2]) for row in rows[1:]] for rows in curves]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_processes_train_though_some_guides_are_not_asked(release, tmp_path):
    parameters = {**GUIDED, "reading_steps": 0, "grounding_steps": 0, "steps": 2, "guidance": {"in_videos": 0.0}}
    running = start(main, [command(release, tmp_path / "run", {**parameters, "devices": 2})], tmp_path / "log", 2)
    said = finish(running, tmp_path / "log")
    assert {process.exitcode for process in running} == {0}, said


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
    assert report["questions_seen"]["reading"] == 3 * TINY["reading_questions"]
    assert report["questions_seen"]["grounding"] == 0
    # A pack holds the three questions of a clip without a hidden part, or the one with.
    assert 7 * 2 * 1 <= report["questions_seen"]["videos"] <= 7 * 2 * 3
    assert TrainingParameters.from_mapping(report["parameters"]).steps == 7
    rows = (checkpoint / "curves.csv").read_text().splitlines()
    assert rows[0] == "step,stage,loss,accuracy,rate,validation"
    assert [row.split(",")[:2] for row in rows[1:3]] == [["2", "reading"], ["3", "reading"]]
    assert rows[-1].startswith("10,videos,")


def test_stages_of_the_geometry_module_are_counted_and_drawn(release, tmp_path):
    parameters = TrainingParameters.from_mapping({**GUIDED, "reading_steps": 0, "steps": 1, "log_every": 1})
    places = (release.splits, release.videos, release.geometry, tmp_path / "out", tmp_path / "work")
    train(*places, parameters, progress=lambda *_: None)
    report = json.loads((tmp_path / "out" / "training.json").read_text())
    naming, grounding = (GUIDED[f"{stage}_steps"] for stage in ("naming", "grounding"))
    # In naming, one question stands for each of two clips.
    assert report["questions_seen"]["reading"] == 0 and report["questions_seen"]["naming"] == naming * 2
    assert grounding * 2 < report["questions_seen"]["grounding"] <= grounding * 2 * 3
    header, *rows = [row.split(",") for row in (tmp_path / "out" / "curves.csv").read_text().splitlines()]
    rows = [dict(zip(header, row, strict=True)) for row in rows]
    assert [row["stage"] for row in rows] == ["naming"] * naming + ["grounding"] * grounding + ["videos"]
    for row in rows[:naming]:
        said = {name for name, value in row.items() if value}
        assert said == {"step", "stage", "loss", "names", "rate"} and row["loss"] == row["names"]
    assert rows[naming]["cells"] and not rows[naming]["accuracy"]


def test_training_learns_the_training_questions(release, tmp_path):
    parameters = TrainingParameters.from_mapping(
        {**TINY, "reading_steps": 0, "steps": 150, "log_every": 25, "learning_rates": {"language": 5e-3}}
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


@pytest.mark.parametrize("variant", ["none", "addition", "concatenation", "fused"])
def test_every_variant_trains_and_answers(release, tmp_path, variant):
    parameters = {**TINY, "steps": 3, "geometry": {**TINY["geometry"], "variant": variant}}
    assert main(command(release, tmp_path / "run", parameters)) == 0
    probabilities = predict(tmp_path / "run" / "checkpoint", release.table, release.videos, release.geometry)
    np.testing.assert_allclose(probabilities.sum(1), 1.0)
    weights = load_file(tmp_path / "run" / "checkpoint" / "model.safetensors")
    assert any(name.startswith(("gsm.", "fusion.")) for name in weights) == (variant != "none")


def test_loading_processes_change_nothing(release, tmp_path, checkpoint):
    assert main(command(release, tmp_path / "run", {**TINY, "loader_workers": 2})) == 0
    one, other = (load_file(folder / "model.safetensors") for folder in (checkpoint, tmp_path / "run" / "checkpoint"))
    assert all(np.array_equal(one[name], other[name]) for name in one)


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
    save_file(cells, folder / SHARD / f"{clip}.safetensors", {"record": json.dumps({"marks": []})})


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
