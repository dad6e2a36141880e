"""How good a checkpoint is on the sealed bench, beside chance and beside itself without the video."""

import csv
import io
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from assets.benchmark.parameters import BenchmarkParameters
from assets.benchmark.published import published_rows
from assets.benchmark.statistics import (
    Calibration,
    ClipBootstrap,
    Estimate,
    PositionBias,
    calibration,
    mcnemar,
    position_bias,
)
from assets.benchmark.tasks import Tasks, load_tasks
from validations.leakage import repeated_share

LETTERS = ("A", "B", "C", "D")
CHANCE = 0.25
CONFIDENCE = 0.95
DECIMALS = 6
MANY_STATES = 4

Progress = Callable[[int, int, str], None]
Predictor = Callable[..., np.ndarray]


class PredictionError(ValueError):
    """What a model returned is no set of probabilities."""


@dataclass(frozen=True)
class Answers:
    """One reader's answers to the n questions of the bench.

    Attributes:
        probabilities: (n, 4) of the options A to D, rounded; everything below is derived from them.
        predicted: (n,) index of the likeliest option, the first among equals.
        right: (n,) bool.
    """

    probabilities: np.ndarray
    predicted: np.ndarray
    right: np.ndarray


def evaluate(
    checkpoint: Path,
    splits: Path,
    videos: Path,
    geometry: Path,
    out: Path,
    parameters: BenchmarkParameters,
    identity: Mapping[str, Any],
    progress: Progress = lambda done, total, what: None,
    predictor: Predictor | None = None,
) -> dict[str, Any]:
    """Ask a checkpoint the bench, with the video and without, and write the report.

    Args:
        checkpoint: model folder.
        splits: folder of the sealed release.
        videos: folder holding `<shard>/frames/<clip>.safetensors`.
        geometry: folder holding `<shard>/<clip>.safetensors`.
        out: folder of the report, replaced as a whole once everything in it is written: `predictions.parquet`,
            `metrics.json`, `plots/*.csv`, `report.html`, `report.md`.
        parameters: of evaluation and report.
        identity: names and hashes of what was evaluated, shown in the report as they are; no path and no date.
        progress: called with (done, total, what).
        predictor: `predict(checkpoint, questions, videos, geometry, *, blind, batch_clips, progress) -> (n, 4)`;
            the project's own model where None.

    Returns:
        The contents of `metrics.json`.

    Raises:
        ReleaseError, TaskError: the bench cannot be asked.
        PredictionError: the predictor returned something else than probabilities.
    """
    if predictor is None:
        from assets.benchmark.predictions import cached_predictor

        predictor = cached_predictor(out.with_name(".predictions.sqlite"))
    tasks = load_tasks(splits, videos, geometry)
    truth = _truth(tasks.table)
    asked = tasks.table.drop_columns(["answer"])
    readers = [
        _answers(
            predictor(
                checkpoint,
                asked,
                videos,
                geometry,
                blind=blind,
                batch_clips=parameters.batch_clips,
                progress=progress,
            ),
            truth,
        )
        for blind in (False, True)
    ]
    repeated = _repeated_share(splits, tasks)
    metrics = measure(tasks, *readers, parameters, identity, repeated)
    _write_folder(out, tasks, readers, metrics, videos, geometry, parameters)
    return metrics


def measure(
    tasks: Tasks,
    model: Answers,
    blind: Answers,
    parameters: BenchmarkParameters,
    identity: Mapping[str, Any],
    repeated: float,
) -> dict[str, Any]:
    """Everything the report says in figures; every interval is read from the same draws of clips.

    Args:
        tasks: the questions that were asked.
        model: answers with the video.
        blind: answers of the same model without it.
        parameters: of evaluation.
        identity: of what was evaluated.
        repeated: share of bench questions that stand word for word in training.
    """
    table = tasks.table
    bootstrap = ClipBootstrap(table["clip"].to_numpy(), parameters.resamples, CONFIDENCE, parameters.seed)
    types = np.array(table["type"].to_pylist(), dtype=str)
    truth = _truth(table)
    return {
        "overall": _figure(bootstrap.share(model.right)),
        "macro": _figure(bootstrap.macro(model.right, types)),
        "by_type": _by_group(bootstrap, model, blind, types),
        "by_states": _by_group(bootstrap, model, blind, _states(table)),
        "by_viewpoint": _by_group(bootstrap, model, blind, _viewpoints(table)),
        "blind": {
            **_figure(bootstrap.share(blind.right)),
            "macro": _figure(bootstrap.macro(blind.right, types)),
            "by_type": {
                name: _figure(bootstrap.share(blind.right, types == name)) for name in np.unique(types).tolist()
            },
        },
        "difference": {
            **_figure(bootstrap.difference(model.right, blind.right), name="value"),
            "only_with_video": int(np.sum(model.right & ~blind.right)),
            "only_blind": int(np.sum(blind.right & ~model.right)),
            "mcnemar_p": float(f"{mcnemar(model.right, blind.right):.6g}"),
        },
        "calibration": _calibration(calibration(model.probabilities, truth, parameters.calibration_bins)),
        "letters": {
            "truth": _letter_shares(truth),
            "model": _letter_shares(model.predicted),
            "blind": _letter_shares(blind.predicted),
        },
        "positions": _positions(position_bias(bootstrap, model.predicted, truth)),
        "chance": CHANCE,
        "repeated_in_train": round(repeated, DECIMALS),
        "missing": {"n": len(tasks.missing), "questions": tasks.missing},
        "published": published_rows(),
        "protocol": _protocol(tasks, parameters),
        "identity": dict(identity),
    }


