"""What it saves that a training keeps the memory it frees (see `models.memory`)."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from functools import partial

import torch

from benchmarks.figure import Figure
from benchmarks.training.prefix import MANY_SHORT
from benchmarks.training.steps import shared_losses, update
from benchmarks.training.workload import model_of, random_tree
from models.memory import keep_freed_memory

CLIPS, STEPS, TURNS, RATE = 4, 5, 3, 1e-5
THREADS = 2


def figures(turns: int = TURNS, steps: int = STEPS, clips: int = CLIPS) -> dict[str, Figure]:
    """Steps a second with kept memory over those without, each in processes of its own, in turn."""
    seconds: dict[str, list[float]] = {"kept": [], "returned": []}
    for _ in range(turns):
        for how, found in seconds.items():
            command = [sys.executable, "-m", __name__, how, str(steps), str(clips)]
            said = subprocess.run(command, capture_output=True, text=True, check=True)
            found.append(float(said.stdout))
    kept, returned = (statistics.median(found) for found in seconds.values())
    how = (
        f"{returned:.3f} s a step as the C library does, {kept:.3f} s with kept memory; {clips} clips with "
        f"{MANY_SHORT.questions} questions each, {THREADS} CPU threads, medians of {turns} processes in turn, "
        f"{steps} steps each"
    )
    return {"kept_memory_speedup": Figure(returned / kept, None, "higher", "ratio", how)}


def seconds_of_a_step(steps: int, clips: int) -> float:
    """Median of a few, after one that does not count."""
    torch.set_num_threads(THREADS)
    model = model_of(MANY_SHORT)
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=RATE)
    step = partial(update, shared_losses(model, [random_tree(MANY_SHORT, seed) for seed in range(clips)]), optimizer)
    step()
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


if __name__ == "__main__":
    if sys.argv[1] == "kept":
        keep_freed_memory()
    print(seconds_of_a_step(*map(int, sys.argv[2:])))
