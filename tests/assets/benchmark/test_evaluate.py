import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from assets.benchmark.evaluate import PredictionError, evaluate

ROOT = Path(__file__).resolve().parents[3]


def run(root, out, reader, identity, parameters):
    return evaluate(
        *(root / name for name in ("checkpoint", "splits", "videos", "geometry")),
        out,
        parameters,
        identity,
        predictor=reader,
    )


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def constant(probabilities):
    def reader(checkpoint, questions, videos, geometry, *, blind, batch_clips, progress):
        return np.tile(probabilities, (questions.num_rows, 1))

    return reader


def test_the_folder_holds_what_was_promised(evaluated):
    assert set(contents(evaluated.out)) == {
        "metrics.json",
        "predictions.parquet",
        "report.html",
        "report.md",
        *(f"plots/{name}.csv" for name in ("by_type", "by_states", "calibration", "confusion", "letters", "positions")),
    }
    assert json.loads((evaluated.out / "metrics.json").read_text()) == evaluated.metrics


def test_figures_follow_from_the_predictions(evaluated, world):
    rows = pq.read_table(evaluated.out / "predictions.parquet").to_pandas()
    bench = pq.read_table(world / "splits" / "bench.parquet").to_pandas().set_index("qa_id")
    likeliest = rows[list("ABCD")].idxmax(axis=1)
    assert (likeliest == rows["predicted"]).all()
    assert (rows["answer"].to_numpy() == bench.loc[rows["qa_id"], "answer"].to_numpy()).all()
    right = rows["predicted"] == rows["answer"]
    metrics = evaluated.metrics
    assert metrics["overall"]["accuracy"] == pytest.approx(right.mean(), abs=1e-6)
    for name, part in metrics["by_type"].items():
        chosen = rows["type"] == name
        assert part["accuracy"] == pytest.approx(right[chosen].mean(), abs=1e-6)
        assert part["blind"] == pytest.approx(rows["blind_right"][chosen].mean(), abs=1e-6)
        assert (part["n"], part["clips"]) == (24, 6)
    assert metrics["macro"]["accuracy"] == pytest.approx(right.groupby(rows["type"]).mean().mean(), abs=1e-6)


def test_the_reader_that_measures_beats_its_blind_self(evaluated):
    metrics = evaluated.metrics
    assert 0.75 <= metrics["overall"]["accuracy"] < 1
    assert metrics["overall"]["n"] == 48
    assert metrics["blind"]["accuracy"] == metrics["chance"] == 0.25
    assert metrics["difference"]["ci95"][0] > 0
    assert metrics["difference"]["value"] == pytest.approx(metrics["overall"]["accuracy"] - 0.25, abs=1e-6)
    assert metrics["letters"]["truth"] == dict.fromkeys("ABCD", 0.25)
    assert metrics["letters"]["blind"]["C"] == 0
    assert metrics["by_states"]["2 states"]["n"] == 12
    assert metrics["shuffled"]["accuracy"] < 0.4 and metrics["shuffled"]["difference"]["ci95"][0] > 0
    assert metrics["baseline"] is None
    assert set(metrics["by_viewpoint"]) == {"camera, frozen", "camera, moving along"}
    assert metrics["missing"] == {"n": 0, "questions": []}
    assert metrics["repeated_in_train"] == 0


def test_every_share_lies_in_its_interval(evaluated):
    metrics = evaluated.metrics
    parts = [metrics["overall"], metrics["macro"], metrics["blind"], *metrics["by_type"].values()]
    assert all(0 <= part["ci95"][0] <= part["accuracy"] <= part["ci95"][1] <= 1 for part in parts)


def test_the_readers_get_no_answers_and_the_whole_bench(world, tmp_path, reader, identity, parameters):
    seen = []

    def watching(checkpoint, questions, videos, geometry, **how):
        seen.append((questions.column_names, questions.num_rows, how["blind"], how["batch_clips"]))
        return reader(checkpoint, questions, videos, geometry, **how)

    run(world, tmp_path / "benchmark", watching, identity, parameters)
    assert [entry[1:] for entry in seen] == [(48, False, 4), (48, True, 4), (48, False, 4)]
    assert all("answer" not in columns for columns, *_ in seen)


def test_the_control_of_another_clip_can_be_left_out(world, tmp_path, reader, identity, parameters):
    seen = []

    def watching(checkpoint, questions, videos, geometry, **how):
        seen.append(how["blind"])
        return reader(checkpoint, questions, videos, geometry, **how)

    plain = parameters.model_copy(update={"shuffled": False})
    metrics = run(world, tmp_path / "benchmark", watching, identity, plain)
    assert seen == [False, True]
    assert metrics["shuffled"] is None and "shuffled" not in metrics["by_type"]["abs_dis"]
    page = (tmp_path / "benchmark" / "report.html").read_text()
    assert "Questions were not asked about another clip" in page and "same model, another clip" not in page
    assert "shuffled" not in (tmp_path / "benchmark" / "plots" / "by_type.csv").read_text()


