"""Trainings in processes of their own, forked from one that has imported everything, so that each starts at once."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

SERVER = multiprocessing.get_context("forkserver")
SECONDS = 120


def start(function: Callable[..., int | None], arguments: Sequence[Any], log: Path, processes: int = 1) -> list:
    """Run `function(*arguments)` in one process, or in several that find each other as torchrun's do.

    Args:
        function: importable, with the exit status or None for its result.
        arguments: picklable.
        log: what process k says is added to this file with suffix k.
        processes: how many.

    Returns:
        The processes, which end with this one.
    """
    SERVER.set_forkserver_preload(["models.train"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(processes):
        environment = _cluster(rank, processes, port) if processes > 1 else {}
        places = (function, arguments, log_of(log, rank), environment)
        started.append(SERVER.Process(target=_run, args=places, daemon=True))
        started[-1].start()
    return started


def log_of(log: Path, rank: int) -> Path:
    """The file of what one of the processes says."""
    return log.with_suffix(f".{rank}")


def finish(processes: Sequence) -> bool:
    """Wait for all, and kill what takes too long; whether all ended by themselves."""
    for process in processes:
        process.join(SECONDS)
    late = [process for process in processes if process.is_alive()]
    for process in late:
        process.kill()
        process.join()
    return not late


def _cluster(rank: int, processes: int, port: int) -> dict[str, str]:
    """What torchrun tells its processes."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "training"}
    return {name: str(value) for name, value in {**names, **place}.items()}


def _run(function: Callable, arguments: Sequence[Any], log: Path, environment: dict[str, str]) -> None:
    """In the process itself."""
    for name in [name for name in os.environ if name.startswith("MLFLOW")]:
        del os.environ[name]
    os.environ.update(environment)
    sys.stdout = sys.stderr = log.open("a", buffering=1)
    sys.exit(function(*arguments))
