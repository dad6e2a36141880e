"""`python -m benchmarks NAME`: measure, write reports/benchmarks/NAME.json, print the same as a table.

A figure is a ratio measured in one run wherever it can be, since machines differ; a figure that cannot be measured here
has the value null and says why. Exit code 1 when a figure misses its bound, 2 for an unknown name.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import platform
import sys

import benchmarks
from assets.tracking import git_commit
from assets.workspace import Workspace
from benchmarks.figure import Figure


def main() -> int:
    """Run the benchmark that the command line names."""
    names = sorted(module.name for module in pkgutil.iter_modules(benchmarks.__path__) if module.name not in RESERVED)
    name = sys.argv[1] if len(sys.argv) == 2 else ""
    if name not in names:
        print(f"no benchmark {name!r}; choose one of {', '.join(names)}", file=sys.stderr)
        return 2
    workspace = Workspace.find()
    figures = importlib.import_module(f"benchmarks.{name}").measure(workspace)
    _write(workspace, name, figures)
    for figure_name, figure in figures.items():
        print(figure.line(figure_name))
    return int(any(figure.missed for figure in figures.values()))


RESERVED = {"__main__", "figure"}


def _write(workspace: Workspace, name: str, figures: dict[str, Figure]) -> None:
    folder = workspace.root / "reports" / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    machine = {"processor": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
    page = {
        "figures": {figure_name: figure.as_dict() for figure_name, figure in figures.items()},
        "machine": machine,
        "commit": git_commit(workspace.root),
    }
    partial = folder / f"{name}.json.partial"
    partial.write_text(json.dumps(page, indent=1, sort_keys=True) + "\n")
    os.replace(partial, folder / f"{name}.json")


if __name__ == "__main__":
    sys.exit(main())
