"""The registry, on a real MLflow store."""

import dataclasses
import json

import mlflow
import pyarrow.parquet as pq
import pytest

from assets.benchmark.comparison import read_answers
from assets.benchmark.promotion import ReleaseChecks
from assets.benchmark.registry import Registry, RegistryError, Report, judge
from assets.tracking import Tracking
from tests.assets.benchmark.answers import draw_answers, write_report

RELEASE = ReleaseChecks("5" * 32 + ".dir", True)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A migrated store, copied by each test: migrating takes seconds."""
    root = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        Tracking(root).prepare()
    return root / ".mlflow" / "mlflow.db"


@pytest.fixture
def tracking(tmp_path, store, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    # The copied store's own experiment keeps its artifacts beside the original.
    monkeypatch.setattr("assets.tracking.EXPERIMENT", "promotions")
    before = mlflow.get_tracking_uri()
    (tmp_path / ".mlflow").mkdir()
    (tmp_path / ".mlflow" / "mlflow.db").write_bytes(store.read_bytes())
    yield Tracking(tmp_path)
    mlflow.set_tracking_uri(before)


@pytest.fixture
def judged(tracking, tmp_path):
    """Judge a checkpoint, named by one letter, that is right as often as said."""

    def judge_one(letter, accuracy, seed=0, bench="b" * 64, version="9" * 32, general=None, edition="a", **kind):
        folder = tmp_path / "report"
        write_report(folder, draw_answers(accuracy, seed=seed, **kind), letter * 32 + ".dir", bench)
        report = Report.read(folder, version + ".dir")
        if general:
            pq.write_table(draw_answers(general, seed=seed + 100, prefix="g"), folder / "general.parquet")
            report = dataclasses.replace(report, general=read_answers(folder / "general.parquet", edition * 64))
        return judge(tracking, report, RELEASE, {})

    return judge_one


def test_from_the_first_champion_to_the_next(judged, tracking):
    registry = Registry(tracking)
    assert registry.standing("champion") is None

    first, decision = judged("a", 0.5)
    assert decision.promoted and first.aliases == ("champion",)
    assert first.tags["dvc.checkpoint"] == "a" * 32 + ".dir"
    assert (first.tags["promotion.kind"], first.tags["promotion.champion"]) == ("rule", "none")

    second, decision = judged("b", 0.5, seed=1)
    assert decision.verdict == "not promoted" and second.aliases == ("challenger",)
    assert registry.standing("champion").version == first.version

    third, decision = judged("c", 0.8, seed=2)
    assert decision.promoted and third.aliases == ("champion",)
    assert third.tags["promotion.champion"] == str(first.version)
    assert third.tags["promotion.reason"] == decision.reason
    assert float(third.tags["promotion.number.difference_low"]) > 0
    assert registry.standing("challenger") is None
    assert registry.standing(second.version).tags["promotion.verdict"] == "not promoted"

    page = json.loads(mlflow.artifacts.load_text(f"runs:/{third.tags['promotion.run_id']}/decision.json"))
    assert (page["version"], page["verdict"]) == (third.version, "promoted")


def test_a_champion_measured_again_keeps_its_place_and_meets_challengers_on_the_new_bench(judged, tracking):
    champion, _ = judged("a", 0.5)
    refused, decision = judged("b", 0.9, seed=1, bench="d" * 64)
    assert decision.verdict == "not comparable" and "champion" not in refused.aliases
    again, decision = judged("a", 0.5, bench="d" * 64, version="8" * 32)
    assert (again.version, decision.verdict, again.aliases) == (champion.version, "stays champion", ("champion",))
    assert again.tags["promotion.verdict"] == "promoted"
    now, decision = judged("b", 0.9, seed=1, bench="d" * 64)
    assert decision.promoted and now.version == refused.version


def test_general_understanding_is_compared_where_both_answered_it(judged):
    judged("a", 0.5, general=0.7)
    worse, decision = judged("b", 0.8, seed=1, general=0.3)
    assert decision.verdict == "not promoted" and worse.aliases == ("challenger",)
    assert [part.name for part in decision.criteria if not part.passed] == ["general understanding no worse"]
    _, decision = judged("c", 0.8, seed=2)
    assert "not measured, and the champion's is on record; run `dsr evaluate`" in decision.reason
    _, other = judged("c", 0.8, seed=2, general=0.7, edition="e")
    assert "one was measured on bench eeee" in other.reason and not (decision.promoted or other.promoted)
    # What was handed in once stays on record, also where the champion's report is made again without it.
    judged("a", 0.5)
    _, decision = judged("c", 0.8, seed=2, general=0.7)
    assert decision.promoted and decision.criteria[1].measured


def test_a_person_may_overrule_and_that_is_on_record(judged, tracking):
    champion, _ = judged("a", 0.6)
    challenger, _ = judged("b", 0.6, seed=1)
    crowned = Registry(tracking).override("Ada", "needed for\nthe  demo")
    assert (crowned.version, crowned.aliases) == (challenger.version, ("champion",))
    assert crowned.tags["promotion.kind"] == "override"
    assert (crowned.tags["promotion.by"], crowned.tags["promotion.reason"]) == ("Ada", "needed for the demo")
    assert crowned.tags["promotion.rule.verdict"] == "not promoted"
    assert "better than the champion" in crowned.tags["promotion.rule.reason"]
    assert "by Ada, overriding the rule" in crowned.lines()[0]

    same, decision = judged("b", 0.6, seed=1)
    assert decision.verdict == "stays champion" and same.tags["promotion.kind"] == "override"
    back = Registry(tracking).override("Ada", "the demo is over", champion.version)
    assert back.aliases == ("champion",) and back.tags["promotion.champion"] == str(challenger.version)


def test_an_override_that_cannot_be_granted_changes_nothing(judged, tracking):
    champion, _ = judged("a", 0.6)
    registry = Registry(tracking)
    for by, reason, version, says in [
        ("", "good", None, "--by: 0 characters"),
        ("x" * 101, "good", None, "--by: 101 characters"),
        ("Ada", "  ", None, "--reason: 0 characters"),
        ("Ada", "x" * 2001, None, "--reason: 2001 characters"),
        ("Ada\x1b[2J", "good", None, "plain text"),
        ("Ada", "good", 7, "no version 7"),
        ("Ada", "good", None, "no challenger stands"),
        ("Ada", "good", 1, "the champion already"),
    ]:
        with pytest.raises(RegistryError, match=says):
            registry.override(by, reason, version)
    assert registry.standing("champion") == champion


def test_answers_that_are_gone_or_others_are_not_compared(judged, tracking, tmp_path):
    champion, _ = judged("a", 0.5)
    (kept,) = tmp_path.glob("**/artifacts/predictions.parquet")
    pq.write_table(draw_answers(0.1), kept)
    with pytest.raises(RegistryError, match=f"version {champion.version}: not the bytes that were judged"):
        judged("b", 0.8)
    kept.unlink()
    with pytest.raises(RegistryError, match="not among MLflow's artifacts"):
        judged("b", 0.8)


@pytest.mark.parametrize("checkpoint", ["' or 1=1 --", "", 7])
def test_a_report_that_names_no_hash_is_refused(tmp_path, checkpoint):
    write_report(tmp_path, draw_answers(0.5), checkpoint)
    with pytest.raises(RegistryError, match=r"metrics\.json"):
        Report.read(tmp_path, "9" * 32)


def test_a_version_is_tied_to_the_model_that_its_training_logged(judged, tracking):
    with tracking.run("checkpoint", {}, {}) as run:
        model_id = tracking.log_model("geometric-qwen", run.info.run_id, "a" * 32 + ".dir", {})
    judged("a", 0.5)
    version = mlflow.MlflowClient().get_model_version_by_alias("dsr", "champion")
    assert (version.source, version.run_id) == (f"models:/{model_id}", run.info.run_id)
