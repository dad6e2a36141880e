"""The report folder: figures, predictions, tables for plots, and the pages drawn from them."""

import csv
import io
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from assets.benchmark.baseline import Baseline
from assets.benchmark.examples import Example, choose_examples, draw_example
from assets.benchmark.measures import LETTERS, Answers, Readers, before_of, measure, truth_of
from assets.benchmark.parameters import BenchmarkParameters
from assets.benchmark.report import render_html, render_markdown
from assets.benchmark.tasks import Tasks, load_tasks


class ReportError(ValueError):
    """A report cannot be read again."""


def write_folder(
    out: Path,
    tasks: Tasks,
    readers: Readers,
    metrics: Mapping[str, Any],
    videos: Path,
    geometry: Path,
    parameters: BenchmarkParameters,
    baseline: Baseline | None = None,
) -> None:
    """Write everything aside, then put it in place of what was there; arguments as `evaluate`."""
    examples = _examples(tasks, readers, videos, geometry, parameters, baseline)
    aside, before = out.with_name(f".{out.name}.partial"), out.with_name(f".{out.name}.before")
    shutil.rmtree(aside, ignore_errors=True)
    shutil.rmtree(before, ignore_errors=True)
    (aside / "plots").mkdir(parents=True)
    _write_predictions(aside / "predictions.parquet", tasks.table, readers)
    (aside / "metrics.json").write_text(json.dumps(metrics, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    for name, text in plots(metrics, truth_of(tasks.table), readers.model.predicted).items():
        (aside / "plots" / name).write_text(text, encoding="utf-8")
    (aside / "report.html").write_text(render_html(metrics, examples), encoding="utf-8")
    (aside / "report.md").write_text(render_markdown(metrics), encoding="utf-8")
    if out.exists():
        os.replace(out, before)
    os.replace(aside, out)
    shutil.rmtree(before, ignore_errors=True)


def page_against(report: Path, splits: Path, videos: Path, geometry: Path, baseline: Baseline) -> tuple[str, str]:
    """The page of a finished report once more, beside another checkpoint; nothing is asked and nothing is written.

    A report folder rests on its own checkpoint and data alone, whoever was champion then. What it looks like beside a
    champion is drawn from it when a person or the registry wants to know.

    Args:
        report: folder of the report.
        splits: folder of the release that it was measured on.
        videos: as `evaluate`.
        geometry: as `evaluate`.
        baseline: the other checkpoint's answers.

    Returns:
        (HTML page, Markdown summary).

    Raises:
        ReportError: the folder is no report on this release.
        ReleaseError, TaskError: the release or its clips cannot be read.
    """
    tasks, again = load_tasks(splits, videos, geometry), "make the benchmark again"
    try:
        metrics = json.loads((report / "metrics.json").read_text(encoding="utf-8"))
        parameters = BenchmarkParameters(**metrics["protocol"]["parameters"])
        rows = pq.read_table(report / "predictions.parquet")
        if rows["qa_id"].to_pylist() != tasks.table["qa_id"].to_pylist():
            raise ReportError(f"{report}: its questions are not those of this release; {again}")
        readers = _readers(rows, truth_of(tasks.table))
        told = metrics["identity"], metrics["repeated_in_train"]
    except (OSError, KeyError, TypeError, pa.ArrowException) as error:
        raise ReportError(f"{report}: cannot be read ({type(error).__name__}); {again}") from error
    metrics = measure(tasks, readers, parameters, *told, baseline)
    examples = _examples(tasks, readers, videos, geometry, parameters, baseline)
    return render_html(metrics, examples), render_markdown(metrics)


def _examples(
    tasks: Tasks,
    readers: Readers,
    videos: Path,
    geometry: Path,
    parameters: BenchmarkParameters,
    baseline: Baseline | None,
) -> list[Example]:
    """Held against the baseline where there is one to be compared with, else against the model without the video."""
    truth, (model, blind) = truth_of(tasks.table), (readers.model, readers.blind)
    rows = np.arange(len(truth))
    before, _ = before_of(tasks, model.right, baseline)
    held = (blind.probabilities[rows, truth], blind.right) if before is None else (before.astype(float), before)
    chosen = choose_examples(
        tasks.table, model.probabilities[rows, truth], held[0], model.right, held[1], parameters.examples
    )
    return [
        draw_example(
            tasks.table.slice(choice.row, 1).to_pylist()[0],
            model.probabilities[choice.row],
            blind.probabilities[choice.row],
            videos,
            geometry,
            parameters,
            choice.group,
            None if before is None else bool(before[choice.row]),
        )
        for choice in chosen
    ]


def _named(readers: Readers) -> dict[str, Answers]:
    """Readers by the prefix of their columns."""
    named = {"": readers.model, "blind_": readers.blind}
    return named | ({"shuffled_": readers.shuffled} if readers.shuffled else {})


def _write_predictions(path: Path, table: pa.Table, readers: Readers) -> None:
    columns: dict[str, pa.Array] = {
        name: table[name].combine_chunks().cast(pa.string()) for name in ("qa_id", "clip", "type", "quad", "answer")
    }
    for prefix, reader in _named(readers).items():
        columns[f"{prefix}predicted"] = pa.array([LETTERS[place] for place in reader.predicted], pa.string())
        columns[f"{prefix}right"] = pa.array(reader.right, pa.bool_())
        for place, letter in enumerate(LETTERS):
            columns[f"{prefix}{letter}"] = pa.array(reader.probabilities[:, place], pa.float64())
    pq.write_table(pa.table(columns), path, compression="zstd")


def _readers(rows: pa.Table, truth: np.ndarray) -> Readers:
    """What `_write_predictions` wrote."""

    def read(prefix: str) -> Answers:
        values = np.stack([rows[f"{prefix}{letter}"].to_numpy() for letter in LETTERS], -1)
        predicted = values.argmax(1)
        return Answers(values, predicted, predicted == truth)

    return Readers(read(""), read("blind_"), read("shuffled_") if "shuffled_A" in rows.column_names else None)


def plots(metrics: Mapping[str, Any], truth: np.ndarray, predicted: np.ndarray) -> dict[str, str]:
    """The tables behind the report's charts as CSV texts by file name, for `dvc plots`.

    Args:
        metrics: contents of `metrics.json`.
        truth: (n,) index of the right letter.
        predicted: (n,) index of the letter that was said.
    """
    readers = [who for who in ("blind", "shuffled", "baseline") if metrics[who] and "accuracy" in metrics[who]]
    by_type, by_states = (
        [
            [name, part["accuracy"], *part["ci95"], *(part[who] for who in readers), metrics["chance"], part["n"]]
            for name, part in metrics[group].items()
        ]
        for group in ("by_type", "by_states")
    )
    bins = [[part["confidence"], part["accuracy"], part["n"]] for part in metrics["calibration"]["bins"]]
    positions = [
        [letter, part["accuracy"], *part["ci95"], part["chosen"]["share"], part["excess"]["value"]]
        for letter, part in metrics["positions"]["by_letter"].items()
    ]
    letters = [
        [letter, *(metrics["letters"][who][letter] for who in ("truth", "model", "blind"))] for letter in LETTERS
    ]
    pairs = [[LETTERS[true], LETTERS[said]] for true, said in zip(truth, predicted, strict=True)]
    columns = ["accuracy", "low", "high", *readers, "chance", "n"]
    return {
        "by_type.csv": _csv(["type", *columns], by_type),
        "by_states.csv": _csv(["states", *columns], by_states),
        "calibration.csv": _csv(["confidence", "accuracy", "n"], bins),
        "confusion.csv": _csv(["actual", "predicted"], pairs),
        "letters.csv": _csv(["letter", "truth", "model", "blind"], letters),
        "positions.csv": _csv(["letter", "accuracy", "low", "high", "chosen", "excess"], positions),
    }


def _csv(header: list[str], rows: list[list[Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return buffer.getvalue()
