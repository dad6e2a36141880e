"""`make bench NAME=evaluation`: how well answers are read, how honest intervals and promotions are, what it costs."""

from __future__ import annotations

import sys

from assets.workspace import Workspace
from benchmarks.figure import Figure


def measure(workspace: Workspace) -> dict[str, Figure]:
    """All figures of evaluation; they depend on the code alone, not on what lies in the workspace."""
    from benchmarks.evaluation import extraction, speed, statistics, suites

    _say("published replies")
    found = extraction.figures(workspace)
    _say("published questions")
    found |= suites.figures(workspace)
    _say("intervals and promotions")
    found |= statistics.figures()
    _say("cost")
    return found | speed.figures()


def _say(what: str) -> None:
    print(f"measuring {what}", file=sys.stderr)
