"""`dsr evaluate`: a published benchmark, the folder of its clips, any model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assets.benchmark.readers import GENERATION, LETTERS_PROTOCOL, EndpointReader, LocalReader, Manner
from assets.identity import Identity
from assets.progress import console_progress
from assets.workspace import Workspace
from orchestration.parameters import Parameters

if TYPE_CHECKING:
    from assets.benchmark.readers import Reader
    from assets.benchmark.suite import Suite, Videos
    from models.parameters import TrainingParameters

PROTOCOLS = (LETTERS_PROTOCOL, GENERATION)


class EvaluateError(ValueError):
    """What a benchmark is to be asked with is not what it should be."""


def check_manner(protocol: str, blind: bool, max_tokens: int) -> Manner:
    """The manner of asking that a command line means.

    Raises:
        EvaluateError: there is none of that name.
    """
    if protocol not in PROTOCOLS:
        raise EvaluateError(f"{protocol!r} is no protocol: choose {' or '.join(PROTOCOLS)}")
    return Manner(protocol, blind, max_tokens)


def open_reader(
    model: str,
    like: TrainingParameters,
    *,
    served_name: str = "",
    max_requests: int = 1000,
    answers: Path | None = None,
) -> Reader:
    """The reader that a name means.

    Args:
        model: folder of a checkpoint or of another model, hub id, or http(s) address of an endpoint.
        like: what a model that this project did not train sees of a clip.
        served_name: of the model behind an address.
        max_requests: budget of an endpoint.
        answers: folder in which an endpoint's responses are kept; None keeps none.

    Raises:
        EvaluateError: the address is none, or nobody said which model is meant.
        CheckpointError, WeightsError: there is no such model.
    """
    if not model.startswith(("http://", "https://")):
        return LocalReader(model, like)
    from pydantic import ValidationError

    from assets.text_model import TextModelParameters
    from models.endpoint import Endpoint

    try:
        url = TextModelParameters(url=model).url
    except ValidationError:
        # What stands in front of an @ may be a secret.
        shown = model.rpartition("@")[2]
        raise EvaluateError(f"{shown}: give an http or https address without user or password") from None
    if not served_name:
        raise EvaluateError(f"{url}: which of its models is meant? Name it with --served-name")
    endpoint = Endpoint(url, served_name, max_requests=max_requests, cache=answers)
    return EndpointReader(endpoint, like.max_frames, like.max_pixels)


def evaluate(
    workspace: Workspace,
    parameters: Parameters,
    suite: Suite,
    videos: Videos,
    reader: Reader,
    manner: Manner,
    out: Path,
    *,
    checkpoint: str | None = None,
    rotations: bool = False,
    say: Callable[[str], None] = lambda step: None,
) -> dict[str, Any]:
    """Ask a reader a benchmark with the workspace's parameters, kept answers and prepared clips.

    Args:
        workspace: whose `.cache` keeps answers and prepared clips.
        parameters: how frames are sampled, geometry is estimated and intervals are drawn.
        suite: the questions.
        videos: files of the videos that are at hand, and why others are not.
        reader: what is asked.
        manner: of asking.
        out: folder of the report.
        checkpoint: DVC hash of what is asked, where it is the workspace's own checkpoint.
        rotations: ask with every rotation of the options.
        say: told of each step before it begins.

    Returns:
        The contents of metrics.json.

    Raises:
        EvaluateError: an endpoint gave no answer; what was answered is kept.
        ValueError: as the links and the model raise it, in one line.
    """
    from assets.benchmark.clips import ClipFolder
    from assets.benchmark.predictions import PredictionCache
    from assets.benchmark.run import evaluate_suite
    from models.endpoint import EndpointError

    kept = workspace.root / ".cache"
    clips = None
    if not manner.blind:
        clips = ClipFolder(
            kept / "clips",
            parameters.videos,
            parameters.geometry,
            with_geometry=reader.channels is not None,
            workers=parameters.execution.workers,
        )
    cache = PredictionCache(kept / "predictions.sqlite")
    named = {"code": Identity(workspace.root).code_version("benchmark"), "checkpoint": checkpoint}
    asked = {"identity": named, "rotations": rotations, "say": say, "progress": console_progress("evaluate")}
    try:
        return evaluate_suite(suite, videos, reader, clips, manner, cache, out, parameters.benchmark, **asked)
    except EndpointError as error:
        raise EvaluateError(f"{error} (answers so far are kept: run the same again to go on)") from error


def own_checkpoint(workspace: Workspace, model: str) -> str | None:
    """The hash that DVC gives the workspace's checkpoint, if that is the model meant."""
    if model.startswith(("http://", "https://")) or Path(model).resolve() != workspace.checkpoint.resolve():
        return None
    return Identity(workspace.root).hash_on_disk("checkpoint")
