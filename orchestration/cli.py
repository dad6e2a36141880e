"""The command line: `dsr --help` is the table of contents.

Exit codes: 0 done, 1 a check or a comparison failed or a link broke, 2 bad input.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from assets.workspace import Workspace

app = typer.Typer(
    help="From raw videos to a model that reasons about moving things in 3D, and to proof of how good it is.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Shard = Annotated[
    str | None, typer.Option(help="Partition, like shard-000042; only for links that are made per shard.")
]


@app.command()
def run(
    videos: Annotated[str | None, typer.Option(help="Folder or fsspec URL whose videos join the pool first.")] = None,
    profile: Annotated[str | None, typer.Option(help="Profile of params.yaml to switch to.")] = None,
) -> None:
    """Bring the whole chain up to date, from raw videos to the benchmark report."""
    started = time.monotonic()
    workspace = _open(profile)
    if videos:
        _ingest(workspace, videos)
    from orchestration.promotion import decide_if_due
    from orchestration.run import bring_up_to_date

    outcome = bring_up_to_date(workspace)
    decided = decide_if_due(workspace)
    if outcome.ran:
        artifacts = len(outcome.ran) + len(outcome.current)
        print(f"\nmade {len(outcome.ran)} of {artifacts} artifacts in {time.monotonic() - started:.0f} s")
    else:
        print(f"nothing changed: all {len(outcome.current)} artifacts are current, nothing was run")
    _summarise(workspace)
    if decided:
        _show_promotion(workspace)


@app.command()
def make(asset: Annotated[str, typer.Argument(help="Link to make, as in `dsr status`.")], shard: Shard = None) -> None:
    """Make one link (what a stage of dvc.yaml runs)."""
    workspace = _open()
    from orchestration.definitions import build_definitions
    from orchestration.instance import open_instance
    from orchestration.run import chain, materialize

    definitions = build_definitions(workspace)
    known = list(chain(definitions, workspace))
    if (asset, shard) not in known:
        choices = ", ".join(f"{a} --shard {s}" if s else a for a, s in known)
        raise typer.BadParameter(f"no link {asset!r} with shard {shard!r}; choose one of: {choices}")
    materialize(definitions, open_instance(workspace), asset, shard)


@app.command()
def ingest(
    source: Annotated[str, typer.Argument(help="Folder or fsspec URL of videos or annotated logs.")],
) -> None:
    """Seal new videos into shards of the pool, without running anything."""
    _ingest(_open(), source)


@app.command()
def status() -> None:
    """Which artifacts are current, and their hashes."""
    workspace = _open()
    from assets.identity import Identity, stage_name
    from orchestration.definitions import build_definitions
    from orchestration.run import chain

    identity = Identity(workspace.root)
    for asset, shard in chain(build_definitions(workspace), workspace):
        name = stage_name(asset, shard)
        version = identity.locked_hash(name)
        state = "current" if version and identity.is_current(name) else "to be made"
        print(f"{name:32} {state:11} {version or ''}")


@app.command()
def audit() -> None:
    """Hold DVC, Dagster, the checkpoint, MLflow and the report against each other; any gap exits with 1."""
    workspace = _open()
    from orchestration.audit import audit_identity

    findings = audit_identity(workspace)
    for finding in findings:
        print(finding)
    raise typer.Exit(any(not finding.holds for finding in findings))


@app.command()
def ui(
    port: Annotated[int, typer.Option(help="Port of Dagster's pages.")] = 3000,
    mlflow_port: Annotated[int, typer.Option(help="Port of MLflow's pages.")] = 5000,
    pages_port: Annotated[
        int | None,
        typer.Option(help="Port of the scene records in 3D; default: 3002, where Dagster's links to them lead."),
    ] = None,
) -> None:
    """Serve Dagster's pages, with its daemon, MLflow's and the scene records' beside them, until interrupted."""
    workspace = _open()
    from orchestration.ui import serve

    raise typer.Exit(serve(workspace, port, mlflow_port, pages_port))


@app.command()
def show(
    clip: Annotated[str, typer.Argument(help="Identity of the clip, its first digits (eight or more), or its name.")],
    out: Annotated[Path | None, typer.Option(help="HTML file to write; default: reports/scenes/<clip>.html.")] = None,
) -> None:
    """Write a clip's scene record as a page to look at in 3D, and say where it lies."""
    workspace = _open()
    from orchestration.pages import find_clip, write_scene

    print(os.path.relpath(write_scene(workspace, find_clip(workspace, clip), out)))