def _truth(table: pa.Table) -> np.ndarray:
    """(n,) index of the right option."""
    return np.array([LETTERS.index(letter) for letter in table["answer"].to_pylist()], dtype=int)


def _answers(probabilities: np.ndarray, truth: np.ndarray) -> Answers:
    """Check and round what a predictor returned: a model is not trusted to return probabilities."""
    values = np.asarray(probabilities, dtype=np.float64)
    if values.shape != (len(truth), len(LETTERS)):
        raise PredictionError(f"the model returned shape {values.shape}, not {(len(truth), 4)}: train it again")
    wrong = ~(np.isfinite(values).all(1) & (values >= 0).all(1) & (np.abs(values.sum(1) - 1) < 1e-3))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise PredictionError(f"row {row}: {values[row].tolist()} are no probabilities; train the model again")
    values = np.round(values, DECIMALS)
    predicted = values.argmax(1)
    return Answers(values, predicted, predicted == truth)


def _figure(estimate: Estimate, name: str = "accuracy") -> dict[str, Any]:
    return {
        name: estimate.value,
        "ci95": [estimate.low, estimate.high],
        "n": estimate.n,
        "clips": estimate.clips,
        "interval": estimate.method,
    }


def _by_group(bootstrap: ClipBootstrap, model: Answers, blind: Answers, groups: np.ndarray) -> dict[str, Any]:
    return {
        name: {
            **_figure(bootstrap.share(model.right, groups == name)),
            "blind": round(float(blind.right[groups == name].mean()), DECIMALS),
        }
        for name in np.unique(groups).tolist()
    }


def _states(table: pa.Table) -> np.ndarray:
    """How many states each true answer goes through; many are counted together."""
    lengths = pc.fill_null(pc.list_value_length(table["states"]), 0).to_numpy()
    names = [
        "unknown",
        "1 state",
        *(f"{count} states" for count in range(2, MANY_STATES)),
        f"{MANY_STATES} or more states",
    ]
    return np.array(names)[np.minimum(lengths, MANY_STATES)]


def _viewpoints(table: pa.Table) -> np.ndarray:
    kinds = table["viewpoint_kind"].to_pylist()
    subjects = table["viewpoint_subject"].to_pylist()
    frame = {"abs": "frozen", "rel": "moving along"}
    return np.array(
        [
            f"{'camera' if subject == 'camera' else 'agent'}, {frame.get(kind, 'other')}"
            for kind, subject in zip(kinds, subjects, strict=True)
        ],
        dtype=str,
    )


def _calibration(result: Calibration) -> dict[str, Any]:
    bins = zip(result.low, result.high, result.confidence, result.accuracy, result.n, strict=True)
    return {
        "ece": result.error,
        "brier": result.brier,
        "bins": [
            {"from": float(low), "to": float(high), "confidence": float(said), "accuracy": float(was), "n": int(n)}
            for low, high, said, was, n in bins
        ],
    }


def _letter_shares(places: np.ndarray) -> dict[str, float]:
    shares = np.bincount(places, minlength=len(LETTERS)) / len(places)
    return {letter: round(float(share), DECIMALS) for letter, share in zip(LETTERS, shares, strict=True)}


