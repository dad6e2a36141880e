"""The benchmark report as an asset."""

import json

import dagster as dg

from assets.benchmark.parameters import BenchmarkParameters
from assets.checkpoints.asset import checkpoint
from assets.identity import Identity
from assets.link import WORKSPACE, seal, table
from assets.progress import console_progress
from assets.splits.asset import splits
from assets.tracking import Tracking


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
            "blind_accuracy": metrics["blind"]["accuracy"],
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
            "bench/blind": metrics["blind"]["accuracy"],
        }
        headline |= {f"bench/{name}": part["accuracy"] for name, part in metrics["by_type"].items()}
        mlflow.log_metrics(headline, model_id=model.model_id if model else None)
        mlflow.log_artifact(str(workspace.benchmark / "report.html"))
        mlflow.log_text(json.dumps(metrics, indent=1, sort_keys=True), "metrics.json")
