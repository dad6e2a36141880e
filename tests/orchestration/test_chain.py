"""The whole chain on a tiny sample world, through the commands that users type."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import time

import pyarrow.parquet as pq
import pytest
import yaml

from tests.assets.videos.conftest import write_video
from tests.conftest import make_workspace
from tests.orchestration.conftest import BIN, call, environment

# How `dsr run` announces a link: the name of its stage, alone on a line.
ARTIFACT = re.compile(r"[a-z_]+(@shard-\d{6})?")


def locked(workspace) -> dict[str, str]:
    stages = yaml.safe_load((workspace / "dvc.lock").read_text())["stages"]
    return {name: stage["outs"][0]["md5"] for name, stage in stages.items()}


def test_the_files_that_a_reader_or_a_script_expects(finished):
    metrics = json.loads((finished / "reports/benchmark/metrics.json").read_text())
    assert metrics["chance"] == 0.25
    assert set(metrics["overall"]) >= {"accuracy", "ci95", "n"}
    assert metrics["by_type"]
    assert "accuracy" in metrics["blind"]
    assert metrics["identity"]["checkpoint"] == locked(finished)["checkpoint"]
    assert "<html" in (finished / "reports/benchmark/report.html").read_text()[:500]
    assert (finished / "reports/quarantine.csv").read_text().startswith("clip,")


def test_after_a_run_dvc_is_clean_and_has_nothing_to_do(finished):
    before = (finished / "dvc.lock").read_bytes()
    status = call(finished, "dvc", "status", "--json")
    assert (status.returncode, json.loads(status.stdout)) == (0, {})
    repro = call(finished, "dvc", "repro")
    assert repro.returncode == 0, repro.stderr
    assert "Running stage" not in repro.stdout
    assert (finished / "dvc.lock").read_bytes() == before


def test_every_identity_is_the_one_in_dvc_lock(finished):
    audit = call(finished, "dsr", "audit")
    assert audit.returncode == 0, audit.stdout
    for name, version in locked(finished).items():
        assert f"dagster: {name}" in audit.stdout
        assert version in audit.stdout


def test_a_second_run_does_nothing_and_says_so(finished):
    again = call(finished, "dsr", "run")
    assert again.returncode == 0
    assert "nothing was run" in again.stdout
    assert "reports/benchmark/report.html" in again.stdout


def test_one_changed_parameter_reruns_what_depends_on_it_and_nothing_else(finished, tmp_path):
    """A benchmark parameter changes the report alone; with the old files back, nothing is made a second time."""
    workspace = tmp_path / "changed"
    shutil.copytree(finished, workspace)
    kept = {name: (workspace / name).read_text() for name in ("params.yaml", "dvc.lock")}
    document = yaml.safe_load(kept["params.yaml"])
    document["laptop"]["benchmark"]["examples"] -= 1
    before = locked(workspace)
    (workspace / "params.yaml").write_text(yaml.safe_dump(document))
    changed = call(workspace, "dsr", "run")
    assert changed.returncode == 0, changed.stderr
    assert "made 1 of" in changed.stdout
    after = locked(workspace)
    assert {name for name in after if after[name] != before[name]} == {"benchmark"}

    for name, text in kept.items():
        (workspace / name).write_text(text)
    assert call(workspace, "dvc", "checkout").returncode == 0
    again = call(workspace, "dsr", "run")
    assert "nothing was run" in again.stdout, again.stdout + again.stderr
    assert locked(workspace) == before


def test_killed_in_every_link_and_finished_by_the_other_engine_the_result_is_the_same(finished, tmp_path):
    """SIGKILL shortly after each link was announced, the same command again and again, then `dvc repro` for the rest.

    Another folder, other calls, another number of workers, both engines: the same identities, and each engine knows
    what the other made.
    """
    workspace = make_workspace(tmp_path / "killed", {"execution": {"workers": 1}})
    announced: set[str] = set()
    while "benchmark" not in announced:
        announced.add(run_until_killed(workspace, announced))
    assert announced == set(locked(finished))
    repro = call(workspace, "dvc", "repro")
    assert repro.returncode == 0, (repro.stdout + repro.stderr)[-4000:]
    assert "Running stage 'benchmark'" in repro.stdout
    assert locked(workspace) == locked(finished)
    audit = call(workspace, "dsr", "audit")
    assert audit.returncode == 0, audit.stdout
    again = call(workspace, "dsr", "run")
    assert "nothing was run" in again.stdout, again.stdout + again.stderr


def run_until_killed(workspace, announced: set[str]) -> str:
    """Start `dsr run` and kill it in the first link that was not announced before; returns that link."""
    process = subprocess.Popen(
        [str(BIN / "dsr"), "run"],
        cwd=workspace,
        env=environment(workspace),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stderr:
        name = line.strip()
        if ARTIFACT.fullmatch(name) and name not in announced:
            time.sleep(0.4)
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()
            return name
    pytest.fail(f"ended with status {process.wait()} before a new link began; {sorted(announced)} had")


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (("dsr", "run", "--videos", "no-such-folder"), "no-such-folder"),
        (("dsr", "run", "--videos", "empty"), "empty"),
        (("dsr", "run", "--profile", "no-such-profile"), "no-such-profile"),
        (("dsr", "make", "nothing"), "nothing"),
        (("dsr", "make", "geometry", "--shard", "../../etc"), "etc"),
    ],
)
def test_bad_input_is_one_clear_line_and_exit_code_2(finished, command, says):
    (finished / "empty").mkdir(exist_ok=True)
    done = call(finished, *command)
    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("key", "value"), [("framse", 3), ("frames", "many")])
def test_a_wrong_params_yaml_is_one_clear_line_and_exit_code_2(finished, key, value):
    original = (finished / "params.yaml").read_text()
    document = yaml.safe_load(original)
    document["laptop"]["videos"][key] = value
    (finished / "params.yaml").write_text(yaml.safe_dump(document))
    try:
        done = call(finished, "dsr", "run")
    finally:
        (finished / "params.yaml").write_text(original)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "params.yaml" in done.stderr
    assert key in done.stderr


def test_a_folder_of_videos_goes_through_beside_the_sample_world(finished, tmp_path):
    """Every file ends in a scene record or in quarantine, and a hostile name is only text."""
    workspace = tmp_path / "with-videos"
    shutil.copytree(finished, workspace)
    folder = tmp_path / "videos"
    folder.mkdir()
    write_video(folder / "a walk.mp4")
    (folder / "=cmd <script>.mp4").write_bytes(b"no video at all")
    before = locked(workspace)
    done = call(workspace, "dsr", "run", "--videos", str(folder))
    assert done.returncode == 0, done.stderr[-4000:]
    after = locked(workspace)
    assert {name for name in before if after[name] != before[name]} == {"quarantine", "questions"}
    scenes = pq.read_table(workspace / "data/geometry/shard-000001/scenes.parquet").to_pylist()
    assert [(scene["name"], bool(scene["reason"])) for scene in scenes] == [("a walk.mp4", True)]
    with (workspace / "reports/quarantine.csv").open(newline="") as stream:
        (row,) = csv.DictReader(stream)
    assert row["name"] == "'=cmd <script>.mp4"
    assert "Not a readable video" in row["reason"]
    assert call(workspace, "dsr", "audit").returncode == 0
    again = call(workspace, "dsr", "run", "--videos", str(folder))
    assert "holds all of it already" in again.stdout
    assert "nothing was run" in again.stdout
