"""Everything a benchmark report says in figures, from the answers of the model and of its controls."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from assets.benchmark.baseline import Baseline, compared, placed
from assets.benchmark.confusion import Confusion, letter_confusion, state_confusion
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
from assets.benchmark.tasks import Tasks

LETTERS = ("A", "B", "C", "D")
CHANCE = 0.25
CONFIDENCE = 0.95
DECIMALS = 6
MANY_STATES = 4


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


@dataclass(frozen=True)
class Readers:
    """The model's answers to the bench and those of its controls.

    Attributes:
        model: with the video.
        blind: the same weights and text, without video and geometry.
        shuffled: with another clip's video and geometry; None where it was not asked.
    """

    model: Answers
    blind: Answers
    shuffled: Answers | None


def measure(
    tasks: Tasks,
    readers: Readers,
    parameters: BenchmarkParameters,
    identity: Mapping[str, Any],
    repeated: float,
    baseline: Baseline | None = None,
) -> dict[str, Any]:
    """Everything the report says in figures; every interval is read from the same draws of clips.

    Args:
        tasks: the questions that were asked.
        readers: answers of the model and of its controls.
        parameters: of evaluation.
        identity: of what was evaluated.
        repeated: share of bench questions that stand word for word in training.
        baseline: another checkpoint's answers.
    """
    table, model, blind = tasks.table, readers.model, readers.blind
    clips = table["clip"].to_numpy()
    bootstrap = ClipBootstrap(clips, parameters.resamples, CONFIDENCE, parameters.seed)
    types = np.array(table["type"].to_pylist(), dtype=str)
    truth = truth_of(table)
    before, reason = before_of(tasks, model.right, baseline)
    others = {"blind": blind.right, "shuffled": readers.shuffled and readers.shuffled.right, "baseline": before}
    others = {who: outcomes for who, outcomes in others.items() if outcomes is not None}
    return {
        "overall": _figure(bootstrap.share(model.right)),
        "macro": _figure(bootstrap.macro(model.right, types)),
        "by_type": _by_group(bootstrap, model.right, others, types),
        "by_states": _by_group(bootstrap, model.right, others, _states(table)),
        "by_viewpoint": _by_group(bootstrap, model.right, others, _viewpoints(table)),
        "blind": _blind(bootstrap, blind, types),
        "shuffled": _shuffled(bootstrap, model, readers.shuffled),
        "baseline": _baseline(baseline, before, reason, model.right, clips),
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
        "confusion": {
            "letters": _confusion(letter_confusion(truth, model.predicted, LETTERS)),
            "states": {name: _confusion(found) for name, found in state_confusion(table, model.predicted).items()},
        },
        "chance": CHANCE,
        "repeated_in_train": round(repeated, DECIMALS),
        "missing": {"n": len(tasks.missing), "questions": tasks.missing},
        "published": published_rows(),
        "protocol": _protocol(tasks, parameters),
        "identity": dict(identity),
    }


def before_of(tasks: Tasks, right: np.ndarray, baseline: Baseline | None) -> tuple[np.ndarray | None, str | None]:
    """(n,) outcomes of the baseline on the same questions; None, and why where there is one that cannot be compared."""
    if baseline is None:
        return None, None
    return placed(baseline, tasks.table, tasks.release["splits"]["bench"]["sha256"], right)


def truth_of(table: pa.Table) -> np.ndarray:
    """(n,) index of the right option."""
    return np.array([LETTERS.index(letter) for letter in table["answer"].to_pylist()], dtype=int)


def _blind(bootstrap: ClipBootstrap, blind: Answers, types: np.ndarray) -> dict[str, Any]:
    return {
        **_figure(bootstrap.share(blind.right)),
        "macro": _figure(bootstrap.macro(blind.right, types)),
        "by_type": {name: _figure(bootstrap.share(blind.right, types == name)) for name in np.unique(types).tolist()},
    }


def _shuffled(bootstrap: ClipBootstrap, model: Answers, shuffled: Answers | None) -> dict[str, Any] | None:
    if shuffled is None:
        return None
    gain = bootstrap.difference(model.right, shuffled.right)
    return {**_figure(bootstrap.share(shuffled.right)), "difference": _figure(gain, name="value")}


def _baseline(
    baseline: Baseline | None, before: np.ndarray | None, reason: str | None, right: np.ndarray, clips: np.ndarray
) -> dict[str, Any] | None:
    if baseline is None:
        return None
    if before is None:
        return {"name": baseline.name, "not_comparable": reason}
    return compared(baseline, right, before, clips)


def _figure(estimate: Estimate, name: str = "accuracy") -> dict[str, Any]:
    return {
        name: estimate.value,
        "ci95": [estimate.low, estimate.high],
        "n": estimate.n,
        "clips": estimate.clips,
        "interval": estimate.method,
    }


def _by_group(
    bootstrap: ClipBootstrap, right: np.ndarray, others: Mapping[str, np.ndarray], groups: np.ndarray
) -> dict[str, Any]:
    """The model's figure in each group, beside the plain shares of the others."""
    return {
        name: {
            **_figure(bootstrap.share(right, groups == name)),
            **{who: round(float(outcomes[groups == name].mean()), DECIMALS) for who, outcomes in others.items()},
        }
        for name in np.unique(groups).tolist()
    }


def _confusion(found: Confusion) -> dict[str, Any]:
    return {"names": list(found.names), "counts": found.counts.tolist(), "questions": found.questions}


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


def _protocol(tasks: Tasks, parameters: BenchmarkParameters) -> dict[str, Any]:
    return {
        "questions": tasks.table.num_rows,
        "clips": len(pc.unique(tasks.table["clip"])),
        "quads": len(pc.unique(tasks.table["quad"])),
        "bench_sha256": tasks.release["splits"]["bench"]["sha256"],
        "generator_version": tasks.release["generator_version"],
        "parameters": parameters.model_dump(mode="json"),
    }
