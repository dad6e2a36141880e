"""`make bench NAME=training`: what is learned, equality with plain forms and published code, cost, exact resuming."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from benchmarks.figure import Figure

if TYPE_CHECKING:
    # For its type alone: a GPU box without the rest of the project runs `benchmarks.training.gpu`.
    from assets.workspace import Workspace


def measure(workspace: Workspace) -> dict[str, Figure]:
    """All figures of the training link."""
    from benchmarks.training import cost, gpu, learning, memory, parity, prefix, resume

    figures = {}
    for what, part in (
        ("shared prefixes", prefix.figures),
        ("kept memory", memory.figures),
        ("the geometry module's cost", cost.figures),
        ("published parity", parity.figures),
        ("resuming", resume.figures),
        ("the GPU", gpu.figures),
        ("learning", lambda: learning.figures(workspace)),
    ):
        _say(what)
        figures |= part()
    return figures


def _say(what: str) -> None:
    print(f"measuring {what}", file=sys.stderr)