@app.command()
def ask(
    video: Annotated[Path, typer.Argument(help="Any video file; what is known of a clip of the pool is read.")],
    question: Annotated[str, typer.Argument(help="The question; things are named in words.")],
    more: Annotated[
        list[str] | None, typer.Argument(metavar="OPTION", help="Options that follow the first after --options.")
    ] = None,
    options: Annotated[
        list[str] | None, typer.Option("--options", "--option", help="Four options, without letters in front.")
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Model folder; default: data/checkpoint.")] = None,
    estimator: Annotated[
        str, typer.Option(help="auto (the first of geometry.estimators that supports the clip), or the name of one.")
    ] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Ask the model about any video: its geometry, then the probability of each of four options."""
    workspace = _open()
    from orchestration.ask import ask as ask_model
    from orchestration.parameters import load

    parameters = load(workspace.root / "params.yaml")
    given = [*(options or []), *(more or [])]
    answer = ask_model(workspace, parameters, video, question, given, checkpoint, estimator, _say)
    if as_json:
        print(json.dumps(answer.as_json(), indent=1))
    else:
        print(*answer.lines(), sep="\n")


@app.command()
def evaluate(
    suite: Annotated[
        str, typer.Argument(help="Published benchmark: dsr_bench, vlm4d, sti_bench, vsi_bench or video_mme.")
    ],
    file: Annotated[Path, typer.Argument(help="Its questions, as published.")],
    model: Annotated[str, typer.Option(help="Checkpoint or model folder, hub id, or http(s) address.")],
    out: Annotated[Path, typer.Option(help="Folder for predictions.parquet, metrics.json and summary.md.")],
    clips: Annotated[Path | None, typer.Option(help="Folder of its videos; only --blind needs none.")] = None,
    protocol: Annotated[str, typer.Option(help="letters (weighed in one pass) or generation.")] = "letters",
    rotations: Annotated[bool, typer.Option("--rotations", help="Ask with every rotation of the options.")] = False,
    blind: Annotated[bool, typer.Option("--blind", help="Ask without the videos.")] = False,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest generated answer.")] = 128,
    served_name: Annotated[str, typer.Option(help="Name of the model behind an address.")] = "",
    max_requests: Annotated[int, typer.Option(min=1, help="Requests an address may get in this run.")] = 10_000,
) -> None:
    """Ask any model a published benchmark; an interrupted run goes on where it stopped.

    Exits with 1 where not one question could be asked, as without its videos.
    """
    workspace = _open()
    from assets.benchmark.suite import Videos, match_videos, read_suite
    from assets.benchmark.suite_figures import table_lines
    from orchestration import evaluate as evaluation
    from orchestration.parameters import load

    manner = evaluation.check_manner(protocol, blind, max_tokens)
    if clips is None and not blind:
        raise typer.BadParameter("name the folder of its videos with --clips, or ask without them: --blind")
    parameters = load(workspace.root / "params.yaml")
    questions = read_suite(suite, file)
    videos = Videos({}, {}) if blind else match_videos(questions, clips)
    answers = workspace.root / ".cache" / "answers"
    budget = {"served_name": served_name, "max_requests": max_requests, "answers": answers}
    reader = evaluation.open_reader(model, parameters.checkpoint, **budget)
    asked = {"checkpoint": evaluation.own_checkpoint(workspace, model), "rotations": rotations, "say": _say}
    metrics = evaluation.evaluate(workspace, parameters, questions, videos, reader, manner, out, **asked)
    print(*table_lines(metrics), sep="\n")
    raise typer.Exit(metrics["overall"] is None)


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(metavar="OUT_A", help="Folder that `dsr evaluate` wrote.")],
    second: Annotated[Path, typer.Argument(metavar="OUT_B", help="Another, of the same benchmark.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare two models that were asked the same questions: difference, interval, p value and effect size."""
    from assets.benchmark.comparison import compare_evaluations, comparison_lines

    found = compare_evaluations(first, second)
    print(json.dumps(found, indent=1) if as_json else "\n".join(comparison_lines(found)))


@app.command()
def promote(
    by: Annotated[str | None, typer.Option(help="Your name, to overrule the rule; needs --reason.")] = None,
    reason: Annotated[str | None, typer.Option(help="Why; kept with the version.")] = None,
    version: Annotated[
        int | None, typer.Option(min=1, help="Version to make champion; default: the challenger.")
    ] = None,
    general: Annotated[
        Path | None,
        typer.Option(help="Folder of `dsr evaluate`: decide again with the checkpoint's general understanding."),
    ] = None,
) -> None:
    """Show champion and challenger and why; or, with a name and a reason, make a version champion against the rule."""
    if general is not None:
        if (by, reason, version) != (None, None, None):
            raise typer.BadParameter("--general is for the rule, an override for a person: one at a time")
        workspace = _open()
        from orchestration.promotion import decide_with_general

        decide_with_general(workspace, general)
        _show_promotion(workspace)
        return
    if by is None and reason is None and version is None:
        _show_promotion(_open())
        return
    if by is None or reason is None:
        raise typer.BadParameter("an override needs --by NAME and --reason TEXT")
    workspace = _open()
    from orchestration.promotion import override

    print(*override(workspace, by, reason, version).lines(), sep="\n")


def _show_promotion(workspace: Workspace) -> None:
    from orchestration.promotion import standing_lines

    print(*standing_lines(workspace), sep="\n")


@app.command("export")
def export_(
    out: Annotated[Path, typer.Argument(help="New folder to write to.")],
    form: Annotated[
        str, typer.Option("--format", help="parquet, train_json, conversations or huggingface.")
    ] = "huggingface",
    license: Annotated[str, typer.Option(help="Licence identifier for the data card.")] = "other",
) -> None:
    """Write the sealed release in an official format; a Hugging Face folder comes with its data card."""
    workspace = _open()
    from assets.questions.official_export import export_questions
    from assets.splits.release import GEOMETRY_ONLY, SPLITS, release_page

    release_page(workspace.splits)
    names = [*SPLITS, GEOMETRY_ONLY] if form == "huggingface" else SPLITS
    parts = {name: workspace.splits / f"{name}.parquet" for name in names}
    audit = _blind_figures([parts[name] for name in SPLITS]) if form == "huggingface" else []
    for path in export_questions(parts, out, form, license, audit):
        print(path)


def _blind_figures(splits: list[Path]) -> list[dict[str, object]]:
    """For the data card: what readers of text alone, taught by the first split, get right in the others."""
    import pandas as pd

    from validations.blind import OVERALL, blind_audit

    train, *others = map(pd.read_parquet, splits)
    held_out = pd.concat(others)
    if not len(train) or not len(held_out):
        return []
    scores = [score for score in blind_audit(train, held_out, seed=0).scores if score.type == OVERALL]
    return [
        {"reader": score.reader, "accuracy": score.accuracy, "low": score.low, "high": score.high, "n": score.n}
        for score in scores
    ]


@app.command("import")
def import_(
    source: Annotated[Path, typer.Argument(help="DSR Parquet or JSON file, or a folder of them.")],
    out: Annotated[Path | None, typer.Option(help="Parquet file to write the rows and their parts to.")] = None,
    strict: Annotated[bool, typer.Option(help="End at the first bad row.")] = False,
) -> None:
    """Read questions in an official format and say what was understood of them."""
    from assets.questions.official import import_rows, import_summary, write_imported

    imported = import_rows(source, skip_bad=not strict)
    print(*import_summary(source, imported), sep="\n")
    if out:
        write_imported(imported, out)


@app.command()
def blind(source: Annotated[Path, typer.Argument(help="DSR Parquet or JSON file, or a folder of them.")]) -> None:
    """Ask readers that never see a video the questions of any data set; being found out exits with 1."""
    import pandas as pd

    from assets.questions.official import import_rows
    from validations.blind import OVERALL, audit_data_set

    audit = audit_data_set(pd.DataFrame(import_rows(source).rows), seed=0)
    for score in (score for score in audit.scores if score.type == OVERALL):
        print(f"{score.reader:12} {score.accuracy:6.1%} of {score.n} ({score.low:.1%} to {score.high:.1%})")
    verdict = audit.verdict()
    print(verdict.reason)
    raise typer.Exit(not verdict.passed)


def _open(profile: str | None = None) -> Workspace:
    """The workspace, checked: a wrong parameter is said before anything heavy is loaded."""
    from orchestration.instance import prepare_environment
    from orchestration.parameters import choose, load

    workspace = Workspace.find()
    if profile:
        choose(workspace.root / "params.yaml", profile)
    load(workspace.root / "params.yaml")
    prepare_environment(workspace)
    return workspace


def _say(step: str) -> None:
    print(f"  {step}", file=sys.stderr, flush=True)


def _ingest(workspace: Workspace, source: str) -> None:
    from orchestration.ingest import ingest_new
    from orchestration.parameters import load

    size = load(workspace.root / "params.yaml").ingest.shard_size
    shards = ingest_new(workspace, source, size)
    print(f"{source}: sealed {', '.join(shards)}" if shards else f"{source}: the pool holds all of it already")


def _summarise(workspace: Workspace) -> None:
    """Where the report is, and what it says in five lines."""
    from assets.benchmark.report import five_lines

    metrics = json.loads((workspace.benchmark / "metrics.json").read_text())
    print(f"report: {os.path.relpath(workspace.benchmark / 'report.html')}")
    for line in five_lines(metrics):
        print(f"  {line}")


def main() -> None:
    """Entry point of `dsr`: every error that a user can mend is one line and exit code 2."""
    from orchestration.run import LinkFailure

    try:
        app()
    except LinkFailure as failure:
        _end(str(failure), 1)
    except Exception as error:
        if _disk_is_full(error):
            _end("no space left on the disk; free some and run again, finished parts are kept", 2)
        if isinstance(error, ValueError) and type(error).__module__.split(".")[0] in OURS:
            _end(str(error), 2)
        raise


OURS = ("orchestration", "assets", "models", "validations")


def _disk_is_full(error: BaseException | None) -> bool:
    """Whether a full disk is behind an error, whichever library wrapped it; SQLite does not even say so."""
    if shutil.disk_usage(Path.cwd()).free < 1 << 20:
        return True
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or os.strerror(errno.ENOSPC) in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _end(message: str, status: int) -> None:
    print(" ".join(message.split()), file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