def test_same_inputs_same_bytes(evaluated, world, tmp_path, reader, identity, parameters):
    run(world, tmp_path / "deep" / "again", reader, identity, parameters)
    assert contents(tmp_path / "deep" / "again") == contents(evaluated.out)


def test_no_path_of_this_machine_is_written(evaluated, world):
    for name, data in contents(evaluated.out).items():
        assert str(world).encode() not in data, name


def test_an_old_report_is_replaced_as_a_whole(world, tmp_path, reader, identity, parameters):
    out = tmp_path / "benchmark"
    out.mkdir()
    (out / "stale.txt").write_text("old")
    run(world, out, reader, identity, parameters)
    assert "stale.txt" not in contents(out)
    assert [path.name for path in tmp_path.iterdir()] == ["benchmark"]


@pytest.mark.parametrize(
    ("probabilities", "message"),
    [
        ([np.nan, 0.5, 0.25, 0.25], "no probabilities"),
        ([-0.5, 0.5, 0.5, 0.5], "no probabilities"),
        ([0.9, 0.9, 0.9, 0.9], "no probabilities"),
        ([0.5, 0.5], "shape"),
    ],
)
def test_what_is_no_probability_is_refused_and_the_old_report_stays(
    world, tmp_path, identity, parameters, probabilities, message
):
    out = tmp_path / "benchmark"
    out.mkdir()
    (out / "report.md").write_text("before")
    with pytest.raises(PredictionError, match=message):
        run(world, out, constant(probabilities), identity, parameters)
    assert contents(out) == {"report.md": b"before"}


def test_a_constant_letter_is_right_once_in_four(world, tmp_path, identity, parameters):
    metrics = run(world, tmp_path / "b", constant([0.1, 0.7, 0.1, 0.1]), identity, parameters)
    assert metrics["overall"]["accuracy"] == 0.25
    assert metrics["difference"]["value"] == 0
    assert metrics["difference"]["mcnemar_p"] == 1
    assert metrics["letters"]["model"]["B"] == 1
    assert metrics["calibration"]["ece"] == pytest.approx(0.45)


def test_questions_that_cannot_be_asked_are_counted_not_scored(own_world, reader, identity, parameters):
    clips = sorted(json.loads((own_world / "splits" / "release.json").read_text())["clips"]["bench"])
    next((own_world / "videos").rglob(f"{clips[0]}.safetensors")).unlink()
    metrics = run(own_world, own_world / "out", reader, identity, parameters)
    assert (metrics["overall"]["n"], metrics["missing"]["n"]) == (40, 8)
    assert "8 (no frames file)" in (own_world / "out" / "report.html").read_text()


def test_published_figures_are_marked_as_context(evaluated):
    published = {row["model"]: row for row in evaluated.metrics["published"]}
    assert all("published, other data" in row["source"] for row in published.values())
    assert published["GSM, 50K"]["overall"] == 0.589 and published["GSM, 50K"]["by_type"]["abs_dis"] == 0.87
    assert [name for name, row in published.items() if row["charted"]] == ["Qwen2.5-VL-7B", "GSM, 50K"]
    full = [row for row in published.values() if row["by_type"]]
    # Shares of the 13 types whose mean over 1,484 questions is the published average, which lies between their ends.
    assert all(min(row["by_type"].values()) < row["overall"] < max(row["by_type"].values()) for row in full)
    assert len(full) == 16 and all(len(row["by_type"]) == 13 for row in full)


def test_plots_hold_what_the_charts_show(evaluated):
    tables = {path.stem: path.read_text().splitlines() for path in (evaluated.out / "plots").iterdir()}
    assert tables["by_type"][0] == "type,accuracy,low,high,blind,shuffled,chance,n"
    assert len(tables["confusion"]) == 1 + 48 and set(tables["confusion"][1:]) <= {
        f"{a},{b}" for a in "ABCD" for b in "ABCD"
    }
    right = sum(row[0] == row[2] for row in tables["confusion"][1:])
    assert right / 48 == pytest.approx(evaluated.metrics["overall"]["accuracy"], abs=1e-6)
    assert [row[0] for row in tables["positions"][1:]] == list("ABCD")


def test_dvc_draws_every_table_from_columns_that_it_has(evaluated):
    plots = {
        path: plot for entry in yaml.safe_load((ROOT / "dvc.yaml").read_text())["plots"] for path, plot in entry.items()
    }
    tables = {f"reports/benchmark/plots/{path.name}": path for path in (evaluated.out / "plots").iterdir()}
    assert set(plots) == set(tables)
    for name, plot in plots.items():
        assert {plot["x"], plot["y"]} <= set(tables[name].read_text().splitlines()[0].split(","))
