"""The pages: Dagster's webserver and daemon, MLflow's server and the project's own pages beside them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from assets.geometry.scene_page import PORT
from assets.tracking import Tracking
from assets.workspace import Workspace
from orchestration.instance import open_instance

PATIENCE = 20
"""Seconds a server may take to stop."""


def serve(workspace: Workspace, port: int, mlflow_port: int, pages_port: int | None = None) -> int:
    """Run the servers until one ends or the user interrupts; on the loopback interface only.

    Args:
        workspace: whose pages.
        port: of Dagster's pages.
        mlflow_port: of MLflow's.
        pages_port: of the project's own; None for that which links in metadata lead to.

    Returns:
        The exit status of the server that ended first, 0 after an interrupt.
    """
    pages_port = pages_port or PORT
    open_instance(workspace)
    tracking = Tracking(workspace.root)
    tracking.prepare()
    tools = Path(sys.executable).parent
    dagster = f"dagster dev -m orchestration.definitions -h 127.0.0.1 -p {port}".split()
    mlflow = f"mlflow server --host 127.0.0.1 --port {mlflow_port} --workers 1 --backend-store-uri".split()
    commands = [
        [str(tools / dagster[0]), *dagster[1:]],
        [str(tools / mlflow[0]), *mlflow[1:], tracking.uri],
        [sys.executable, "-m", "orchestration.pages", str(pages_port)],
    ]
    # The tracking server needs none of MLflow's background workers, which serve judges that this project has none of.
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    print(
        f"Dagster http://127.0.0.1:{port}   MLflow http://127.0.0.1:{mlflow_port}   "
        f"scenes http://127.0.0.1:{pages_port}   (Ctrl-C stops all)",
        flush=True,
    )
    # A script's background job ignores SIGINT, and Dagster's servers, which inherit that, then ignore SIGTERM as well.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    servers = [
        subprocess.Popen(command, cwd=workspace.root, env=environment, start_new_session=True) for command in commands
    ]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _, status = os.wait()
        return os.waitstatus_to_exitcode(status)
    except KeyboardInterrupt:
        return 0
    finally:
        for server in servers:
            try:
                os.killpg(server.pid, signal.SIGTERM)
            except ProcessLookupError:
                continue
        for server in servers:
            _wait(server)


def _wait(server: subprocess.Popen) -> None:
    """Until a server that was told to stop has ended; one that does not is killed with all that it started."""
    try:
        server.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
