"""From shards of candidates to the tables of questions and of their yield."""

import pyarrow.parquet as pq
import pytest

from assets.questions.build import build_questions
from assets.questions.candidates import rederive
from assets.questions.row import CANDIDATES, DROPPED, QUESTIONS, TYPES, YIELD, write_table
from assets.videos.split import SplitParameters, split_of

SPLIT = SplitParameters(train=0.6, val=0.0, bench=0.4)


@pytest.fixture(scope="module")
def shards(derived, tmp_path_factory):
    """The synthetic clips' candidates, spread over two shards."""
    root = tmp_path_factory.mktemp("candidates")
    for number in range(2):
        part = derived[number::2]
        folder = root / f"shard-{number:06d}"
        write_table([row for clip in part for row in clip.rows], CANDIDATES, folder / "candidates.parquet")
        write_table([row for clip in part for row in clip.dropped], DROPPED, folder / "dropped.parquet")
    return sorted(root.iterdir())


@pytest.fixture(scope="module")
def built(shards, parameters, tmp_path_factory):
    out = tmp_path_factory.mktemp("questions")
    return out, build_questions(shards, out, parameters, SPLIT)


def test_the_same_candidates_make_the_same_bytes_in_any_order(shards, built, parameters, tmp_path):
    build_questions(shards[::-1], tmp_path, parameters, SPLIT)
    for name in ("questions.parquet", "yield.parquet"):
        assert (tmp_path / name).read_bytes() == (built[0] / name).read_bytes()


def test_questions_have_the_contracts_columns(built):
    table = pq.read_table(built[0] / "questions.parquet")
    assert table.schema.equals(QUESTIONS)
    rows = table.to_pylist()
    assert len(rows) == built[1]["questions"] > 400
    assert len({row["qa_id"] for row in rows}) == len(rows)
    assert len({(row["clip"], row["question"]) for row in rows}) == len(rows)
    for row in rows:
        assert row["split"] == split_of(row["clip"], SPLIT)
        assert row["videoID"] == row["clip"]
        assert rederive(row) == row["states"]


def test_the_yield_adds_up(built):
    table = pq.read_table(built[0] / "yield.parquet")
    assert table.schema.equals(YIELD)
    rows = table.to_pylist()
    assert {row["type"] for row in rows} == set(TYPES)
    for row in rows:
        lost = sum(row[reason] for reason in ("unstable", "too_long", "duplicate", "copied", "no_quad", "surplus"))
        assert row["candidates"] == lost + row["kept"]
        assert min(row[name] for name in row if name not in ("split", "type")) >= 0
    assert sum(row["kept"] for row in rows) == built[1]["questions"]


def test_nothing_is_asked_about_a_copy_of_another_clip(shards, parameters, tmp_path):
    first, second = (pq.read_table(shard / "candidates.parquet")["clip"][0].as_py() for shard in shards)
    build_questions(shards, tmp_path, parameters, SPLIT, {second: first})
    asked = set(pq.read_table(tmp_path / "questions.parquet")["clip"].to_pylist())
    assert first in asked and second not in asked
    assert sum(row["copied"] for row in pq.read_table(tmp_path / "yield.parquet").to_pylist()) > 0


def test_no_candidates_make_empty_tables(tmp_path, parameters):
    write_table([], CANDIDATES, tmp_path / "in" / "candidates.parquet")
    write_table([], DROPPED, tmp_path / "in" / "dropped.parquet")
    assert build_questions([tmp_path / "in"], tmp_path, parameters, SPLIT) == {"candidates": 0, "questions": 0}
    assert pq.read_table(tmp_path / "questions.parquet").schema.equals(QUESTIONS)
