import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import binomtest

from assets.benchmark.comparison import (
    ComparisonError,
    compare,
    compare_evaluations,
    comparison_lines,
    read_answers,
    read_general,
    read_scores,
    why_not_comparable,
    write_answers,
)
from tests.assets.benchmark.answers import BENCH, draw_answers


def read(tmp_path, table, bench=BENCH):
    pq.write_table(table, tmp_path / "predictions.parquet")
    return read_scores(tmp_path / "predictions.parquet", bench)


def test_answers_are_sorted_by_question_whatever_the_order_of_the_rows(tmp_path):
    table = draw_answers(0.5)
    order = np.random.default_rng(0).permutation(len(table))
    first, second = read(tmp_path, table), read(tmp_path, table.take(order))
    assert why_not_comparable(first, second) is None
    assert (first.right == second.right).all() and (first.blind_right == second.blind_right).all()
    assert len(read_answers(tmp_path / "predictions.parquet", BENCH)) == 240


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda table: table.drop_columns(["right"]), "no table of answers"),
        (lambda table: table.slice(0, 0), "0 rows"),
        (lambda table: pa.concat_tables([table, table.slice(3, 1)]), "'q00003' stands twice"),
        (lambda table: table.set_column(1, "clip", pa.nulls(len(table), pa.string())), "is missing"),
        (lambda table: table.set_column(5, "right", pa.array(["perhaps"] * len(table))), "no table of answers"),
    ],
)
def test_what_is_no_table_of_answers_is_refused_in_one_line(tmp_path, change, says):
    with pytest.raises(ComparisonError, match=says) as raised:
        read(tmp_path, change(draw_answers(0.5)))
    assert "predictions.parquet" in str(raised.value) and "\n" not in str(raised.value)


