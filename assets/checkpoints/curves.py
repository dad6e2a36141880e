"""The learning curves of a training as a picture: a column for each stage, its loss above its accuracy."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Columns of curves.csv that are shares of questions, by what the picture calls them.
SHARES = {"accuracy": "training", "validation": "validation"}
CHANCE = 0.25
COLUMN_WIDTH, HEIGHT, DOTS_PER_INCH = 3.2, 4.2, 80


def learning_curves(curves: Path) -> bytes:
    """PNG of a checkpoint's `curves.csv`."""
    buffer = io.BytesIO()
    draw(pd.read_csv(curves)).savefig(buffer, format="png")
    return buffer.getvalue()


def draw(rows: pd.DataFrame) -> Figure:
    """The figure: losses in the upper row; in the lower the share that was right, in stages that give answers.

    Args:
        rows: of `curves.csv`, at least step, stage, loss, accuracy and validation.
    """
    from matplotlib.figure import Figure

    stages = list(dict.fromkeys(rows["stage"]))
    figure = Figure(figsize=(COLUMN_WIDTH * len(stages), HEIGHT), dpi=DOTS_PER_INCH, layout="constrained")
    for stage, (upper, lower) in zip(stages, figure.subplots(2, len(stages), squeeze=False).T, strict=True):
        own = rows[rows["stage"] == stage]
        upper.set(title=stage, ylabel="loss")
        _plot(upper, own, "loss", "loss")
        shown = [column for column in SHARES if own[column].notna().any()]
        for column in shown:
            _plot(lower, own, column, SHARES[column])
        if not shown:
            lower.set_axis_off()
            continue
        lower.axhline(CHANCE, label="chance", color="grey", linewidth=1, linestyle=":")
        lower.set(ylim=(0, 1), ylabel="accuracy")
        lower.legend(frameon=False)
    figure.supxlabel("step")
    return figure


def _plot(axes: Axes, rows: pd.DataFrame, column: str, label: str) -> None:
    points = rows[["step", column]].dropna()
    # A line through one or two points is hardly seen.
    axes.plot(points["step"], points[column], label=label, linewidth=1, marker="." if len(points) < 3 else "")
