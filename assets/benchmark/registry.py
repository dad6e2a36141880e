"""Which checkpoint is champion: versions of one registered model in MLflow, with aliases, decisions and their evidence.

A version stands for a checkpoint that DVC holds under the hash in its tag `dvc.checkpoint`. The answers that it was
judged by are an artifact of the MLflow run that judged it: they must outlive the report folder, which the next report
replaces and `dvc gc` then forgets, for as long as the version itself is compared with others.
"""

from __future__ import annotations

import json
import re
import tempfile
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from assets.benchmark.comparison import (
    Answers,
    Comparison,
    Scores,
    compare,
    read_answers,
    read_scores,
    why_not_comparable,
    write_answers,
)
from assets.benchmark.promotion import Decision, ReleaseChecks, decide, stays_champion
from assets.reuse import sha256_of
from assets.tracking import Tracking

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

MODEL = "dsr"
CHAMPION, CHALLENGER = "champion", "challenger"
PREDICTIONS = "predictions.parquet"

# Answers to a benchmark of general understanding; only where they were handed to the promotion.
GENERAL = "general.parquet"

LONGEST_NAME, LONGEST_REASON = 100, 2000
_HASH = re.compile(r"[0-9a-f]{32}(\.dir)?")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class RegistryError(ValueError):
    """The registry does not hold what is asked for, or the request cannot be granted."""


@dataclass(frozen=True)
class Report:
    """A benchmark report as the registry sees it.

    Attributes:
        folder: holds `predictions.parquet`.
        version: DVC hash of the folder.
        checkpoint: DVC hash of the checkpoint that was asked.
        splits: DVC hash of the release.
        bench: sha256 of the bench.
        general: answers to a benchmark of general understanding; None where none were handed in.
    """

    folder: Path
    version: str
    checkpoint: str
    splits: str
    bench: str
    general: Answers | None = None

    @classmethod
    def read(cls, folder: Path, version: str) -> Report:
        """Read whom a report is about.

        Raises:
            RegistryError: its `metrics.json` is missing, or names no checkpoint, release or bench.
        """
        path = folder / "metrics.json"
        try:
            metrics = json.loads(path.read_text(encoding="utf-8"))
            named = (
                metrics["identity"]["checkpoint"],
                metrics["identity"]["splits"],
                metrics["protocol"]["bench_sha256"],
            )
            whole = [*map(_HASH.fullmatch, named[:2]), _SHA256.fullmatch(named[2])]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RegistryError(f"{path}: cannot be read ({type(error).__name__}); make benchmark again") from error
        if not all(whole):
            raise RegistryError(f"{path}: checkpoint, release or bench is no hash; make benchmark again")
        return cls(folder, version, *named)

    def tags(self) -> dict[str, str]:
        """What a version is tagged with, so that everything behind it can be found."""
        return {
            "dvc.checkpoint": self.checkpoint,
            "dvc.splits": self.splits,
            "dvc.benchmark": self.version,
            "bench.sha256": self.bench,
            f"sha256.{PREDICTIONS}": sha256_of(self.folder / PREDICTIONS),
        }


@dataclass(frozen=True)
class Standing:
    """What the registry says of one version, read off its tags and aliases."""

    version: int
    aliases: tuple[str, ...]
    tags: Mapping[str, str]

    def lines(self) -> list[str]:
        """For the screen: who it is, what was decided by whom, and why."""
        tags, roles = self.tags, f" ({', '.join(self.aliases)})" if self.aliases else ""
        kind = tags.get("promotion.kind", "")
        decided = tags.get("promotion.verdict", "not judged")
        by = f" by {tags.get('promotion.by', '')}, overriding the rule" if kind == "override" else ""
        head = f"version {self.version}{roles}: {decided}{by}; checkpoint {tags.get('dvc.checkpoint', 'unknown')}"
        lines = [head, *(f"  {line}" for line in tags.get("promotion.reason", "").splitlines())]
        return ["".join(c if c.isprintable() else "?" for c in line) for line in lines]


