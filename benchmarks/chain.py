"""What the engine around the chain costs, on the workspace as it stands after `make run`."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from assets.workspace import Workspace
from benchmarks.figure import Figure


def measure(workspace: Workspace) -> dict[str, Figure]:
    """Figures of a workspace whose chain is up to date."""
    dsr = str(Path(sys.executable).parent / "dsr")
    subprocess.run([dsr, "run"], cwd=workspace.root, check=True, stdout=subprocess.DEVNULL)
    started = time.monotonic()
    subprocess.run([dsr, "run"], cwd=workspace.root, check=True, stdout=subprocess.DEVNULL)
    again = time.monotonic() - started
    dvc = str(Path(sys.executable).parent / "dvc")
    started = time.monotonic()
    status = subprocess.run([dvc, "status", "--json"], cwd=workspace.root, check=True, capture_output=True, text=True)
    dvc_status = time.monotonic() - started
    audit = subprocess.run([dsr, "audit"], cwd=workspace.root, capture_output=True, text=True)
    places = [line for line in audit.stdout.splitlines() if line.startswith(("ok", "GAP"))]
    gaps = sum(line.startswith("GAP") for line in places)
    if not places or bool(gaps) != bool(audit.returncode):
        raise RuntimeError(f"`dsr audit` did not answer: {audit.stderr.strip()[-300:]}")
    return {
        "second_run_seconds": Figure(again, 20, "lower", "s", "`dsr run` with nothing changed"),
        "second_run_over_dvc": Figure(again / dvc_status, None, "lower", "ratio", "the same over `dvc status`"),
        "changed_stages": Figure(len(json.loads(status.stdout)), 0, "lower", "stages", "`dvc status` after a run"),
        "identity_gaps": Figure(gaps, 0, "lower", "places", "`dsr audit`: DVC, Dagster, checkpoint, MLflow, report"),
    }
