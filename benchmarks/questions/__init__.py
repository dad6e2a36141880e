"""`make bench NAME=questions`: what can be answered blind, what is true, and what it costs."""

from __future__ import annotations

import sys
from pathlib import Path

from assets.questions.parameters import QuestionParameters
from assets.videos.parameters import SampleWorldParameters
from assets.videos.split import SplitParameters
from assets.workspace import Workspace
from benchmarks.figure import Figure


def measure(workspace: Workspace) -> dict[str, Figure]:
    """All figures of the questions link; they depend on the code alone, not on what lies in the workspace."""
    from benchmarks.questions import blindness, cost, pool, truth

    world, parameters = SampleWorldParameters(), QuestionParameters()
    _say("candidates of the sample world")
    drawn = pool.sample_world(world, parameters, SplitParameters())
    figures = truth.rederived(drawn)
    _say("blind readers")
    figures |= blindness.of_sample_world(drawn)
    data = workspace.root.parent / "shared" / "data"
    if data.is_dir():
        _say("real logs")
        real = pool.real(data / "truth", parameters)
        figures |= blindness.of_real_logs(real) | truth.independent(data / "truth", real)
        figures |= truth.official(data / "benchmarks")
    else:
        figures |= _missing(data)
    _say("cost")
    return figures | cost.figures(world)


def _missing(data: Path) -> dict[str, Figure]:
    how = f"no real data beside the repository ({data.parent.name}/{data.name})"
    return {
        "blind_accuracy_real": Figure(None, 0.28, "lower", "share", how),
        "yield_real": Figure(None, None, "higher", "share", how),
        "independent_agreement": Figure(None, 0.999, "higher", "share", how),
        "official_rows_parsed": Figure(None, 46, "higher", "rows", how),
    }


def _say(what: str) -> None:
    print(f"measuring {what}", file=sys.stderr)