def test_bytes_that_are_no_parquet_are_refused(tmp_path):
    (tmp_path / "predictions.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(ComparisonError, match="evaluate the checkpoint again"):
        read_scores(tmp_path / "predictions.parquet", BENCH)


def test_other_questions_another_bench_or_other_answers_are_no_comparison(tmp_path):
    table = draw_answers(0.5)
    first = read(tmp_path, table)
    assert "on bench cccccccccccc" in why_not_comparable(first, read(tmp_path, table, "c" * 64))
    assert "of which 200 are the same" in why_not_comparable(first, read(tmp_path, table.slice(40)))
    moved = table.set_column(4, "answer", pa.array(["D", *table["answer"].to_pylist()[1:]]))
    assert "'q00000' has another answer" in why_not_comparable(first, read(tmp_path, moved))


def test_a_comparison_counts_tests_and_sizes():
    first, second = np.ones(400, bool), np.ones(400, bool)
    first[:10], second[10:50] = False, False
    clips = np.arange(400) % 200
    found = compare(first, second, clips)
    assert (found.only_first, found.only_second, found.cohens_g) == (40, 10, pytest.approx(0.3))
    assert found.difference.value == 0.075 and found.difference.low > 0
    # Questions of a clip differ no more alike than others here, so that McNemar's own p value is near.
    assert found.p_value == pytest.approx(binomtest(40, 50).pvalue, rel=5, abs=1e-4)
    back = compare(second, first, clips)
    assert (back.p_worse, back.difference.high) == (found.p_better, -found.difference.low)
    same = compare(first, first, clips)
    assert (same.difference.value, same.cohens_g, same.p_value) == (0, 0, 1)


def test_clips_of_one_mind_are_no_fifty_questions():
    """All that was gained was gained in two clips: counting questions would call it proof."""
    first = np.zeros(400, bool)
    first[:40] = True
    clips = np.arange(400) // 20
    found = compare(first, np.zeros(400, bool), clips)
    assert binomtest(40, 40).pvalue < 1e-9
    assert found.p_better > 0.025 and found.difference.low <= 0


def write_evaluation(folder, scores, blind=False, checkpoint=None, **suite):
    """What `dsr evaluate` writes, of four questions a clip."""
    folder.mkdir()
    n = len(scores)
    head = {"name": "vlm4d", "sha256": BENCH, "version": "1"} | suite
    protocol = {"name": "letters", "blind": blind}
    whose = {"reader": {"name": "m"}, "identity": {"checkpoint": checkpoint}}
    (folder / "metrics.json").write_text(json.dumps({"suite": head, "protocol": protocol, **whose}))
    video = [f"video {i // 4}" for i in range(n)]
    columns = {
        "item_id": [f"q{i:03d}" for i in range(n)],
        "clip": video if blind else [f"{i // 4:064x}" for i in range(n)],
        "video": video,
        "answer": ["A"] * n,
        "rotation": pa.array([0] * n, pa.int32()),
        "status": ["asked"] * n,
        "score": scores,
    }
    table = pa.table(columns)
    # Rows that were not asked, and other rotations, do not count.
    left = table.slice(0, 2).set_column(5, "status", [["missing", "asked"]])
    left = left.set_column(4, "rotation", pa.array([0, 1], pa.int32())).set_column(6, "score", [[None, 0.0]])
    pq.write_table(pa.concat_tables([table, left.cast(table.schema)]), folder / "predictions.parquet")
    return folder


def test_two_evaluations_meet_question_by_question(tmp_path):
    generator = np.random.default_rng(1)
    better, worse = (generator.random(160) < share for share in (0.9, 0.4))
    first = write_evaluation(tmp_path / "a", better.astype(float))
    second = write_evaluation(tmp_path / "b", worse.astype(float), blind=True)
    found = compare_evaluations(first, second)
    plain = compare(better, worse, np.repeat(range(40), 4).astype(str))
    assert (found["difference"], found["p_value"]) == (plain.difference.value, plain.p_value)
    assert (found["n"], found["clips"], found["only_first"]) == (160, 40, int(np.sum(better & ~worse)))
    assert found["ci95"][0] > 0.3 and found["readers"][1]["way"] == "letters, blind"
    lines = comparison_lines(found)
    assert lines[0] == f"m (letters): {better.mean():.1%}" and "(large)" in lines[-1]


def test_numbers_are_compared_by_what_they_are_worth(tmp_path):
    first = write_evaluation(tmp_path / "a", np.full(40, 0.8))
    second = write_evaluation(tmp_path / "b", np.tile([0.6, 0.7], 20))
    found = compare_evaluations(first, second)
    assert found["difference"] == pytest.approx(0.15) and found["only_first"] == 40


def test_different_questions_are_refused_in_one_line(tmp_path):
    first = write_evaluation(tmp_path / "a", np.ones(40))
    others = {
        "is of vlm4d": write_evaluation(tmp_path / "b", np.ones(40), name="dsr_bench"),
        "one was measured on bench": write_evaluation(tmp_path / "c", np.ones(40), sha256="c" * 64),
        "one answered 40 questions, the other 36": write_evaluation(tmp_path / "d", np.ones(36)),
        "no question was asked": write_evaluation(tmp_path / "e", np.full(8, np.nan)),
        "no evaluation can be read": tmp_path / "nowhere",
    }
    for says, other in others.items():
        with pytest.raises(ComparisonError, match=says) as raised:
            compare_evaluations(first, other)
        assert "\n" not in str(raised.value)


def test_general_understanding_is_read_of_the_judged_checkpoint_alone(tmp_path):
    own = write_evaluation(tmp_path / "own", np.tile([1.0, 0.0], 8), checkpoint="c" * 32)
    answers = read_general(own, "c" * 32)
    assert answers.right.sum() == 8 and answers.right.dtype == bool
    write_answers(tmp_path / "kept.parquet", answers)
    kept = read_answers(tmp_path / "kept.parquet", answers.bench)
    assert why_not_comparable(kept, answers) is None and (kept.right == answers.right).all()
    for says, folder in {
        "another model was asked": write_evaluation(tmp_path / "a", np.ones(8)),
        "dddddddddddd was asked": write_evaluation(tmp_path / "b", np.ones(8), checkpoint="d" * 32),
        "without the videos": write_evaluation(tmp_path / "c", np.ones(8), blind=True, checkpoint="c" * 32),
        "neither right nor wrong": write_evaluation(tmp_path / "d", np.full(8, 0.5), checkpoint="c" * 32),
    }.items():
        with pytest.raises(ComparisonError, match=says):
            read_general(folder, "c" * 32)
