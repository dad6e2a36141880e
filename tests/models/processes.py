"""What became of trainings in processes of their own (see `benchmarks.training.processes`)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.training import processes as trainings


def finish(processes: Sequence, log: Path) -> str:
    """Wait for all; what they said."""
    ended = trainings.finish(processes)
    said = "".join(trainings.log_of(log, rank).read_text() for rank in range(len(processes)))
    assert ended, said
    return said


def wait_for(path: Path, processes: Sequence) -> None:
    """Until a file is there."""
    deadline = time.monotonic() + trainings.SECONDS
    while not path.exists():
        assert all(process.is_alive() for process in processes), f"ended before {path} came"
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.005)
