"""The one identity: the hash that DVC gives an artifact, asked of DVC itself.

Nothing here computes a hash of its own. `dvc.yaml` is the list of stages; a Dagster asset and its DVC stage carry the
same name, a partition is the part behind the @ (`geometry@shard-000042`). Ingested raw shards have no stage that makes
them: they are tracked by `data/raw/<shard>.dvc`.
"""

from __future__ import annotations

import json
import logging
import os
import re
from functools import cached_property
from pathlib import Path

_HASH = re.compile(r"[0-9a-f]{32}(\.dir)?")


class IdentityError(ValueError):
    """DVC does not know the stage, or what it locked is not what lies on disk."""


def under_dvc_repro() -> bool:
    """Whether this process is the command of a stage that `dvc repro` runs; DVC then commits by itself."""
    return "DVC_STAGE" in os.environ


def stage_name(asset: str, shard: str | None) -> str:
    """The stage behind an asset (and its partition)."""
    return f"{asset}@{shard}" if shard else asset


class Identity:
    """What DVC says of one workspace. Opens DVC lazily and waits for its lock, as other writers may be at work."""

    def __init__(self, root: Path):
        self.root = Path(root)

    @cached_property
    def _repo(self):
        from dvc.repo import Repo

        # DVC tells of every line it writes into dvc.lock, and of every file behind an error that it then raises.
        for library in ("dvc", "dvc_data", "dvc_objects"):
            logging.getLogger(library).setLevel(logging.CRITICAL)
        return Repo(str(self.root), _wait_for_lock=True)

    @cached_property
    def _stages(self) -> dict[str, object]:
        """Stages by name; an ingested raw shard is filed under the name that its stage would have."""
        return {
            getattr(stage, "name", None) or stage_name("raw_videos", Path(stage.path_in_repo).stem): stage
            for stage in self._repo.index.stages
        }

    def _stage(self, name: str):
        if name not in self._stages:
            raise IdentityError(f"{self.root / 'dvc.yaml'}: no stage {name!r}; known are {sorted(self._stages)}")
        return self._stages[name]

    def names(self) -> list[str]:
        """Every stage of the workspace."""
        return sorted(self._stages)

    def output(self, name: str) -> Path:
        """The one folder or file that a stage makes."""
        (out,) = self._stage(name).outs
        return Path(out.fs_path)

    def hash_on_disk(self, name: str) -> str:
        """The hash that DVC gives to what lies on disk now.

        Raises:
            IdentityError: the output is missing.
        """
        (out,) = self._stage(name).outs
        if not out.exists:
            raise IdentityError(f"{out.fs_path}: missing, so it has no hash; materialize {name} first")
        return out.get_hash().value

    def locked_hash(self, name: str) -> str | None:
        """The hash in dvc.lock (or in the .dvc file of an ingested shard); None where nothing was committed."""
        (out,) = self._stage(name).outs
        return out.hash_info.value if out.hash_info else None

    def is_current(self, name: str) -> bool:
        """Whether command, inputs, code, parameters and output are all as they were committed."""
        from dvc.repo import lock_repo

        # `Repo.status` would parse dvc.yaml and dvc.lock anew to find the stage.
        with lock_repo(self._repo):
            return not self._stage(name).status()

    def commit(self, name: str) -> str:
        """Move the output of a stage into DVC's cache and write its hashes into dvc.lock.

        Returns:
            The locked hash, equal to what `hash_on_disk` said.

        Raises:
            IdentityError: the output changed while it was being committed.
        """
        before = self.hash_on_disk(name)
        self._repo.commit(self._stage(name).addressing, force=True)
        self.refresh()
        if (locked := self.locked_hash(name)) != before:
            raise IdentityError(
                f"{self.output(name)}: was {before} and is {locked} after the commit; "
                "something else writes to it, stop that and run again"
            )
        return before

    def add(self, path: Path) -> str:
        """Track a folder that no stage makes (an ingested raw shard) and return its hash."""
        (stage,) = self._repo.add(str(path))
        self.refresh()
        return stage.outs[0].hash_info.value

    def restore(self, name: str) -> None:
        """Bring a committed output back from DVC's cache, else from the remote.

        Raises:
            IdentityError: neither holds it.
        """
        from dvc.exceptions import DvcException

        for bring_back in (self._repo.checkout, self._repo.pull):
            try:
                bring_back(targets=[self._stage(name).addressing], force=True)
                return
            except DvcException as error:
                reason = str(error).splitlines()[0]
        raise IdentityError(
            f"{self.output(name)}: missing, and neither DVC's cache nor a remote holds it ({reason}); "
            "ingest the videos again"
        )

    def bring(self, version: str, folder: Path) -> None:
        """Write the folder that DVC knows by a hash, from its cache, else from the remote; nothing tracked is touched.

        Raises:
            IdentityError: neither holds it whole.
        """
        from dvc.exceptions import DvcException
        from dvc.fs import localfs
        from dvc_data.hashfile import load
        from dvc_data.hashfile.checkout import CheckoutError, checkout
        from dvc_data.hashfile.hash_info import HashInfo
        from dvc_objects.errors import ObjectFormatError

        if not _HASH.fullmatch(version):
            raise IdentityError(f"{version!r} is no hash of DVC's; name one out of dvc.lock")
        info, cache = HashInfo("md5", version), self._repo.cache.local
        try:
            if not cache.exists(version) or not all(cache.exists(part.value) for *_, part in load(cache, info)):
                self._repo.cloud.pull([info])
            checkout(str(folder), localfs, load(cache, info), cache, force=True, quiet=True)
        except (DvcException, CheckoutError, ObjectFormatError, OSError) as error:
            raise IdentityError(
                f"{version}: neither DVC's cache nor a remote holds it ({type(error).__name__}); `dvc fetch` it"
            ) from error

    def refresh(self) -> None:
        """Read dvc.yaml and dvc.lock anew, after someone else committed."""
        self.__dict__.pop("_stages", None)
        self._repo._reset()

    def code_version(self, asset: str) -> str:
        """A hash over what decides a result besides its data: the code that dvc.yaml lists, and the parameters.

        Both are read from the stage, so that Dagster calls an asset stale by its code exactly when DVC does.
        """
        import hashlib

        stages = [stage for name, stage in self._stages.items() if name.split("@")[0] == asset]
        for stage in stages:
            parts = {
                dep.def_path: dep.read_params() if hasattr(dep, "read_params") else dep.get_hash().value
                for dep in stage.deps
                if not dep.def_path.startswith(("data/", "reports/"))
            }
            if parts:
                return hashlib.md5(json.dumps(parts, sort_keys=True).encode()).hexdigest()
        return "ingested"
