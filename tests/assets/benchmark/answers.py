"""Predictions as a report holds them, drawn with a known accuracy."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

BENCH = "b" * 64


def draw_answers(accuracy: float, blind: float = 0.25, clips: int = 60, seed: int = 0, prefix: str = "q") -> pa.Table:
    """Four questions of one quad per clip."""
    generator, n = np.random.default_rng(seed), 4 * clips
    clip = [f"clip {i // 4}" for i in range(n)]
    return pa.table(
        {
            "qa_id": [f"{prefix}{i:05d}" for i in range(n)],
            "clip": clip,
            "type": ["abs_dis"] * n,
            "quad": clip,
            "answer": ["ABCD"[i % 4] for i in range(n)],
            "right": generator.random(n) < accuracy,
            "blind_right": generator.random(n) < blind,
        }
    )


def write_report(folder: Path, answers: pa.Table, checkpoint: str, bench: str = BENCH, **protocol) -> Path:
    """A report folder as the registry reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(answers, folder / "predictions.parquet")
    metrics = {
        "identity": {"checkpoint": checkpoint, "splits": "5" * 32 + ".dir", "code": "1"},
        "protocol": {"bench_sha256": bench, **protocol},
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder
