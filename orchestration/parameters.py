"""The whole tree of parameters: each link's typed class, filled from one profile of params.yaml."""

from __future__ import annotations

import os
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from assets.benchmark.parameters import BenchmarkParameters
from assets.geometry.parameters import GeometryParameters
from assets.questions.parameters import QuestionParameters
from assets.videos.parameters import SampleWorldParameters, VideoParameters
from assets.videos.split import SplitParameters
from models.parameters import TrainingParameters


class ParametersError(ValueError):
    """params.yaml holds an unknown key, a wrong type, or no such profile."""


class IngestParameters(BaseModel):
    """How new videos become shards."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: str = Field("incoming", description="Folder or fsspec URL that the sensor watches; empty: none")
    shard_size: int = Field(500, ge=1, description="Clips in a shard; a full shard is sealed for good")


class ExecutionParameters(BaseModel):
    """Where and how wide things run; nothing here reaches a result."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    workers: int = Field(2, ge=1, description="Processes per step for work that is independent by clip")


class Parameters(BaseModel):
    """One profile of params.yaml, resolved and checked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    execution: ExecutionParameters
    ingest: IngestParameters
    sample_world: SampleWorldParameters
    videos: VideoParameters
    geometry: GeometryParameters
    questions: QuestionParameters
    splits: SplitParameters
    checkpoint: TrainingParameters
    benchmark: BenchmarkParameters


def load(path: Path) -> Parameters:
    """The profile that `profile:` at the top of params.yaml names.

    Raises:
        ParametersError: one line that names the file, the key, the value and the remedy.
    """
    document = _read(path)
    chosen = document.pop("profile", None)
    if not isinstance(chosen, str) or chosen not in document:
        raise ParametersError(
            f"{path}: profile: {chosen!r} is not in the file; choose one of {', '.join(sorted(document))}"
        )
    try:
        return Parameters.model_validate(document[chosen])
    except ValidationError as error:
        raise ParametersError(f"{path}: {_first_fault(error, chosen)}") from None


def profiles(path: Path) -> list[str]:
    """Names of all profiles in params.yaml."""
    return sorted(set(_read(path)) - {"profile"})


def choose(path: Path, profile: str) -> None:
    """Write `profile:` into params.yaml, keeping its comments. DVC reads the choice there too.

    Raises:
        ParametersError: the file has no such profile.
    """
    if profile not in profiles(path):
        raise ParametersError(f"{path}: no profile {profile!r}; choose one of {', '.join(profiles(path))}")
    lines = path.read_text().splitlines(keepends=True)
    changed = [f"profile: {profile}\n" if line.startswith("profile:") else line for line in lines]
    if changed != lines:
        partial = path.with_suffix(".yaml.partial")
        partial.write_text("".join(changed))
        os.replace(partial, path)


def _read(path: Path) -> dict:
    try:
        document = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ParametersError(
            f"{path}: cannot be read ({' '.join(str(error).split())}); mend it or restore it from git"
        ) from error
    if not isinstance(document, dict):
        raise ParametersError(f"{path}: holds no profiles; restore it from git")
    return document


def _first_fault(error: ValidationError, profile: str) -> str:
    fault = error.errors()[0]
    key = ".".join(str(part) for part in (profile, *fault["loc"]))
    if fault["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"unknown key {key}; remove it or correct its spelling"
    if fault["type"] in ("missing",):
        return f"{key} is missing; add it (see the laptop profile)"
    if isinstance(fault["input"], dict):
        # A section whose own check names the value; all it holds would bury that.
        return f"{key}: {fault['msg'].removeprefix('Value error, ')}; correct the value"
    return f"{key}: {fault['input']!r} does not fit ({fault['msg'].lower()}); correct the value"