class Registry:
    """The registered model of one tracking store."""

    def __init__(self, tracking: Tracking):
        self.tracking = tracking

    @property
    def _client(self):
        from mlflow import MlflowClient

        self.tracking.prepare()
        return MlflowClient(tracking_uri=self.tracking.uri, registry_uri=self.tracking.uri)

    def _aliases(self) -> dict[str, int]:
        from mlflow.exceptions import MlflowException

        try:
            model = self._client.get_registered_model(MODEL)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return {}
        return {alias: int(version) for alias, version in model.aliases.items()}

    def standing(self, which: str | int) -> Standing | None:
        """What is known of the holder of an alias, or of a version; None where there is none.

        Args:
            which: "champion", "challenger", or the number of a version.
        """
        from mlflow.exceptions import MlflowException

        aliases = self._aliases()
        number = aliases.get(which) if isinstance(which, str) else which
        if number is None:
            return None
        try:
            version = self._client.get_model_version(MODEL, str(number))
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            return None
        held = tuple(sorted(alias for alias, holder in aliases.items() if holder == number))
        return Standing(number, held, dict(version.tags))

    def enter(self, report: Report, run_id: str) -> Standing:
        """Enter the checkpoint of a report as challenger, or find its version, and tie it to the report's answers.

        Args:
            report: of the checkpoint.
            run_id: of the MLflow run whose artifacts the answers are.
        """
        client, found = self._client, self._version_of(report.checkpoint)
        tags = {**report.tags(), "promotion.run_id": run_id}
        if report.general is not None:
            tags |= self._log_general(report.general, run_id)
        if found is None:
            if not self._exists():
                client.create_registered_model(MODEL, description="Checkpoints; DVC holds their bytes.")
            model = self.tracking.model_of(report.checkpoint)
            # A checkpoint that DVC brought in from elsewhere was never an entity of this tracking store.
            source = f"models:/{model.model_id}" if model else f"dvc:{report.checkpoint}"
            found = client.create_model_version(
                MODEL, source, model.source_run_id if model else None, model_id=model.model_id if model else None
            )
        for name, value in tags.items():
            client.set_model_version_tag(MODEL, found.version, name, value)
        if self._aliases().get(CHAMPION) != int(found.version):
            client.set_registered_model_alias(MODEL, CHALLENGER, found.version)
        return self.standing(int(found.version))

    def _log_general(self, general: Answers, run_id: str) -> dict[str, str]:
        """Keep the answers as an artifact, and say by tags which they are: they outlive later reports of a version."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / GENERAL
            write_answers(path, general)
            self._client.log_artifact(run_id, str(path))
            return {"general.sha256": general.bench, "general.run_id": run_id, f"sha256.{GENERAL}": sha256_of(path)}

    def _exists(self) -> bool:
        return bool(self._client.search_registered_models(filter_string=f"name = '{MODEL}'", max_results=1))

    def _version_of(self, checkpoint: str) -> ModelVersion | None:
        """The newest version of a checkpoint; its hash was checked to be one."""
        query = f"name = '{MODEL}' and tags.`dvc.checkpoint` = '{checkpoint}'"
        found = self._client.search_model_versions(query, max_results=100)
        return max(found, key=lambda version: int(version.version), default=None)

    def scores(self, standing: Standing) -> Scores:
        """The answers to the bench that a version was judged by, from the artifacts of its run.

        Raises:
            RegistryError: they are gone, or are not the ones that were judged.
            ComparisonError: they cannot be read.
        """
        with self._artifact(standing, PREDICTIONS, "promotion.run_id") as path:
            return read_scores(path, standing.tags.get("bench.sha256", ""))

    def general(self, standing: Standing) -> Answers:
        """Its answers to a benchmark of general understanding; errors as `scores`."""
        with self._artifact(standing, GENERAL, "general.run_id") as path:
            return read_answers(path, standing.tags.get("general.sha256", ""))

    @contextmanager
    def _artifact(self, standing: Standing, file: str, run_tag: str) -> Iterator[Path]:
        from mlflow.artifacts import download_artifacts
        from mlflow.exceptions import MlflowException

        self.tracking.prepare()
        where = f"{file} of version {standing.version}"
        again = "make the benchmark of its checkpoint again, or override with `dsr promote --by NAME --reason TEXT`"
        with tempfile.TemporaryDirectory() as folder:
            try:
                run = standing.tags[run_tag]
                path = Path(download_artifacts(run_id=run, artifact_path=file, dst_path=folder))
            except (KeyError, OSError, MlflowException) as error:
                raise RegistryError(
                    f"{where}: not among MLflow's artifacts ({type(error).__name__}); {again}"
                ) from error
            if sha256_of(path) != standing.tags.get(f"sha256.{file}"):
                raise RegistryError(f"{where}: not the bytes that were judged; {again}")
            yield path

    def record(self, standing: Standing, decision: Decision) -> None:
        """Write a decision of the rule to a version's tags; a promotion moves the aliases, last of all."""
        before = self._aliases().get(CHAMPION)
        tags = {
            "promotion.verdict": decision.verdict,
            "promotion.kind": "rule",
            "promotion.reason": decision.reason,
            "promotion.champion": str(before) if before else "none",
            **{f"promotion.number.{name}": f"{value:.6g}" for name, value in decision.numbers.items()},
        }
        outdated = [name for name in standing.tags if name.startswith("promotion.number.") and name not in tags]
        outdated += [name for name in ("promotion.by",) if name in standing.tags]
        for name in outdated:
            self._client.delete_model_version_tag(MODEL, str(standing.version), name)
        self._tag(standing.version, tags)
        if decision.promoted:
            self._crown(standing.version)

    def override(self, by: str, reason: str, version: int | None = None) -> Standing:
        """Make a version champion because a person says so; what the rule had decided stays on record beside it.

        Args:
            by: who decides; up to 100 characters.
            reason: why; up to 2,000 characters.
            version: which; the challenger where None.

        Raises:
            RegistryError: name or reason is empty, too long or no plain text; or no such version; or it is champion.
        """
        by, reason = _plain("--by", by, LONGEST_NAME), _plain("--reason", reason, LONGEST_REASON)
        chosen = self.standing(CHALLENGER if version is None else version)
        if chosen is None:
            missing = "no challenger stands" if version is None else f"there is no version {version}"
            raise RegistryError(f"registered model {MODEL}: {missing}; `dsr promote` shows what there is")
        if CHAMPION in chosen.aliases:
            raise RegistryError(f"version {chosen.version} is the champion already; nothing to override")
        kept = {
            f"promotion.rule.{name}": chosen.tags[f"promotion.{name}"]
            for name in ("verdict", "reason")
            if chosen.tags.get("promotion.kind") == "rule"
        }
        before = self._aliases().get(CHAMPION)
        decided = {"verdict": "promoted", "kind": "override", "by": by, "reason": reason}
        decided["champion"] = str(before) if before else "none"
        self._tag(chosen.version, kept | {f"promotion.{name}": value for name, value in decided.items()})
        self._crown(chosen.version)
        return self.standing(chosen.version)

    def _tag(self, version: int, tags: Mapping[str, str]) -> None:
        client = self._client
        for name, value in tags.items():
            client.set_model_version_tag(MODEL, str(version), name, value)

    def _crown(self, version: int) -> None:
        self._client.set_registered_model_alias(MODEL, CHAMPION, str(version))
        if self._aliases().get(CHALLENGER) == version:
            self._client.delete_registered_model_alias(MODEL, CHALLENGER)


