"""Figures of the networks behind `foundation`: π³ against a second implementation, its memory and its time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.figure import Figure
from benchmarks.geometry import pi3_loops
from models.pi3 import Pi3, Pi3Config

TINY = Pi3Config(width=32, heads=2, encoder_depth=2, decoder_depth=2, task_depth=2, camera_width=24, position_grid=5)
FRAMES = 32
# 16:9 within 255,000 pixels, as `image_size(1080, 1920)` gives it.
HEIGHT, WIDTH = 378, 672
REPEATS = 3


def figures() -> dict[str, Figure]:
    """`pi3_parity` anywhere; `pi3_peak_gb` and `pi3_seconds` where there is a GPU."""
    loops = "largest difference to a float64 loop implementation over an output's largest value, tiny size"
    return {"pi3_parity": Figure(parity(), 1e-4, "lower", "ratio", loops), **_at_full_size()}


def parity(
    reconstruct: Callable[[pi3_loops.Arrays, np.ndarray, Pi3Config], dict[str, np.ndarray]] = pi3_loops.reconstruct,
    config: Pi3Config = TINY,
    seed: int = 0,
) -> float:
    """The largest difference between `models.pi3` and another implementation, relative to an output's largest value.

    Random weights in the published layout, three random frames of 3×4 patches; every output is compared that the
    other implementation gives.
    """
    weights = pi3_loops.random_weights(config, seed)
    images = np.random.default_rng(seed).random((3, 3, 42, 56), np.float32)
    model = Pi3(config).eval()
    model.load_state_dict({name: torch.from_numpy(values) for name, values in weights.items()})
    with torch.inference_mode():
        ours = model(torch.from_numpy(images)[None])
    theirs = reconstruct(weights, images, config)
    return max(
        float(np.abs(getattr(ours, name)[0].numpy() - values).max() / np.abs(values).max())
        for name, values in theirs.items()
    )


def _at_full_size() -> dict[str, Figure]:
    what = f"published size, random weights, bf16, {FRAMES} frames of {HEIGHT}x{WIDTH}"
    if not torch.cuda.is_available():
        how = f"no GPU here; `make bench NAME=geometry` on a machine with one measures it: {what}"
        peak_gb = seconds = None
    else:
        peak_gb, seconds = _measured()
        how = f"{what}, on {torch.cuda.get_device_name()}"
    return {
        "pi3_peak_gb": Figure(peak_gb, None, "lower", "GB", f"weights included; {how}"),
        "pi3_seconds": Figure(seconds, None, "lower", "s", f"median of {REPEATS}; {how}"),
    }


def _measured() -> tuple[float, float]:
    """Peak memory (GB) and median time (s) of a pass on the GPU, after one pass to warm up."""
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = Pi3().compute_in(torch.bfloat16).eval()
        images = torch.rand(1, FRAMES, 3, HEIGHT, WIDTH)
    seconds = []
    with torch.inference_mode():
        model(images)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        for _ in range(REPEATS):
            started = time.monotonic()
            model(images)
            torch.cuda.synchronize()
            seconds.append(time.monotonic() - started)
    return torch.cuda.max_memory_allocated() / 1e9, statistics.median(seconds)
