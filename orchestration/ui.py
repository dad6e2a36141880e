"""The pages: Dagster's webserver and daemon, and MLflow's server beside them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from assets.tracking import Tracking
from assets.workspace import Workspace
from orchestration.instance import open_instance


def serve(workspace: Workspace, port: int, mlflow_port: int) -> int:
    """Run both servers until one ends or the user interrupts; on the loopback interface only.

    Returns:
        The exit status of the server that ended first, 0 after an interrupt.
    """
    open_instance(workspace)
    tracking = Tracking(workspace.root)
    tracking.prepare()
    tools = Path(sys.executable).parent
    dagster = f"dagster dev -m orchestration.definitions -h 127.0.0.1 -p {port}".split()
    mlflow = f"mlflow server --host 127.0.0.1 --port {mlflow_port} --workers 1 --backend-store-uri".split()
    commands = [[str(tools / dagster[0]), *dagster[1:]], [str(tools / mlflow[0]), *mlflow[1:], tracking.uri]]
    # The tracking server needs none of MLflow's background workers, which serve judges that this project has none of.
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    print(
        f"Dagster http://127.0.0.1:{port}   MLflow http://127.0.0.1:{mlflow_port}   (Ctrl-C stops both)",
        flush=True,
    )
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
            server.wait()
