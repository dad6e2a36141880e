"""Who is champion, through the commands that users type."""

import shutil
from dataclasses import replace

import dagster as dg
import mlflow
import numpy as np
import pytest
from typer.testing import CliRunner

from assets.benchmark.champion import measure_champion
from assets.benchmark.comparison import ComparisonError, read_scores, why_not_comparable
from assets.benchmark.parameters import BenchmarkParameters
from assets.benchmark.promotion import ReleaseChecks
from assets.benchmark.registry import Registry, Report
from assets.identity import Identity
from assets.tracking import Tracking
from assets.workspace import Workspace
from orchestration.cli import app
from orchestration.instance import open_instance
from orchestration.promotion import decide_if_due, decide_with_general
from orchestration.run import known_version
from tests.assets.benchmark.test_comparison import write_evaluation
from tests.orchestration.conftest import call


@pytest.fixture
def own(finished, tmp_path, monkeypatch):
    """A finished workspace to change the registry of."""
    workspace = tmp_path / "own"
    shutil.copytree(finished, workspace)
    for name in ("DAGSTER_HOME", "DSR_WORKSPACE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    before = mlflow.get_tracking_uri()
    yield workspace
    mlflow.set_tracking_uri(before)


def version_tags(workspace) -> dict[str, str]:
    Tracking(workspace).prepare()
    return mlflow.MlflowClient().get_model_version("dsr", "1").tags


def test_a_run_ends_in_a_decision_that_names_what_it_is_about(own, tmp_path):
    shown = call(own, "dsr", "promote")
    assert shown.returncode == 0, shown.stderr
    assert "version 1" in shown.stdout and "blind score at chance" in shown.stdout
    identity, tags = Identity(own), version_tags(own)
    assert tags["promotion.kind"] == "rule"
    assert {tags[f"dvc.{name}"] == identity.locked_hash(name) for name in ("checkpoint", "splits", "benchmark")} == {
        True
    }
    assert "splits:must_hold" in tags["promotion.reason"] and "questions:blind_audit" in tags["promotion.reason"]
    instance = open_instance(Workspace(own))
    assert known_version(instance, dg.AssetKey("promotion"), None) == identity.locked_hash("benchmark")
    asked = write_evaluation(tmp_path / "asked", np.ones(8), checkpoint=identity.locked_hash("checkpoint"))
    decide_with_general(Workspace(own), asked)
    assert version_tags(own)["general.sha256"] != tags["bench.sha256"]
    assert known_version(instance, dg.AssetKey("promotion"), None) == identity.locked_hash("benchmark")
    with pytest.raises(ComparisonError, match="another model was asked"):
        decide_with_general(Workspace(own), write_evaluation(tmp_path / "others", np.ones(8)))


@pytest.mark.parametrize("given", [("--by", "Ada"), ("--reason", "why"), ("--version", "1")])
def test_half_an_override_is_refused(given):
    refused = CliRunner().invoke(app, ["promote", *given])
    assert refused.exit_code == 2 and "--by NAME and --reason TEXT" in refused.output
    both = CliRunner().invoke(app, ["promote", *given, "--general", "folder"])
    assert both.exit_code == 2 and "--general is for the rule" in both.output


def test_a_person_overrules_with_name_and_reason(own, monkeypatch):
    Tracking(own).prepare()
    client = mlflow.MlflowClient()
    client.delete_registered_model_alias("dsr", "champion")
    client.set_registered_model_alias("dsr", "challenger", "1")
    refused = call(own, "dsr", "promote", "--by", "Ada", "--reason", " ")
    assert (refused.returncode, len(refused.stderr.strip().splitlines())) == (2, 1)
    assert "--reason: 0 characters" in refused.stderr
    monkeypatch.setenv("DSR_WORKSPACE", str(own))
    monkeypatch.setenv("DAGSTER_HOME", str(own / ".dagster"))
    given = ["promote", "--by", "Ada", "--reason", "the <b>demo</b> needs it", "--version", "1"]
    done = CliRunner().invoke(app, given)
    assert done.exit_code == 0, done.output
    assert "by Ada, overriding the rule" in done.stdout
    tags = version_tags(own)
    assert (tags["promotion.kind"], tags["promotion.by"]) == ("override", "Ada")
    assert tags["promotion.reason"] == "the <b>demo</b> needs it"
    event = open_instance(Workspace(own)).get_latest_materialization_event(dg.AssetKey("promotion"))
    assert event.asset_materialization.metadata["decided_by"].value == "Ada"
    assert not decide_if_due(Workspace(own))
    assert version_tags(own) == tags


def test_the_champion_is_asked_a_new_bench_from_its_bytes_in_the_cache(own, tmp_path):
    tracking, identity, workspace = Tracking(own), Identity(own), Workspace(own)
    tracking.prepare()
    client = mlflow.MlflowClient()
    client.set_registered_model_alias("dsr", "champion", "1")
    report = Report.read(workspace.benchmark, identity.locked_hash("benchmark"))
    release = ReleaseChecks(report.splits, True)
    challenger = replace(report, checkpoint="e" * 32 + ".dir")
    asked = (workspace, identity, tracking, challenger, release, BenchmarkParameters(examples=0, resamples=200))
    assert measure_champion(*asked) is None and version_tags(own)["bench.sha256"] == report.bench
    before = read_scores(workspace.benchmark / "predictions.parquet", report.bench)

    client.set_model_version_tag("dsr", "1", "bench.sha256", "d" * 64)
    shutil.rmtree(workspace.checkpoint)
    assert measure_champion(*asked) is None
    champion = Registry(tracking).standing("champion")
    assert champion.tags["bench.sha256"] == report.bench and champion.tags["promotion.kind"] == "rule"
    now = Registry(tracking).scores(champion)
    assert why_not_comparable(now, before) is None and (now.right == before.right).all()
    assert not workspace.checkpoint.exists() and not list((own / ".cache").glob("tmp*"))

    client.set_model_version_tag("dsr", "1", "bench.sha256", "d" * 64)
    for checkpoint, says in (("f" * 32 + ".dir", "neither DVC's cache nor a remote holds it"), ("../x", "is no hash")):
        client.set_model_version_tag("dsr", "1", "dvc.checkpoint", checkpoint)
        assert says in measure_champion(*asked)
    assert version_tags(own)["bench.sha256"] == "d" * 64
