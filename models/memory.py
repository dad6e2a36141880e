"""Memory that a training frees and asks for again at every step."""

from __future__ import annotations

import ctypes

# glibc's names for what mallopt sets (malloc.h).
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3
KEPT, AHEAD = 2**31 - 1, 64 * 2**20


def keep_freed_memory() -> bool:
    """Let the process keep what it frees, which on CPUs every step of a training takes anew.

    By default glibc gives the large buffers of activations back to the system, which has to clear the pages before it
    hands them out again: a quarter of the geometry module's step (`python -m benchmarks training`, row
    `kept_memory_speedup`).

    Returns:
        Whether the C library is one that can.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    settings = ((MMAP_THRESHOLD, KEPT), (TRIM_THRESHOLD, KEPT), (TOP_PAD, AHEAD))
    return mallopt is not None and all([mallopt(name, value) == 1 for name, value in settings])
