"""Progress of long steps: what is done, and an estimate of what is left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

Progress = Callable[[int, int, str], None]

SECONDS_BETWEEN_LINES = 3.0


def console_progress(step: str) -> Progress:
    """A `progress(done, total, what)` that writes a line to standard error, at most every few seconds and at the end.

    A total of 0 says that nobody knows it yet. Lines, not a bar that redraws itself: they read the same in a terminal,
    in a log file and in Dagster's log view.
    """
    started = time.monotonic()
    last = started

    def report(done: int, total: int, what: str) -> None:
        nonlocal last
        now = time.monotonic()
        if done != total and now - last < SECONDS_BETWEEN_LINES:
            return
        last = now
        if not total:
            print(f"  {step}: {done} {what}", file=sys.stderr, flush=True)
            return
        left = (now - started) / done * (total - done) if done else float("nan")
        estimate = f"about {left:.0f} s left" if done < total else f"done in {now - started:.0f} s"
        print(f"  {step}: {done}/{total} {what}, {estimate}", file=sys.stderr, flush=True)

    return report
