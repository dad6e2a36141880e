"""The tables of this link: candidates, what was dropped, finished questions and their yield."""

import hashlib
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

GENERATOR_VERSION = "3"
FAMILIES = ("dis", "dir", "ori", "spd", "spd_comp", "dir_pred")
TEMPLATE_TYPES = tuple(f"{kind}_{family}" for kind in ("abs", "rel") for family in FAMILIES)
NON_TEMPLATE = "non_temp"
TYPES = (*TEMPLATE_TYPES, NON_TEMPLATE)
LETTERS = ("A", "B", "C", "D")

_DERIVED = [
    ("clip", pa.string()),
    ("shard", pa.string()),
    ("type", pa.string()),
    ("question", pa.string()),
    ("viewpoint_kind", pa.string()),
    ("viewpoint_subject", pa.string()),
    ("viewpoint_time", pa.float64()),
    ("targets", pa.list_(pa.string())),
    ("interval_start", pa.float64()),
    ("interval_end", pa.float64()),
    ("states", pa.list_(pa.string())),
    ("evidence", pa.string()),
    ("stability", pa.float32()),
    ("visible_until", pa.float64()),
    ("has_video", pa.bool_()),
    ("estimator", pa.string()),
    ("generator_version", pa.string()),
]

CANDIDATES = pa.schema(
    [
        ("qa_id", pa.string()),
        *_DERIVED,
        # What the matching of options needs to know and the finished row does not.
        ("meaning", pa.string()),
        ("tolerated", pa.list_(pa.string())),
        ("viewpoint_role", pa.string()),
        ("target_roles", pa.list_(pa.string())),
        ("target_classes", pa.list_(pa.string())),
        ("option_pool", pa.string()),  # of a non-template question: those of one pool may share options
    ]
)
REFUSALS = pa.schema([("clip", pa.string()), ("reason", pa.string()), ("said", pa.string())])
DROPPED = pa.schema([("clip", pa.string()), ("type", pa.string()), ("reason", pa.string()), ("count", pa.int64())])
QUESTIONS = pa.schema(
    [
        ("qa_id", pa.string()),
        ("clip", pa.string()),
        ("videoID", pa.string()),
        *_DERIVED[1:4],
        ("options", pa.list_(pa.string())),
        ("answer", pa.string()),
        *_DERIVED[4:14],
        ("split", pa.string()),
        ("quad", pa.string()),
        *_DERIVED[14:],
    ]
)
YIELD = pa.schema(
    [
        ("split", pa.string()),
        ("type", pa.string()),
        ("candidates", pa.int64()),
        ("unstable", pa.int64()),
        ("too_long", pa.int64()),
        ("duplicate", pa.int64()),
        ("copied", pa.int64()),
        ("no_quad", pa.int64()),
        ("surplus", pa.int64()),
        ("kept", pa.int64()),
    ]
)


def content_id(*parts: str) -> str:
    """Return 20 hex digits of the SHA-256 of the parts: the identity of a question or a quad."""
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:20]


def content_seed(*parts: str) -> int:
    """Return a 64-bit seed that depends on the parts and on nothing else."""
    return int.from_bytes(hashlib.sha256("|".join(parts).encode()).digest()[:8], "little")


def write_table(rows: list[dict], schema: pa.Schema, path: Path) -> None:
    """Write rows under a fixed schema as Parquet, to a temporary name first, then renamed into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), temporary, compression="zstd")
    os.replace(temporary, path)
