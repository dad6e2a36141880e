"""What it saves that a training keeps the memory it frees (see `models.memory`)."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Sequence
from functools import partial

import torch

from benchmarks.figure import Figure
from benchmarks.training.clock import interleaved
from benchmarks.training.steps import optimizer_of, update
from models.configuration import geometry_config
from models.geometric_qwen import GeometricQwen
from models.gsm import CELL_CHANNELS
from models.memory import keep_freed_memory
from models.parameters import TrainingParameters
from models.prompt import SPECIAL_TOKENS
from models.tiny import tiny_config

LAPTOP = TrainingParameters()
CLIPS, QUESTIONS, WORDS = LAPTOP.clips_per_batch, LAPTOP.questions_per_clip, 40
PRIOR = (16, 12, 16)
"""Slots of time, rows and columns of a sample clip's cells."""
STEPS, TURNS = 10, 5
IDS = {**{token: place for place, token in enumerate(SPECIAL_TOKENS)}, "vocabulary": 512}


def figures() -> dict[str, Figure]:
    """Steps a second with kept memory over those without, each in processes of its own, in turn."""
    turns = [(in_process("kept"), in_process("returned")) for _ in range(TURNS)]
    kept, returned = zip(*turns, strict=True)
    return {"kept_memory_speedup": speedup(kept, returned)}


def speedup(kept: Sequence[float], returned: Sequence[float]) -> Figure:
    """From seconds a step of several processes."""
    fast, slow = statistics.median(kept), statistics.median(returned)
    how = (
        f"{slow:.3f} s a step as the C library does, {fast:.3f} s with kept memory; the geometry "
        f"module of the laptop profile alone, {CLIPS} clips with {QUESTIONS} questions each, {LAPTOP.threads} CPU "
        f"threads, medians of {len(kept)} processes in turn, {STEPS} steps each"
    )
    return Figure(slow / fast, None, "higher", "ratio", how)


def in_process(how: str, steps: int = STEPS) -> float:
    """Seconds of a step in a process that has its memory "kept" or "returned"."""
    command = [sys.executable, "-m", __name__, how, str(steps)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def seconds_of_a_step(steps: int) -> float:
    """Median of a few, after one that does not count."""
    torch.set_num_threads(LAPTOP.threads)
    torch.manual_seed(0)
    model = GeometricQwen(tiny_config(LAPTOP.tiny, IDS, geometry_config(LAPTOP.geometry, CELL_CHANNELS)))
    width, questions = model.config.text_config.hidden_size, CLIPS * QUESTIONS
    read = {
        "question": torch.randn(questions, WORDS, width),
        "question_visible": torch.ones(questions, WORDS, dtype=torch.bool),
        "features": torch.randn(CLIPS, *PRIOR, CELL_CHANNELS),
        "grid": torch.tensor(PRIOR).expand(CLIPS, -1),
        "times": torch.arange(PRIOR[0]).float().expand(CLIPS, -1),
        "owner": torch.arange(CLIPS).repeat_interleave(QUESTIONS),
    }

    def loss() -> torch.Tensor:
        selection = model.gsm(**read, with_looks=True)
        # Guidance asks where heads look, too; the last place, nobody, is one that all of them see.
        return selection.tokens.square().mean() - selection.looks.cells[..., -1].mean()

    step = partial(update, [loss], optimizer_of(model))
    step()
    return interleaved({"step": (model, step)}, steps)["step"].whole


if __name__ == "__main__":
    if sys.argv[1] == "kept":
        keep_freed_memory()
    print(seconds_of_a_step(int(sys.argv[2])))
