"""MLflow: one run per training, its data by their DVC hash, and the model as an entity that DVC holds.

The store is SQLite under the workspace unless `MLFLOW_TRACKING_URI` says otherwise. The URI is always passed
explicitly: MLflow's default is a database in the current folder, which differs from process to process.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import mlflow

EXPERIMENT = "dsr"
SYSTEM_METRICS_SECONDS = 5
LETTERS = ("A", "B", "C", "D")


@dataclass(frozen=True)
class Tracking:
    """The tracking store of one workspace."""

    root: Path

    @property
    def uri(self) -> str:
        """Where runs are recorded."""
        return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.root / '.mlflow' / 'mlflow.db'}"

    def prepare(self) -> None:
        """Create the store and the experiment where there are none yet."""
        self._open()

    def _open(self):
        import mlflow

        if self.uri.startswith("sqlite:"):
            (self.root / ".mlflow").mkdir(exist_ok=True)
        mlflow.set_tracking_uri(self.uri)
        if mlflow.get_experiment_by_name(EXPERIMENT) is None:
            local = (self.root / ".mlflow" / "artifacts").as_uri() if self.uri.startswith("sqlite:") else None
            mlflow.create_experiment(EXPERIMENT, artifact_location=local)
        mlflow.set_experiment(EXPERIMENT)
        return mlflow

    @contextmanager
    def run(
        self, name: str, tags: Mapping[str, str], parameters: Mapping[str, object], note: Path | None = None
    ) -> Iterator[mlflow.ActiveRun]:
        """An MLflow run with tags, the resolved parameters and system metrics; it fails when the block raises.

        Args:
            name: name of the run.
            tags: beside the commit of the code, which is always tagged.
            parameters: nested; logged under dotted names.
            note: file that keeps the run's id, so that interrupted work goes on in the run it began in.
        """
        mlflow = self._open()
        mlflow.set_system_metrics_sampling_interval(SYSTEM_METRICS_SECONDS)
        tags = {"git.sha": git_commit(self.root), **tags}
        begun = note.read_text() if note and note.exists() else None
        begun = begun if begun and self._knows(begun) else None
        with mlflow.start_run(run_id=begun, run_name=name, tags=tags, log_system_metrics=True) as run:
            if note:
                note.write_text(run.info.run_id)
            known = run.data.params
            mlflow.log_params({name: value for name, value in flatten(parameters).items() if name not in known})
            yield run

    def _knows(self, run_id: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            return self._open().get_run(run_id).info.lifecycle_stage == "active"
        except MlflowException:
            return False

    def log_dataset(self, name: str, path: str, version: str, context: str) -> None:
        """Record a data set as an input of the active run; its digest is its DVC hash."""
        import mlflow
        from mlflow.data.code_dataset_source import CodeDatasetSource
        from mlflow.data.meta_dataset import MetaDataset

        source = CodeDatasetSource(tags={"dvc.path": path, "dvc.md5": version})
        mlflow.log_input(MetaDataset(source=source, name=name, digest=version), context=context)

    def log_model(self, name: str, run_id: str, version: str, parameters: Mapping[str, object]) -> str:
        """Record a checkpoint as a model entity without copying its weights; DVC holds the bytes under `version`.

        Its signature: a question, its options and a clip go in, the probabilities of the four letters come out.
        """
        import mlflow
        from mlflow.models import ModelSignature, set_signature
        from mlflow.types import ColSpec, DataType, Schema
        from mlflow.types.schema import Array

        model = mlflow.create_external_model(
            name=name,
            source_run_id=run_id,
            tags={"dvc.md5": version},
            params={key: str(value) for key, value in flatten(parameters).items()},
            model_type="vision-language",
        )
        options = Array(DataType.string)
        inputs = Schema([ColSpec("string", "question"), ColSpec(options, "options"), ColSpec("string", "clip")])
        outputs = Schema([ColSpec("double", letter) for letter in LETTERS])
        set_signature(f"models:/{model.model_id}", ModelSignature(inputs=inputs, outputs=outputs))
        return model.model_id

    def model_of(self, version: str) -> mlflow.entities.LoggedModel | None:
        """The model entity of the checkpoint with this DVC hash, the newest if there are several."""
        mlflow = self._open()
        found = mlflow.search_logged_models(
            filter_string=f"tags.`dvc.md5` = '{version}'", max_results=1, output_format="list"
        )
        return found[0] if found else None

    def dataset_digest(self, run_id: str, name: str) -> str | None:
        """Digest of the data set that a run recorded under this name."""
        inputs = self._open().get_run(run_id).inputs.dataset_inputs
        return next((entry.dataset.digest for entry in inputs if entry.dataset.name == name), None)


def flatten(tree: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Nested parameters as dotted names, the way MLflow compares runs."""
    flat: dict[str, object] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat.update(flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value})
    return flat


def git_commit(root: Path) -> str:
    """The commit of the code, or `none` outside git; a dirty tree is marked."""
    described = subprocess.run(
        ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
        capture_output=True,
        text=True,
    )
    return described.stdout.strip() or "none"
