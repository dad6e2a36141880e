import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from assets.benchmark.confusion import OTHERS, letter_confusion, state_confusion
from assets.benchmark.controls import strangers


def quad(states, kind="abs_dis", name="q"):
    options = [" then ".join(part) for part in states]
    return [
        {"type": kind, "quad": name, "options": options, "answer": "ABCD"[i], "states": part}
        for i, part in enumerate(states)
    ]


def test_rows_are_what_is_true_and_columns_what_was_said():
    found = letter_confusion(np.array([0, 0, 3]), np.array([0, 1, 2]), tuple("ABCD"))
    assert found.counts.tolist() == [[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0]]


def test_states_are_compared_one_by_one_where_as_many_were_said():
    rows = quad([["up", "down"], ["up", "up"], ["down"], ["same", "down"]])
    found = state_confusion(pa.Table.from_pylist(rows), np.array([1, 1, 0, 0]))
    (table,) = found.values()
    counts = {
        (true, said): int(table.counts[i, j])
        for i, true in enumerate(table.names)
        for j, said in enumerate(table.names)
        if table.counts[i, j]
    }
    # The third question's answer is longer than the truth and does not count.
    assert counts == {("up", "up"): 1 + 2, ("down", "up"): 1, ("same", "up"): 1, ("down", "down"): 1}
    assert table.questions == 3 and list(found) == ["distance and speed"]


def test_states_of_other_families_do_not_meet_and_rare_ones_are_counted_together():
    directions = [[f"way {i}"] for i in range(12)]
    rows = [row for i in range(3) for row in quad(directions[4 * i : 4 * i + 4], "rel_dir", f"d{i}")]
    rows += quad([["a"], ["b"], ["c"], ["d"]], "abs_spd_comp", "s") + quad(
        [["x"], ["y"], ["z"], ["w"]], "non_temp", "n"
    )
    found = state_confusion(pa.Table.from_pylist(rows), np.zeros(len(rows), int))
    assert list(found) == ["which is faster", "direction and orientation"]
    table = found["direction and orientation"]
    assert len(table.names) == 9 and table.names[-1] == OTHERS and table.counts.sum() == 12


def test_a_stranger_is_another_source_video_and_always_the_same_one(world):
    table = pq.read_table(world / "splits" / "bench.parquet")
    met = strangers(table)
    assert met.num_rows == table.num_rows and met.drop_columns(["clip", "shard"]) == table.drop_columns(
        ["clip", "shard"]
    )
    pairs = set(zip(table["clip"].to_pylist(), met["clip"].to_pylist(), strict=True))
    assert len(pairs) == 6 and all(one != other for one, other in pairs)
    order = np.random.default_rng(0).permutation(table.num_rows)
    assert strangers(table.take(order)) == met.take(order)


def test_clips_of_one_source_video_are_no_strangers():
    rows = {"clip": ["a", "b", "c", "d"], "shard": ["s", "s", "t", "t"], "videoID": ["v", "v", "v", "w"]}
    met = strangers(pa.table(rows))
    assert met["clip"].to_pylist()[:3] == ["d", "d", "d"] and met["shard"].to_pylist()[:3] == ["t", "t", "t"]
    assert met["clip"].to_pylist()[3] in "abc"
    assert strangers(pa.table(rows | {"videoID": ["v"] * 4})) is None
