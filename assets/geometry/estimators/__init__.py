"""Estimators: one small interface from a clip to its scene record, and the choice among them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from assets.geometry.parameters import GeometryParameters
from assets.geometry.record import SceneRecord


class EstimateError(ValueError):
    """A clip that an estimator cannot turn into a record; the message is the reason that is recorded."""


class SetupError(ValueError):
    """What fails is the machine or the configuration (weights, card, endpoint) and no clip: the run has to stop."""


@dataclass(frozen=True)
class Clip:
    """What an estimator gets to see of one clip.

    Attributes:
        row: the clip's row of clips.parquet.
        primary: the raw file.
        companions: raw companion files by role.
        frames_file: the sampled frames, None for a log without pictures.
    """

    row: Mapping[str, Any]
    primary: Path
    companions: Mapping[str, Path]
    frames_file: Path | None

    @cached_property
    def sampled(self) -> dict[str, np.ndarray]:
        """``frames`` (T, h, w, 3) u8 RGB, ``timestamps`` (T,) f64 s and ``indices`` (T,) i64 into the video.

        Raises:
            EstimateError: the clip has no readable frames.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        if self.frames_file is None:
            raise EstimateError("the clip has no sampled frames")
        try:
            return load_file(self.frames_file)
        except (OSError, SafetensorError) as error:
            raise EstimateError(f"{self.frames_file.name}: unreadable frames, prepare the shard again") from error


class Estimator(Protocol):
    """From a clip to its scene record."""

    def supports(self, row: Mapping[str, Any], companions: Mapping[str, Any]) -> bool:
        """Whether this estimator is meant for such a clip, by its row of clips.parquet and companion roles."""

    def identity(self) -> str:
        """Name and version; changes whenever the same clip could give another record."""

    def estimate(self, clip: Clip) -> SceneRecord:
        """The clip's scene record; raises ``EstimateError`` with the reason where there is none, ``SetupError`` where
        no clip could be estimated.
        """


# Modules are imported when their estimator is chosen: OpenCV has no place in a process that only reads records.
_CLASSES = {
    "rendered": "Rendered",
    "annotated": "Annotated",
    "foundation": "Foundation",
    "classical": "Classical",
}
# Estimators that hold large networks, which several processes would fight over one card for.
ONE_PROCESS = frozenset({"foundation"})


def build(name: str, parameters: GeometryParameters) -> Estimator:
    """The estimator of that name."""
    module = import_module(f"assets.geometry.estimators.{name}")
    return getattr(module, _CLASSES[name])(parameters)


def choose(
    row: Mapping[str, Any], companions: Mapping[str, Any], parameters: GeometryParameters
) -> tuple[str, Estimator] | None:
    """Name and instance of the first estimator in ``parameters.estimators`` that supports the clip, or None."""
    for name in parameters.estimators:
        estimator = build(name, parameters)
        if estimator.supports(row, companions):
            return name, estimator
    return None


def provenance(
    estimator: str, identity: str, parameters: GeometryParameters, status: str, reason: str = "", **more: Any
) -> dict[str, Any]:
    """The provenance every record carries; ``more`` overrides the error model of a scene without one.

    The error model is the expected noise: ``center`` as share of the distance from the camera, ``heading_deg`` in
    degrees, ``position_floor`` in scene units; None where there is nothing to be wrong about.
    """
    tree = parameters.deciding()
    return {
        "estimator": estimator,
        "version": identity,
        "parameters": tree,
        "parameters_hash": hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest(),
        "status": status,
        "reason": reason,
        "error_model": {"center": None, "heading_deg": None, "position_floor": None},
        "metric": False,
        "frame_size": [0, 0],
        "poses": "unknown",
        "up_world": None,
    } | more


def uniform_indices(total: int, count: int) -> np.ndarray:
    """At most ``count`` whole numbers spread uniformly over 0..total-1, first and last included."""
    return np.unique(np.linspace(0, total - 1, min(total, count)).round().astype(int))
