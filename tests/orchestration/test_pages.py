"""The project's own pages, over a small workspace that was written by hand."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from safetensors.numpy import save_file
from starlette.testclient import TestClient

from assets.geometry.record import save, unknown
from assets.geometry.scene_page import policy
from assets.workspace import Workspace
from orchestration.cli import app
from orchestration.pages import PagesError, UnknownClip, build_app, find_clip, list_clips, write_scene
from orchestration.parameters import Parameters

CLIPS = {"walk <b>1</b>.mp4": "a" * 64, "street.mp4": "b" * 64, "log/annotations.feather": "c" * 64}


@pytest.fixture
def small(tmp_path) -> Workspace:
    """Two shards; the first holds two clips with frames, the second a log without any."""
    defaults = {name: {} for name in Parameters.model_fields}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"profile": "laptop", "laptop": defaults}))
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    (tmp_path / "shards.yaml").write_text("sample_shards: []\nshards: [shard-000000, shard-000001]\n")
    workspace = Workspace(tmp_path)
    for shard, names in (("shard-000000", list(CLIPS)[:2]), ("shard-000001", list(CLIPS)[2:])):
        folder = workspace.geometry(shard)
        folder.mkdir(parents=True)
        (workspace.videos(shard) / "frames").mkdir(parents=True)
        for name in names:
            save(record_of("3d" if name.startswith("walk") else "2d"), folder / f"{CLIPS[name]}.safetensors")
            if shard == "shard-000000":
                frames = np.zeros((3, 12, 16, 3), np.uint8)
                save_file({"frames": frames}, workspace.videos(shard) / "frames" / f"{CLIPS[name]}.safetensors")
        pq.write_table(pa.Table.from_pylist([row_of(name, shard) for name in names]), folder / "scenes.parquet")
    return workspace


def record_of(status):
    reason = "" if status == "3d" else "static camera"
    return unknown(
        np.arange(3) / 2,
        ["robot"],
        ["robot"],
        world_from_camera=np.tile(np.eye(4), (3, 1, 1)),
        centers_world=np.ones((1, 3, 3)),
        provenance={"status": status, "reason": reason, "estimator": "classical", "frame_size": [12, 16]},
    )


def row_of(name, shard):
    status = "3d" if name.startswith("walk") else "2d"
    row = {"clip": CLIPS[name], "shard": shard, "name": name, "estimator": "classical", "status": status}
    return row | {"reason": "" if status == "3d" else "static camera", "objects": 1, "moving": 0}


@pytest.fixture
def client(small):
    return TestClient(build_app(small), base_url="http://127.0.0.1:3002", raise_server_exceptions=False)


def test_a_clip_is_shown_with_its_name_and_under_its_policy(client):
    answer = client.get(f"/scenes/{'a' * 64}")
    assert answer.status_code == 200 and "walk &lt;b&gt;1&lt;/b&gt;.mp4" in answer.text
    assert answer.headers["content-security-policy"] == f"{policy()}; frame-ancestors 'none'"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "static camera." in client.get(f"/scenes/{'c' * 64}").text


@pytest.mark.parametrize(
    ("clip", "said"),
    [
        ("d" * 64, "No shard of this workspace holds a scene record"),
        ("walk", "64 hexadecimal digits"),
        ("A" * 64, "64 hexadecimal digits"),
        ("..%2f..%2fparams.yaml", "no such page"),
        ("%3Cscript%3E", "64 hexadecimal digits"),
    ],
)
def test_what_is_no_clip_is_said_in_a_sentence(client, clip, said):
    answer = client.get(f"/scenes/{clip}")
    assert answer.status_code == 404 and said in answer.text and "<script" not in answer.text


def test_a_damaged_file_is_named(client, small):
    record = small.geometry("shard-000000") / f"{'a' * 64}.safetensors"
    data = bytearray(record.read_bytes())
    data[-30] ^= 1
    record.write_bytes(data)
    frames = small.videos("shard-000000") / "frames" / f"{'b' * 64}.safetensors"
    frames.write_bytes(frames.read_bytes()[:40])
    for clip, name in (("a" * 64, "data/geometry/shard-000000"), ("b" * 64, "data/videos/shard-000000/frames")):
        answer = client.get(f"/scenes/{clip}")
        assert answer.status_code == 500 and f"{name}/{clip}.safetensors: " in answer.text
        assert "damaged" in answer.text and str(small.root) not in answer.text


def test_frames_of_another_clip_are_not_shown(client, small):
    path = small.videos("shard-000000") / "frames" / f"{'a' * 64}.safetensors"
    save_file({"frames": np.zeros((7, 12, 16, 3), np.uint8)}, path)
    answer = client.get(f"/scenes/{'a' * 64}")
    assert answer.status_code == 500 and "7 frames, but the record has 3 moments" in answer.text


def test_the_index_lists_every_clip_with_a_link(client):
    page = client.get("/").text
    assert "3 clips" in page and all(f'href="/scenes/{clip}"' in page for clip in CLIPS.values())
    assert "walk &lt;b&gt;1&lt;/b&gt;.mp4" in page and "<b>1</b>" not in page and "static camera" in page
    one = client.get("/?shard=shard-000001").text
    assert "1 clip<" in one and "c" * 64 in one and "a" * 64 not in one
    assert client.get("/?shard=../raw").status_code == 404


def test_the_index_is_paged_and_reads_only_the_tables_it_shows(small):
    rows = [row_of("street.mp4", "shard-000000") | {"clip": f"{i:064x}"} for i in range(150)]
    pq.write_table(pa.Table.from_pylist(rows), small.geometry("shard-000000") / "scenes.parquet")
    first, second = list_clips(small, page=1), list_clips(small, page=2)
    assert (first.pages, first.clips, len(first.rows), len(second.rows)) == (2, 151, 100, 51)
    assert second.rows[-1]["clip"] == "c" * 64
    assert list_clips(small, page=10**9).page == 2


def test_a_damaged_table_is_named_and_the_rest_is_listed(client, small):
    (small.geometry("shard-000000") / "scenes.parquet").write_bytes(b"PAR1 nothing PAR1")
    page = client.get("/").text
    assert "data/geometry/shard-000000/scenes.parquet is damaged" in page and "c" * 64 in page


def test_only_get_and_only_the_loopback_interface(client):
    assert client.post("/").status_code == 405
    assert client.get("/", headers={"host": "elsewhere.example"}).status_code == 400
    assert client.get("/report").status_code == 404


def test_the_report_is_served_beside_the_scenes(client, small):
    small.benchmark.mkdir(parents=True)
    (small.benchmark / "report.html").write_text("<h1>verdict</h1>")
    assert client.get("/report").text == "<h1>verdict</h1>" and "/report" in client.get("/").text


def test_a_clip_is_found_by_identity_digits_or_name(small):
    for asked in ("b" * 64, "b" * 8, "street.mp4"):
        assert find_clip(small, asked) == "b" * 64
    with pytest.raises(UnknownClip, match=r"near it: 'street\.mp4'"):
        find_clip(small, "stret.mp4")
    with pytest.raises(UnknownClip, match="no clip of this workspace"):
        find_clip(small, "bbb")
    with pytest.raises(PagesError):
        find_clip(small, "d" * 64)


def test_the_page_is_written_where_it_is_asked_for(small, tmp_path):
    assert write_scene(small, "a" * 64, None) == small.root / "reports" / "scenes" / f"{'a' * 64}.html"
    out = write_scene(small, "a" * 64, tmp_path / "deep" / "page.html")
    assert out.read_text().startswith("<!doctype html>")
    assert [path.name for path in out.parent.iterdir()] == ["page.html"]


def test_dsr_show_prints_where_the_page_lies(small, monkeypatch):
    from typer.testing import CliRunner

    # So that what the command sets is taken back.
    for name in ("DAGSTER_HOME", "GX_ANALYTICS_ENABLED", "DVC_NO_ANALYTICS"):
        monkeypatch.setenv(name, str(small.root / "dagster"))
    monkeypatch.setenv("DSR_WORKSPACE", str(small.root))
    monkeypatch.chdir(small.root)
    done = CliRunner().invoke(app, ["show", "street.mp4", "--out", "page.html"])
    assert (done.exit_code, done.output) == (0, "page.html\n"), done.exception
    assert isinstance(CliRunner().invoke(app, ["show", "stret"]).exception, UnknownClip)
