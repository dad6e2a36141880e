"""The benchmark report as an asset."""

import json
from dataclasses import replace
from pathlib import Path

import dagster as dg
from dagster._core.definitions.data_version import DATA_VERSION_TAG
from pydantic import Field

from assets.benchmark.parameters import BenchmarkParameters
from assets.checkpoints.asset import checkpoint
from assets.identity import Identity, IdentityError
from assets.link import WORKSPACE, seal, table
from assets.progress import console_progress
from assets.questions.asset import questions
from assets.splits.asset import splits
from assets.tracking import Tracking

# On an asset that makes no bytes for DVC to keep: the artifact that it judges, whose version is its own.
JUDGES = "dsr/judges"


@dg.asset(
    deps=[checkpoint, splits],
    group_name="link_6_benchmark",
    owners=["team:benchmark"],
    kinds={"html", "mlflow"},
    pool="gpu",
)
def benchmark(
    context: dg.AssetExecutionContext,
    workspace: WORKSPACE,
    tracking: dg.ResourceParam[Tracking],
    benchmark_parameters: dg.ResourceParam[BenchmarkParameters],
) -> dg.MaterializeResult:
    """How good the checkpoint is on the sealed bench, beside chance and beside the same model without the video."""
    from assets.benchmark.evaluate import evaluate

    identity = Identity(workspace.root)
    versions = {name: identity.hash_on_disk(name) for name in ("checkpoint", "splits")}
    data = workspace.root / "data"
    metrics = evaluate(
        workspace.checkpoint,
        workspace.splits,
        data / "videos",
        data / "geometry",
        workspace.benchmark,
        benchmark_parameters,
        {**versions, "code": identity.code_version("benchmark")},
        console_progress("benchmark"),
    )
    _track(tracking, context.run_id, versions, metrics, workspace)
    return seal(
        context,
        workspace,
        {
            "report": dg.MetadataValue.path(str(workspace.benchmark / "report.html")),
            "accuracy": metrics["overall"]["accuracy"],
            "macro_accuracy": metrics["macro"]["accuracy"],
            "blind_accuracy": metrics["blind"]["accuracy"],
            **({"shuffled_accuracy": metrics["shuffled"]["accuracy"]} if metrics["shuffled"] else {}),
            "questions": metrics["overall"]["n"],
            "by_type": table(
                [
                    {
                        "type": name,
                        "accuracy": part["accuracy"],
                        "from": part["ci95"][0],
                        "to": part["ci95"][1],
                        "n": part["n"],
                    }
                    for name, part in metrics["by_type"].items()
                ]
            ),
            "summary": dg.MetadataValue.md((workspace.benchmark / "report.md").read_text()[:8000]),
        },
    )


def _track(tracking: Tracking, run_id: str, versions: dict[str, str], metrics: dict, workspace) -> None:
    """Log the headline numbers to MLflow, tied to the model and to the data they were measured on."""
    import mlflow

    model = tracking.model_of(versions["checkpoint"])
    tags = {
        "dagster.run_id": run_id,
        "dagster.asset_key": "benchmark",
        **{f"dvc.{k}": v for k, v in versions.items()},
    }
    with tracking.run("benchmark", tags, {}):
        tracking.log_dataset("bench", "data/splits/bench.parquet", versions["splits"], "evaluation")
        headline = {
            "bench/accuracy": metrics["overall"]["accuracy"],
            "bench/macro": metrics["macro"]["accuracy"],
            "bench/blind": metrics["blind"]["accuracy"],
            "bench/calibration_error": metrics["calibration"]["ece"],
            "bench/position_bias": metrics["positions"]["bias"],
        }
        if metrics["shuffled"]:
            headline["bench/shuffled"] = metrics["shuffled"]["accuracy"]
        headline |= {f"bench/{name}": part["accuracy"] for name, part in metrics["by_type"].items()}
        mlflow.log_metrics(headline, model_id=model.model_id if model else None)
        for name in ("report.html", "report.md"):
            mlflow.log_artifact(str(workspace.benchmark / name))
        mlflow.log_artifacts(str(workspace.benchmark / "plots"), "plots")
        mlflow.log_text(json.dumps(metrics, indent=1, sort_keys=True), "metrics.json")


