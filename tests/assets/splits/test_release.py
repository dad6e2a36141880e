import hashlib
import json

import pyarrow.parquet as pq
import pytest

from assets.splits.release import ReleaseError, read_release, release_page, summarize
from assets.splits.sealing import seal_release


def seal(root, out="splits"):
    return seal_release(root / "questions", root / "videos", root / "geometry", root / out)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_every_question_lands_in_exactly_one_part(workspace):
    root, rows = workspace
    seal(root)
    parts = {name: pq.read_table(root / "splits" / f"{name}.parquet") for name in ("train", "val", "bench")}
    aside = pq.read_table(root / "splits" / "geometry_only.parquet")
    assert {name: part.num_rows for name, part in parts.items()} == {"train": 8, "val": 8, "bench": 4}
    assert set(aside["clip"].to_pylist()) == {rows[-1]["clip"]}
    assert all(set(part["split"].to_pylist()) == {name} for name, part in parts.items())
    together = [qa_id for part in (*parts.values(), aside) for qa_id in part["qa_id"].to_pylist()]
    assert sorted(together) == sorted(row["qa_id"] for row in rows)


def test_the_page_names_the_bytes_of_parts_frames_and_scenes(workspace):
    root, rows = workspace
    release = seal(root)
    assert release == json.loads((root / "splits" / "release.json").read_text())
    for name, part in release["splits"].items():
        data = (root / "splits" / part["file"]).read_bytes()
        assert part["sha256"] == hashlib.sha256(data).hexdigest()
        assert part["questions"] == sum(part["by_type"].values()) == sum(part["by_answer"].values())
        assert set(release["clips"][name]) == set(pq.read_table(root / "splits" / part["file"])["clip"].to_pylist())
    clip = rows[0]["clip"]
    assert release["clips"]["train"][clip] == {
        "shard": "shard-000000",
        "frames": hashlib.sha256(b"frames 0").hexdigest(),
        "geometry": hashlib.sha256(b"geometry 0").hexdigest(),
    }
    assert release["clips"]["geometry_only"][rows[-1]["clip"]]["frames"] is None


def test_the_order_of_the_questions_changes_no_byte(workspace, rewrite):
    root, rows = workspace
    seal(root, "first")
    rewrite(rows[::-1])
    seal(root, "second")
    assert contents(root / "first") == contents(root / "second")


def test_sealing_again_over_an_old_release_replaces_it(workspace, rewrite):
    root, rows = workspace
    seal(root)
    rewrite(rows[4:])
    seal(root)
    assert len(read_release(root / "splits")) == 16
    assert not list((root / "splits").glob(".*"))


def test_reading_gives_the_three_splits(workspace):
    root, rows = workspace
    seal(root)
    table = read_release(root / "splits")
    assert set(table["split"]) == {"train", "val", "bench"}
    assert set(table["qa_id"]) == {row["qa_id"] for row in rows if row["has_video"]}


@pytest.mark.parametrize("name", ["train.parquet", "geometry_only.parquet", "release.json"])
def test_a_damaged_or_lost_file_is_named(workspace, name):
    root, _ = workspace
    seal(root)
    path = root / "splits" / name
    path.write_bytes(path.read_bytes()[:-3] + b"???")
    with pytest.raises(ReleaseError, match=name):
        release_page(root / "splits")
    path.unlink()
    with pytest.raises(ReleaseError, match=name):
        release_page(root / "splits")


def test_a_leak_is_never_sealed(workspace, rewrite):
    root, rows = workspace
    rewrite([{**row, "split": "bench"} if row is rows[1] else row for row in rows])
    with pytest.raises(ReleaseError, match="lies in bench and train"):
        seal(root)
    assert not (root / "splits").exists()


@pytest.mark.parametrize(
    ("column", "value"),
    [("split", "test"), ("clip", "../../../etc/passwd"), ("shard", "shard-1/../.."), ("clip", None)],
)
def test_malformed_values_are_refused_by_name(workspace, rewrite, column, value):
    root, rows = workspace
    rewrite([{**row, column: value} if row is rows[1] else row for row in rows])
    with pytest.raises(ReleaseError, match=f"{column} .* is malformed"):
        seal(root)


@pytest.mark.parametrize("folder", ["videos", "geometry"])
def test_a_missing_frame_file_or_record_is_named(workspace, folder):
    root, rows = workspace
    path = next((root / folder).rglob(f"{rows[0]['clip']}.safetensors"))
    path.unlink()
    with pytest.raises(ReleaseError, match=str(path)):
        seal(root)


def test_missing_questions_are_told_in_one_line(tmp_path):
    with pytest.raises(ReleaseError, match="build the questions first") as error:
        seal(tmp_path)
    assert "\n" not in str(error.value)


def test_the_summary_counts_types_and_letters(workspace):
    root, _ = workspace
    summary = summarize(seal(root))
    assert (summary["train"], summary["bench"], summary["geometry_only"], summary["clips"]) == (8, 4, 4, 5)
    assert summary["by_type"].splitlines()[2:] == [
        "| abs_dis | 4 | 4 | 0 |",
        "| rel_spd | 4 | 4 | 4 |",
        "| A / B / C / D | 2 / 2 / 2 / 2 | 2 / 2 / 2 / 2 | 1 / 1 / 1 / 1 |",
    ]
