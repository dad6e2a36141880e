"""Whether answers are true: derived again from their evidence, a second time from the records, and read back."""

from __future__ import annotations

from pathlib import Path

from assets.questions.candidates import rederive
from assets.questions.official import import_rows
from benchmarks.figure import Figure
from benchmarks.questions import slow
from benchmarks.questions.pool import Pool, logs
from benchmarks.questions.scenes import identity

# The second derivation takes milliseconds a question; every so many of a window's questions get one.
EVERY = 5


def rederived(pool: Pool) -> dict[str, Figure]:
    """Whether the evidence alone gives every answer of a pool again."""
    same = [rederive(row) == row["states"] for row in pool.candidates]
    how = f"{len(same)} candidates derived again from their evidence alone"
    return {"rederived_share": Figure(sum(same) / len(same), 1.0, "higher", "share", how)}


def independent(truth: Path, pool: Pool) -> dict[str, Figure]:
    """Whether plain loops written from the paper say the same of real tracks."""
    records = {identity(window): record for _, window, record in logs(truth)}
    rows = [row for row in pool.candidates[::EVERY] if row["type"] != "non_temp"]
    wrong = [row["question"] for row in rows if slow.states(records[row["clip"]], row) != row["states"]]
    how = f"{len(rows)} answers of Argoverse 2 and KITTI against plain loops; disagreeing: {wrong[:3] or 'none'}"
    return {"independent_agreement": Figure(1 - len(wrong) / len(rows), 0.999, "higher", "share", how)}


def official(benchmarks: Path) -> dict[str, Figure]:
    """How many rows of the published benchmark are understood whole."""
    imported = import_rows(benchmarks / "dsr" / "benchmark_sample.parquet")
    read = sum(not parts.unread for parts in imported.parts)
    how = f"of {len(imported.rows) + len(imported.refused)} real DSR-Bench rows, every part read"
    return {"official_rows_parsed": Figure(read, 46, "higher", "rows", how)}