def _plain(name: str, text: str, most: int) -> str:
    """Text of a person, as one line of printable characters."""
    text = " ".join(text.split())
    if not 0 < len(text) <= most:
        raise RegistryError(f"{name}: {len(text)} characters; give 1 to {most}")
    if bad := [character for character in text if unicodedata.category(character)[0] == "C"]:
        raise RegistryError(f"{name}: holds {bad[0]!r}, which cannot be shown; give plain text")
    return text


def judge(
    tracking: Tracking, report: Report, release: ReleaseChecks, tags: Mapping[str, str]
) -> tuple[Standing, Decision]:
    """Enter the checkpoint of a report in the registry, decide on it, and record the decision with its evidence.

    A champion that is measured again keeps its place; its answers to the new bench are what challengers meet.

    Args:
        tracking: the store.
        report: of the checkpoint.
        release: checks of the data that it learned from.
        tags: of the MLflow run.

    Raises:
        RegistryError, ComparisonError: the report's or the champion's answers cannot be read.
    """
    import mlflow

    registry = Registry(tracking)
    answers = read_scores(report.folder / PREDICTIONS, report.bench)
    with tracking.run("promotion", tags, {}) as run:
        mlflow.log_artifact(str(report.folder / PREDICTIONS))
        entered = registry.enter(report, run.info.run_id)
        if CHAMPION in entered.aliases:
            decision = stays_champion(entered.version, answers)
        else:
            decision = _against_champion(registry, entered, answers, release)
            registry.record(entered, decision)
        page = {"version": entered.version, "verdict": decision.verdict, "reason": decision.reason}
        mlflow.log_text(
            json.dumps(page | {"numbers": dict(decision.numbers)}, indent=1, sort_keys=True), "decision.json"
        )
    return registry.standing(entered.version), decision


def _against_champion(registry: Registry, entered: Standing, answers: Scores, release: ReleaseChecks) -> Decision:
    champion = registry.standing(CHAMPION)
    if champion is None:
        return decide(answers, None, release)
    return decide(answers, registry.scores(champion), release, _general(registry, entered, champion))


def _general(registry: Registry, challenger: Standing, champion: Standing) -> Comparison | str | None:
    """On general understanding, as `decide` takes it: what the champion was asked, the challenger has to be asked."""
    tag = f"sha256.{GENERAL}"
    if tag not in champion.tags:
        return None
    remedy = "run `dsr evaluate` on that benchmark, then `dsr promote --general FOLDER`"
    if tag not in challenger.tags:
        return f"not measured, and the champion's is on record; {remedy}"
    first, second = registry.general(challenger), registry.general(champion)
    if why := why_not_comparable(first, second):
        return f"{why}; {remedy}"
    return compare(first.right, second.right, first.clip)
