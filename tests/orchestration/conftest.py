"""One finished tiny workspace for the tests that only look at it, and the command line as users call it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import make_workspace

BIN = Path(sys.executable).parent


def environment(workspace: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("DAGSTER_", "MLFLOW_", "DSR_", "DVC_"))}
    return {**kept, "PATH": f"{BIN}:{kept['PATH']}", "PYTHONPATH": str(workspace), "PYTHONDONTWRITEBYTECODE": "1"}


def call(workspace: Path, *command: str, timeout: float = 280) -> subprocess.CompletedProcess:
    """Run a command in a workspace, on the workspace's own copy of the code."""
    return subprocess.run(
        [str(BIN / command[0]), *command[1:]],
        cwd=workspace,
        env=environment(workspace),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """A tiny workspace after `dsr run`."""
    workspace = make_workspace(tmp_path_factory.mktemp("finished") / "workspace")
    done = call(workspace, "dsr", "run")
    assert done.returncode == 0, done.stderr[-4000:]
    return workspace
