import hashlib
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

OPTIONS = [
    "Becomes larger",
    "Becomes smaller",
    "Keeps nearly constant",
    "(1) Becomes larger (2) Becomes smaller",
]


def clip_of(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


@pytest.fixture
def workspace(tmp_path):
    """Questions about six clips (two a split, the last one without pixels) and the files they refer to."""
    rows = []
    for number in range(6):
        clip, split = clip_of(number), ("train", "val", "bench")[number // 2]
        has_video = number != 5
        for place in range(4):
            rows.append(
                {
                    "qa_id": hashlib.sha256(f"{clip}{place}".encode()).hexdigest()[:20],
                    "clip": clip,
                    "videoID": clip,
                    "shard": "shard-000000",
                    "type": "abs_dis" if number % 2 else "rel_spd",
                    "question": f"Question {place} about scene {number}?",
                    "options": OPTIONS,
                    "answer": "ABCD"[place],
                    "evidence": json.dumps({}),
                    "visible_until": None,
                    "split": split,
                    "quad": f"quad-{number}",
                    "has_video": has_video,
                    "generator_version": "1",
                }
            )
        frames = tmp_path / "videos" / "shard-000000" / "frames"
        geometry = tmp_path / "geometry" / "shard-000000"
        frames.mkdir(parents=True, exist_ok=True)
        geometry.mkdir(parents=True, exist_ok=True)
        if has_video:
            (frames / f"{clip}.safetensors").write_bytes(f"frames {number}".encode())
        (geometry / f"{clip}.safetensors").write_bytes(f"geometry {number}".encode())
    write_questions(tmp_path, rows)
    return tmp_path, rows


def write_questions(root, rows):
    (root / "questions").mkdir(exist_ok=True)
    schema = pa.Table.from_pylist(rows).schema.set(
        [name for name in rows[0]].index("visible_until"), pa.field("visible_until", pa.float64())
    )
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), root / "questions" / "questions.parquet")


@pytest.fixture
def rewrite(workspace):
    """Write the questions again after a change."""
    return lambda rows: write_questions(workspace[0], rows)