def _positions(bias: PositionBias) -> dict[str, Any]:
    """Accuracy, share of answers and their excess over the truth by position of the option."""
    by_letter = {
        letter: {
            **_figure(accuracy),
            "chosen": _figure(chosen, name="share"),
            "excess": _figure(excess, name="value"),
        }
        for letter, accuracy, chosen, excess in zip(LETTERS, bias.accuracy, bias.chosen, bias.excess, strict=True)
    }
    return {"by_letter": by_letter, "bias": bias.total}


def _repeated_share(splits: Path, tasks: Tasks) -> float:
    columns = ["question", "options", "answer"]
    train = pq.read_table(splits / "train.parquet", columns=columns).to_pandas()
    return repeated_share(train, tasks.table.select(columns).to_pandas())


def _protocol(tasks: Tasks, parameters: BenchmarkParameters) -> dict[str, Any]:
    return {
        "questions": tasks.table.num_rows,
        "clips": len(pc.unique(tasks.table["clip"])),
        "quads": len(pc.unique(tasks.table["quad"])),
        "bench_sha256": tasks.release["splits"]["bench"]["sha256"],
        "generator_version": tasks.release["generator_version"],
        "parameters": parameters.model_dump(mode="json"),
    }


def _write_folder(
    out: Path,
    tasks: Tasks,
    readers: list[Answers],
    metrics: dict[str, Any],
    videos: Path,
    geometry: Path,
    parameters: BenchmarkParameters,
) -> None:
    """Write everything aside, then put it in place of what was there."""
    from assets.benchmark.examples import choose_examples, draw_example
    from assets.benchmark.report import render_html, render_markdown

    model, blind = readers
    chosen = choose_examples(tasks.table, model.right, parameters.examples)
    examples = [
        draw_example(
            tasks.table.slice(row, 1).to_pylist()[0],
            model.probabilities[row],
            blind.probabilities[row],
            videos,
            geometry,
            parameters,
        )
        for row in chosen
    ]
    aside, before = out.with_name(f".{out.name}.partial"), out.with_name(f".{out.name}.before")
    shutil.rmtree(aside, ignore_errors=True)
    shutil.rmtree(before, ignore_errors=True)
    (aside / "plots").mkdir(parents=True)
    _write_predictions(aside / "predictions.parquet", tasks.table, model, blind)
    (aside / "metrics.json").write_text(json.dumps(metrics, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    for name, text in plots(metrics).items():
        (aside / "plots" / name).write_text(text, encoding="utf-8")
    (aside / "report.html").write_text(render_html(metrics, examples), encoding="utf-8")
    (aside / "report.md").write_text(render_markdown(metrics), encoding="utf-8")
    if out.exists():
        os.replace(out, before)
    os.replace(aside, out)
    shutil.rmtree(before, ignore_errors=True)


def _write_predictions(path: Path, table: pa.Table, model: Answers, blind: Answers) -> None:
    columns: dict[str, pa.Array] = {
        name: table[name].combine_chunks().cast(pa.string()) for name in ("qa_id", "clip", "type", "quad", "answer")
    }
    for prefix, reader in (("", model), ("blind_", blind)):
        columns[f"{prefix}predicted"] = pa.array([LETTERS[place] for place in reader.predicted], pa.string())
        columns[f"{prefix}right"] = pa.array(reader.right, pa.bool_())
        for place, letter in enumerate(LETTERS):
            columns[f"{prefix}{letter}"] = pa.array(reader.probabilities[:, place], pa.float64())
    pq.write_table(pa.table(columns), path, compression="zstd")


def plots(metrics: dict[str, Any]) -> dict[str, str]:
    """The tables behind the report's charts as CSV texts by file name, for `dvc plots`."""
    by_type = [
        [name, part["accuracy"], *part["ci95"], part["blind"], metrics["chance"], part["n"]]
        for name, part in metrics["by_type"].items()
    ]
    by_states = [
        [name, part["accuracy"], *part["ci95"], part["blind"], part["n"]] for name, part in metrics["by_states"].items()
    ]
    bins = [[part["confidence"], part["accuracy"], part["n"]] for part in metrics["calibration"]["bins"]]
    letters = [
        [letter, *(metrics["letters"][who][letter] for who in ("truth", "model", "blind"))] for letter in LETTERS
    ]
    return {
        "by_type.csv": _csv(["type", "accuracy", "low", "high", "blind", "chance", "n"], by_type),
        "by_states.csv": _csv(["states", "accuracy", "low", "high", "blind", "n"], by_states),
        "calibration.csv": _csv(["confidence", "accuracy", "n"], bins),
        "letters.csv": _csv(["letter", "truth", "model", "blind"], letters),
    }


def _csv(header: list[str], rows: list[list[Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return buffer.getvalue()
