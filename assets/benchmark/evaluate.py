"""How good a checkpoint is on the sealed bench, beside chance, itself without the video and with another clip's."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from assets.benchmark.baseline import Baseline
from assets.benchmark.controls import strangers
from assets.benchmark.folder import write_folder
from assets.benchmark.measures import DECIMALS, LETTERS, Answers, Readers, measure, truth_of
from assets.benchmark.parameters import BenchmarkParameters
from assets.benchmark.tasks import Tasks, load_tasks
from validations.leakage import repeated_share

Progress = Callable[[int, int, str], None]
Predictor = Callable[..., np.ndarray]


class PredictionError(ValueError):
    """What a model returned is no set of probabilities."""


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
    baseline: Baseline | None = None,
) -> dict[str, Any]:
    """Ask a checkpoint the bench, with the video, without it and with another clip's, and write the report.

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
        baseline: another checkpoint's answers, for the report to compare with.

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
    readers = _ask(predictor, checkpoint, tasks, videos, geometry, parameters, progress)
    metrics = measure(tasks, readers, parameters, identity, _repeated_share(splits, tasks), baseline)
    write_folder(out, tasks, readers, metrics, videos, geometry, parameters, baseline)
    return metrics


def _ask(
    predictor: Predictor,
    checkpoint: Path,
    tasks: Tasks,
    videos: Path,
    geometry: Path,
    parameters: BenchmarkParameters,
    progress: Progress,
) -> Readers:
    """Put the bench to the model with the video, without it, and with another clip's."""
    truth, asked = truth_of(tasks.table), tasks.table.drop_columns(["answer"])

    def answers(table: pa.Table, blind: bool, report: Progress) -> Answers:
        how = {"blind": blind, "batch_clips": parameters.batch_clips, "progress": report}
        return _answers(predictor(checkpoint, table, videos, geometry, **how), truth)

    model, blind = (answers(asked, blind, progress) for blind in (False, True))
    others = strangers(asked) if parameters.shuffled else None
    if others is None:
        return Readers(model, blind, None)
    return Readers(
        model, blind, answers(others, False, lambda done, total, what: progress(done, total, "with another clip"))
    )


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


def _repeated_share(splits: Path, tasks: Tasks) -> float:
    columns = ["question", "options", "answer"]
    train = pq.read_table(splits / "train.parquet", columns=columns).to_pandas()
    return repeated_share(train, tasks.table.select(columns).to_pandas())
