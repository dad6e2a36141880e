"""Resources that the assets ask for by name, built from one workspace and its parameters."""

from __future__ import annotations

from assets.tracking import Tracking
from assets.workspace import Workspace
from orchestration.parameters import Parameters


def resources(workspace: Workspace, parameters: Parameters) -> dict[str, object]:
    """Every resource of the project, keyed by the argument name under which an asset asks for it."""
    return {
        "workspace": workspace,
        "tracking": Tracking(workspace.root),
        "workers": parameters.execution.workers,
        "sample_world": parameters.sample_world,
        "video_parameters": parameters.videos,
        "geometry_parameters": parameters.geometry,
        "question_parameters": parameters.questions,
        "split_parameters": parameters.splits,
        "training_parameters": parameters.checkpoint,
        "benchmark_parameters": parameters.benchmark,
        "resolved_parameters": parameters.model_dump(mode="json"),
    }
