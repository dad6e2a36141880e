"""QA data sets as assets: what each shard could be asked, and the questions chosen from all of them."""

import json
import os
from dataclasses import asdict

import dagster as dg
import pandas as pd

from assets.geometry.asset import geometry
from assets.identity import Identity, stage_name
from assets.link import SHARDS, WORKSPACE, check_results, frame_table, seal, table, table_checks
from assets.progress import console_progress
from assets.questions.parameters import QuestionParameters
from assets.videos.asset import videos
from assets.videos.parameters import VideoParameters
from assets.videos.split import SplitParameters

OWNERS = ["team:questions"]


@dg.asset(
    partitions_def=SHARDS,
    deps=[videos, geometry],
    group_name="link_3_questions",
    owners=OWNERS,
    kinds={"numpy", "parquet"},
)
def candidates(
    context: dg.AssetExecutionContext,
    workspace: WORKSPACE,
    question_parameters: dg.ResourceParam[QuestionParameters],
    workers: dg.ResourceParam[int],
) -> dg.MaterializeResult:
    """Every question that a shard's records can answer, with its answer, its evidence and its stability."""
    from assets.questions.candidates import derive_shard

    shard = context.partition_key
    out = workspace.candidates(shard)
    derive_shard(
        workspace.geometry(shard),
        workspace.videos(shard),
        out,
        shard,
        question_parameters,
        workers,
        console_progress(f"candidates {shard}"),
    )
    rows = pd.read_parquet(out / "candidates.parquet", columns=["type"])
    return seal(
        context,
        workspace,
        {
            "dagster/partition_row_count": len(rows),
            "by_type": table(
                [{"type": t, "candidates": int(n)} for t, n in rows["type"].value_counts().sort_index().items()]
            ),
        },
    )


@dg.asset(
    deps=[videos, candidates],
    group_name="link_3_questions",
    owners=OWNERS,
    kinds={"parquet"},
    check_specs=[
        *table_checks("questions"),
        dg.AssetCheckSpec(
            "blind_audit",
            asset="questions",
            blocking=True,
            description="Readers that see no video, trained on one side, must not beat chance on the others.",
        ),
    ],
)
def questions(
    context: dg.AssetExecutionContext,
    workspace: WORKSPACE,
    question_parameters: dg.ResourceParam[QuestionParameters],
    split_parameters: dg.ResourceParam[SplitParameters],
    video_parameters: dg.ResourceParam[VideoParameters],
) -> dg.MaterializeResult:
    """Finished rows: quads of four questions that share four options, each true for exactly one of them."""
    from assets.questions.build import build_questions
    from assets.videos.duplicates import copies_in_pool
    from validations.suites import Limits, validate

    out = workspace.questions
    shards = workspace.shards()
    copies = copies_in_pool([workspace.videos(shard) for shard in shards], video_parameters.duplicate_bits)
    build_questions(
        [workspace.candidates(shard) for shard in shards],
        out,
        question_parameters,
        split_parameters,
        copies,
        console_progress("questions"),
    )
    _write_manifest(workspace, shards)
    rows = pd.read_parquet(out / "questions.parquet")
    return seal(
        context,
        workspace,
        {
            "dagster/row_count": len(rows),
            "clips": int(rows["clip"].nunique()),
            "copied_clips": len(copies),
            "by_type": table(pd.crosstab(rows["type"], rows["split"]).reset_index().to_dict("records")),
            "yield": table(pd.read_parquet(out / "yield.parquet").to_dict("records")),
            "sample": frame_table(
                rows.groupby("type").head(1).assign(options=lambda frame: frame["options"].map(" / ".join)),
                ["type", "question", "options", "answer"],
            ),
        },
        [
            *check_results(validate("questions", rows, Limits(stability=question_parameters.min_stability))),
            _blind_audit(rows, question_parameters.audit_steps),
        ],
    )


def _write_manifest(workspace, shards: list[str]) -> None:
    """Which version of which shard was read: Dagster stops tracking the partitions of a fan-in at one hundred."""
    identity = Identity(workspace.root)
    manifest = {shard: identity.hash_on_disk(stage_name("candidates", shard)) for shard in sorted(shards)}
    partial = workspace.questions / "manifest.json.partial"
    partial.write_text(json.dumps({"candidates": manifest}, indent=1, sort_keys=True))
    os.replace(partial, workspace.questions / "manifest.json")


def _blind_audit(rows: pd.DataFrame, most_steps: int) -> dg.AssetCheckResult:
    """What readers of text alone make of the rows: trained on the training side, scored on the rest."""
    from validations.blind import blind_audit

    sides = rows[rows["split"] == "train"], rows[rows["split"] != "train"]
    if not all(map(len, sides)):
        empty = "training" if not len(sides[0]) else "validation and benchmark"
        return dg.AssetCheckResult(
            check_name="blind_audit",
            passed=False,
            severity=dg.AssetCheckSeverity.WARN,
            description=f"no questions for {empty}: nothing can be said about shortcuts",
        )
    audit = blind_audit(*sides, seed=0, most_steps=most_steps)
    verdict = audit.verdict()
    giveaways = [{"reader": reader, **asdict(item)} for reader, items in audit.giveaways.items() for item in items]
    return dg.AssetCheckResult(
        check_name="blind_audit",
        passed=verdict.passed,
        severity=dg.AssetCheckSeverity.ERROR,
        description=verdict.reason,
        metadata={
            "readers": table([asdict(score) for score in audit.scores], 100),
            "giveaways": table(giveaways, 20),
        },
    )
