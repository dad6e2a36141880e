"""Trainings in processes of their own, forked from one that has imported everything, so that each starts at once."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["models.train"])


def start(function: Callable[..., int | None], arguments: Sequence[Any], log: Path, processes: int = 1) -> list:
    """Run `function(*arguments)` in one process, or in several that find each other as torchrun's do."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(processes):
        environment = cluster(rank, processes, port) if processes > 1 else {}
        started.append(SERVER.Process(target=run, args=(function, arguments, log.with_suffix(f".{rank}"), environment)))
        started[-1].start()
    return started


def cluster(rank: int, processes: int, port: int) -> dict[str, str]:
    """What torchrun tells its processes."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    return {name: str(value) for name, value in {**names, **place}.items()}


def run(function: Callable, arguments: Sequence[Any], log: Path, environment: dict[str, str]) -> None:
    """In the process itself."""
    for name in [name for name in os.environ if name.startswith("MLFLOW")]:
        del os.environ[name]
    os.environ.update(environment)
    sys.stdout = sys.stderr = log.open("w", buffering=1)
    sys.exit(function(*arguments))


def finish(processes: Sequence, log: Path) -> str:
    """Wait for all; what they said."""
    for process in processes:
        process.join(120)
    said = "".join(log.with_suffix(f".{rank}").read_text() for rank in range(len(processes)))
    assert all(process.exitcode is not None for process in processes), said
    return said


def wait_for(path: Path, processes: Sequence) -> None:
    """Until a file is there."""
    deadline = time.monotonic() + 120
    while not path.exists():
        assert all(process.is_alive() for process in processes), f"ended before {path} came"
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.005)
