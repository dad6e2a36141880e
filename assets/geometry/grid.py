"""Grids of cells over a frame: values are picked under the centre of a cell, never mixed across an edge."""

from __future__ import annotations

import numpy as np


def sample_cells(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Read the last two axes before any channel of (T, H, W, ...) maps at the centres of a (height, width) grid.

    Cell (i, j) reads pixel ``(floor((i + .5) H / height), floor((j + .5) W / width))``: values are picked, never mixed.
    """
    rows = cell_pixels(frames.shape[1], height)
    columns = cell_pixels(frames.shape[2], width)
    return frames[:, rows[:, None], columns]


def cell_pixels(pixels: int, cells: int) -> np.ndarray:
    """(cells,) index of the pixel under each cell's centre along one axis."""
    return np.floor((np.arange(cells) + 0.5) * pixels / cells).astype(int)


def grid_size(height: int, width: int, side: int) -> tuple[int, int]:
    """(rows, columns) of a grid over an image, longest side ≤ ``side``, never finer than pixels."""
    scale = min(1.0, side / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def block_means(values: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """(rows, columns) means of an (H, W) map over the blocks of a grid; a pixel belongs where its centre lies."""
    upper, left = membership(values.shape[0], rows), membership(values.shape[1], columns)
    return upper.T @ values @ left / np.maximum(np.outer(upper.sum(0), left.sum(0)), 1)


def membership(fine: int, coarse: int) -> np.ndarray:
    """(fine, coarse) 0/1: which coarse cell the centre of each fine one falls into."""
    return np.eye(coarse)[coarse_index(fine, coarse)]


def coarse_index(fine: int, coarse: int) -> np.ndarray:
    """(fine,) the coarse cell that the centre of each fine one falls into."""
    return np.floor((np.arange(fine) + 0.5) * coarse / fine).astype(int)
