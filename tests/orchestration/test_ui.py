"""The pages, as a person sees them: a real browser on the real servers."""

import contextlib
import json
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.request

import pytest

from tests.orchestration.conftest import BIN, environment

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


LINKS = ("1_videos", "2_geometry", "3_questions", "4_splits", "5_checkpoints", "6_benchmark")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answer(url: str, body: dict | None = None) -> str:
    data = json.dumps(body).encode() if body else None
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as response:
        return response.read().decode()


@pytest.fixture(scope="module")
def pages(finished):
    """Addresses of Dagster's and MLflow's pages over a finished workspace."""
    ports = free_port(), free_port(), free_port()
    # In the background of a script the suite ignores SIGINT; Dagster's servers would then ignore SIGTERM as well.
    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)
    server = subprocess.Popen(
        [
            *[str(BIN / "dsr"), "ui", "--port", str(ports[0])],
            *["--mlflow-port", str(ports[1]), "--pages-port", str(ports[2])],
        ],
        cwd=finished,
        env=environment(finished),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    signal.signal(signal.SIGINT, ignored)
    dagster, mlflow, pages = (f"http://127.0.0.1:{port}" for port in ports)
    try:
        for url in (f"{dagster}/server_info", f"{mlflow}/health", f"{pages}/"):
            wait_for(url)
        yield dagster, mlflow
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=60)


def wait_for(url: str) -> None:
    for _ in range(120):
        with contextlib.suppress(OSError):
            answer(url)
            return
        time.sleep(0.5)
    pytest.fail(f"{url} did not answer")


def text_of(url: str, profile) -> str:
    """What a person reads on a page once its scripts have run."""
    if not BROWSER:
        pytest.skip("no chromium on this machine (Debian: apt-get install chromium)")
    command = [BROWSER, *QUIET, f"--user-data-dir={profile}", "--virtual-time-budget=20000", "--dump-dom", url]
    page = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    page = re.sub(r"<(script|style).*?</\1>", " ", page, flags=re.S)
    return re.sub(r"<[^>]+>", " ", page)


def test_the_asset_graph_shows_every_group_and_no_error(pages, tmp_path):
    text = text_of(f"{pages[0]}/asset-groups", tmp_path)
    for group in (f"link_{link}" for link in LINKS):
        assert group in text
    assert not re.search(r"error|failed|something went wrong", text, flags=re.I)


def test_an_asset_page_shows_what_was_made(pages, tmp_path):
    text = text_of(f"{pages[0]}/assets/benchmark?view=overview", tmp_path)
    assert "How good the checkpoint is" in text
    assert "accuracy" in text
    assert not re.search(r"failed to|something went wrong", text, flags=re.I)


def test_nothing_is_stale_after_a_run(pages):
    query = "{assetNodes {assetKey {path} isPartitioned staleStatus staleCauses {category reason}}}"
    nodes = json.loads(answer(f"{pages[0]}/graphql", {"query": query}))["data"]["assetNodes"]
    assert len(nodes) == 10
    stale = {node["assetKey"]["path"][0]: node["staleCauses"] for node in nodes if node["staleStatus"] != "FRESH"}
    assert stale == {}


def test_mlflow_holds_the_training_run_with_parameters_curves_and_its_data(pages, finished):
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=pages[1])
    experiment = client.get_experiment_by_name("dsr")
    runs = client.search_runs([experiment.experiment_id], "tags.`dagster.asset_key` = 'checkpoint'")
    assert runs
    (run,) = [run for run in runs if run.info.status == "FINISHED"][:1]
    lineage = json.loads((finished / "data/checkpoint/lineage.json").read_text())
    assert [entry.dataset.digest for entry in run.inputs.dataset_inputs] == [lineage["splits"]]
    assert run.data.params["checkpoint.steps"] == "6"
    assert any("loss" in name for name in run.data.metrics)
    assert any(name.startswith("system/") for name in run.data.metrics)
