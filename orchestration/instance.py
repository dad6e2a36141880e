"""The Dagster instance of a workspace: opened, told of every shard, and cleared of runs that a crash left open."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import dagster as dg
import psutil

from assets.link import SHARDS
from assets.workspace import Workspace

OWNER_TAG = "dsr/process"


def this_process() -> str:
    """Host, process id and start of this process: a process id alone is another host's, or used again."""
    return f"{socket.gethostname()}:{os.getpid()}:{psutil.Process().create_time():.0f}"


def prepare_environment(workspace: Workspace) -> None:
    """Point Dagster and MLflow at the workspace, unless the environment already points elsewhere."""
    home = Path(os.environ.setdefault("DAGSTER_HOME", str(workspace.root / ".dagster")))
    home.mkdir(parents=True, exist_ok=True)
    if not (home / "dagster.yaml").exists():
        shutil.copy(Path(__file__).with_name("dagster.yaml"), home / "dagster.yaml")
    os.environ["DSR_WORKSPACE"] = str(workspace.root)
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("DVC_NO_ANALYTICS", "true")


def open_instance(workspace: Workspace) -> dg.DagsterInstance:
    """The instance, with a partition for every shard of the ledger."""
    prepare_environment(workspace)
    instance = dg.DagsterInstance.get()
    known = set(instance.get_dynamic_partitions(SHARDS.name))
    if missing := [shard for shard in workspace.shards() if shard not in known]:
        instance.add_dynamic_partitions(SHARDS.name, missing)
    _fail_abandoned_runs(instance)
    return instance


def _fail_abandoned_runs(instance: dg.DagsterInstance) -> None:
    """A command that was killed leaves its run open and its slots of a pool taken; no daemon watches over either."""
    unfinished = dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.STARTING])
    for run in instance.get_runs(unfinished):
        if _is_gone(run.tags.get(OWNER_TAG)):
            instance.report_run_failed(run, "the command that ran this was killed")
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)


def _is_gone(owner: str | None) -> bool:
    """Whether the process that a run names was one of this host and has ended; other hosts are not judged from here."""
    host, _, rest = (owner or "").partition(":")
    if host != socket.gethostname():
        return False
    pid, _, started = rest.partition(":")
    try:
        return f"{psutil.Process(int(pid)).create_time():.0f}" != started
    except psutil.NoSuchProcess:
        return True