class PromotionConfig(dg.Config):
    """What one decision may be given beside the report."""

    general: str = Field("", description="Folder of `dsr evaluate`: the checkpoint on general understanding; or none.")


@dg.asset(
    deps=[benchmark],
    group_name="link_6_benchmark",
    owners=["team:benchmark"],
    kinds={"mlflow"},
    tags={JUDGES: "benchmark"},
)
def promotion(
    context: dg.AssetExecutionContext,
    config: PromotionConfig,
    workspace: WORKSPACE,
    tracking: dg.ResourceParam[Tracking],
    benchmark_parameters: dg.ResourceParam[BenchmarkParameters],
) -> dg.MaterializeResult:
    """Whether the checkpoint becomes champion: decided by rule on the report, kept in MLflow's registry."""
    from assets.benchmark.beside import log_beside
    from assets.benchmark.champion import measure_champion
    from assets.benchmark.comparison import read_general
    from assets.benchmark.registry import CHAMPION, Registry, Report, judge

    identity = Identity(workspace.root)
    version = identity.hash_on_disk("benchmark")
    if version != identity.locked_hash("benchmark"):
        raise IdentityError(f"{workspace.benchmark}: not the committed report; materialize benchmark again")
    report = Report.read(workspace.benchmark, version)
    if config.general:
        report = replace(report, general=read_general(Path(config.general), report.checkpoint))
    tags = {"dagster.run_id": context.run_id, "dagster.asset_key": "promotion", "dvc.benchmark": version}
    checks = _release_checks(context.instance, identity, report.splits)
    told = console_progress("champion on the new bench")
    if why := measure_champion(workspace, identity, tracking, report, checks, benchmark_parameters, told):
        context.log.warning(why)
    champion = Registry(tracking).standing(CHAMPION)
    standing, decision = judge(tracking, report, checks, tags)
    data = workspace.root / "data"
    summary = log_beside(
        tracking, champion, standing, workspace.benchmark, workspace.splits, data / "videos", data / "geometry"
    )
    return dg.MaterializeResult(
        metadata={
            "verdict": decision.verdict,
            "decided_by": "rule",
            "version": standing.version,
            "checkpoint": report.checkpoint,
            **({"beside_champion": dg.MetadataValue.md(summary[:8000])} if summary else {}),
            "criteria": table(
                [
                    {"criterion": part.name, "holds": part.passed if part.measured else "-", "reason": part.reason}
                    for part in decision.criteria
                ]
            ),
            **decision.numbers,
        },
        data_version=dg.DataVersion(version),
    )


def _release_checks(instance: dg.DagsterInstance, identity: Identity, release: str):
    """What Dagster has on record of the checks of the committed questions and splits."""
    from assets.benchmark.promotion import ReleaseChecks

    outcomes: dict[str, list[str]] = {"failed": [], "warned": [], "passed": []}
    for asset in (questions, splits):
        made = instance.get_latest_materialization_event(asset.key)
        version = identity.locked_hash(asset.key.to_user_string())
        if made is None or made.asset_materialization.tags.get(DATA_VERSION_TAG) != version:
            continue
        for spec in asset.check_specs:
            record = instance.get_latest_asset_check_evaluation_record(spec.key)
            if record is None or record.run_id != made.run_id or record.event is None:
                continue
            found = record.event.dagster_event.asset_check_evaluation_data
            blocking = found.severity == dg.AssetCheckSeverity.ERROR
            outcome = "passed" if found.passed else "failed" if blocking else "warned"
            outcomes[outcome].append(spec.key.to_user_string())
    committed = release == identity.locked_hash("splits")
    return ReleaseChecks(release, committed, **{name: tuple(found) for name, found in outcomes.items()})
