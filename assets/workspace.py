"""Where things lie: the one place that knows the folders of a workspace and its ledger of shards.

A workspace is a checkout of this project: `params.yaml` says how, `shards.yaml` says on what, `dvc.yaml` says in which
order, and everything under `data/` and `reports/` is made.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

SHARD_KEY = re.compile(r"shard-\d{6}")


class WorkspaceError(ValueError):
    """The folder is no workspace, or its ledger cannot be read."""


@dataclass(frozen=True)
class Workspace:
    """The folders of one workspace; `root` is absolute."""

    root: Path

    @classmethod
    def find(cls, start: Path | None = None) -> Workspace:
        """The workspace around `start` (default: `$DSR_WORKSPACE`, else the current folder).

        Raises:
            WorkspaceError: no folder from `start` upwards holds params.yaml and dvc.yaml.
        """
        start = Path(start or os.environ.get("DSR_WORKSPACE") or Path.cwd()).resolve()
        for folder in (start, *start.parents):
            if (folder / "params.yaml").is_file() and (folder / "dvc.yaml").is_file():
                return cls(folder)
        raise WorkspaceError(
            f"{start}: neither this folder nor one above it holds params.yaml and dvc.yaml; "
            "run inside a checkout or set DSR_WORKSPACE"
        )

    def _per_shard(self, link: str, shard: str) -> Path:
        if not SHARD_KEY.fullmatch(shard):
            raise WorkspaceError(f"{shard!r} is no shard key; write it like shard-000042")
        return self.root / "data" / link / shard

    def raw(self, shard: str) -> Path:
        """The sealed bytes of a shard, with their manifest."""
        return self._per_shard("raw", shard)

    def videos(self, shard: str) -> Path:
        """Probed and sampled clips of a shard, and its quarantine table."""
        return self._per_shard("videos", shard)

    def geometry(self, shard: str) -> Path:
        """Scene records of a shard."""
        return self._per_shard("geometry", shard)

    def candidates(self, shard: str) -> Path:
        """Every question a shard's records could answer, before options are matched."""
        return self._per_shard("candidates", shard)

    @property
    def questions(self) -> Path:
        """Finished question rows of all shards."""
        return self.root / "data" / "questions"

    @property
    def splits(self) -> Path:
        """The sealed release: train, val and bench."""
        return self.root / "data" / "splits"

    @property
    def checkpoint(self) -> Path:
        """The trained model, as a folder that transformers loads."""
        return self.root / "data" / "checkpoint"

    @property
    def benchmark(self) -> Path:
        """The benchmark report."""
        return self.root / "reports" / "benchmark"

    @property
    def quarantine(self) -> Path:
        """Every file that could not be used, with its reason."""
        return self.root / "reports" / "quarantine.csv"

    @property
    def training_work(self) -> Path:
        """Where an unfinished training keeps what it needs to go on; outside every hash."""
        return self.root / ".dagster" / "training"

    @property
    def ledger(self) -> Path:
        """The append-only list of shards, read by dvc.yaml as well."""
        return self.root / "shards.yaml"

    def shards(self) -> list[str]:
        """Keys of all shards, in the order in which they were sealed."""
        return self._ledger_list("shards")

    def sample_shards(self) -> list[str]:
        """Keys of the shards that hold the rendered sample world."""
        return self._ledger_list("sample_shards")

    def _ledger_list(self, name: str) -> list[str]:
        import yaml

        try:
            keys = (yaml.safe_load(self.ledger.read_text()) or {})[name] or []
        except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError) as error:
            raise WorkspaceError(
                f"{self.ledger}: cannot read the list {name!r} ({error}); restore the file from git"
            ) from error
        keys = keys if isinstance(keys, list) else [keys]
        bad = [key for key in keys if not SHARD_KEY.fullmatch(str(key))]
        if bad:
            raise WorkspaceError(f"{self.ledger}: {bad[0]!r} is no shard key; write it like shard-000042")
        return list(keys)

    def add_shard(self, shard: str) -> None:
        """Append a sealed shard to the ledger, keeping its comments; a shard that is there already is left alone."""
        from ruamel.yaml import YAML

        if shard in self.shards():
            return
        yaml = YAML()
        yaml.indent(sequence=4, offset=2)  # as the file is written, so that a new shard is one new line
        document = yaml.load(self.ledger.read_text())
        document["shards"].append(shard)
        partial = self.ledger.with_suffix(".yaml.partial")
        with partial.open("w") as stream:
            yaml.dump(document, stream)
        os.replace(partial, self.ledger)
