"""`make bench NAME=geometry`: reading, reconstruction against rendered and real truth, records, and the networks."""

from __future__ import annotations

import sys

from assets.workspace import Workspace
from benchmarks.figure import Figure


def measure(workspace: Workspace) -> dict[str, Figure]:
    """All figures of the geometry link; they depend on the code alone, not on what lies in the workspace."""
    # Imported when asked for: whoever needs one of these modules should not load the networks of another.
    from benchmarks.geometry import accuracy, networks, reading, records, truth

    figures = {}
    for module in (accuracy, truth, reading, records, networks):
        print(f"measuring {module.__name__.rpartition('.')[2]}", file=sys.stderr)
        figures |= module.figures()
    return figures
