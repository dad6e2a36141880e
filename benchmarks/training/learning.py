"""What the laptop profile learns on scenes it has never seen, what each part of the model is worth, and what it costs.

Every row starts from the same text-only stage, learned once for each seed, so that variants differ in what they add to
it. The main rows have the laptop profile's steps, the ablation's rows fewer (`SHORT`). What has no geometry module to
guide spends the steps of that stage on the questions, four for one, for that is about what they cost.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from assets.workspace import Workspace
from benchmarks.figure import Figure
from benchmarks.training.world import SHARD, World, world
from models.parameters import GuidanceParameters, TrainingParameters
from models.predict import predict
from validations.blind import audit_data_set
from validations.blind_statistics import Share, clustered_share

SEEDS = (0, 1, 2)
CHANCE = 0.25
SILENT = {entry.name: 0.0 for entry in dataclasses.fields(GuidanceParameters)}
WITHOUT_GROUNDING = SILENT | {"options": GuidanceParameters().options}
NO_GROUNDING = {"naming_steps": 0, "grounding_steps": 0}
SHORT = {"naming_steps": 200, "grounding_steps": 300, "steps": 60}


def unguided(naming_steps: int, grounding_steps: int, steps: int) -> dict[str, Any]:
    """As long a training without guidance: four steps of the geometry module alone become one on questions."""
    steps += (naming_steps + grounding_steps) // 4
    return {**NO_GROUNDING, "steps": steps, "guidance": WITHOUT_GROUNDING}


LAPTOP = {name: getattr(TrainingParameters(), name) for name in SHORT}
SFT = {**unguided(**LAPTOP), "geometry": {"variant": "none"}}
SHORT_UNGUIDED = unguided(**SHORT)
ABLATION: dict[str, dict[str, Any]] = {
    "none": {**SHORT_UNGUIDED, "geometry": {"variant": "none"}},
    "addition": {**SHORT_UNGUIDED, "geometry": {"variant": "addition"}},
    "concatenation": {**SHORT_UNGUIDED, "geometry": {"variant": "concatenation", "merge_time": 2, "merge_space": 4}},
    "gsm": SHORT_UNGUIDED,
    "gsm_grounded": SHORT,
    "fused": {**SHORT_UNGUIDED, "geometry": {"variant": "fused"}},
    "fused_grounded": {**SHORT, "geometry": {"variant": "fused"}},
    "queries_8_grounded": {**SHORT, "geometry": {"queries": 8}},
    "queries_32_grounded": {**SHORT, "geometry": {"queries": 32}},
}


@dataclass(frozen=True)
class Run:
    """A finished training and how well it answers.

    Attributes:
        right: (n,) whether each held-out question is answered right.
        seconds: of training, without the shared text-only stage.
        steps: likewise.
        questions: seen in it.
    """

    right: np.ndarray
    seconds: float
    steps: int
    questions: int


def figures(workspace: Workspace) -> dict[str, Figure]:
    """All learning figures; trainings run two at a time on one thread each, but for the one that is timed."""
    made = world(workspace.root / ".cache")
    with tempfile.TemporaryDirectory(prefix="dsr-learning-") as folder:
        bench = Bench(made, Path(folder))
        timed = bench.timed()
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(bench.read, SEEDS))
            jobs = {"laptop": {}, "sft": SFT} | ABLATION
            started = {(name, seed): pool.submit(bench.run, name, seed, jobs[name]) for seed in SEEDS for name in jobs}
            runs = {place: job.result() for place, job in started.items()}
        return bench.main_rows(runs, timed) | bench.ablation(runs) | _audited(made)


class Bench:
    """Trainings on one world, and their answers."""

    def __init__(self, made: World, work: Path) -> None:
        self.world, self.work, self.questions = made, work, made.held_out()
        self.answers = np.array(self.questions["answer"].to_pylist())
        self.clusters = [np.array(self.questions[name].to_pylist()) for name in ("quad", "clip")]

    def timed(self) -> float:
        """Seconds of the laptop profile's training, all stages, alone on the machine with its own threads."""
        began = time.monotonic()
        self._train("timed", {"seed": SEEDS[0]}, threads=TrainingParameters().threads)
        return time.monotonic() - began

    def read(self, seed: int) -> None:
        """The text-only stage that all rows of a seed begin with."""
        only = {**NO_GROUNDING, "steps": 0, "geometry": {"variant": "none"}, "guidance": WITHOUT_GROUNDING}
        self._train(f"read-{seed}", {**only, "seed": seed})

    def run(self, name: str, seed: int, changes: dict[str, Any]) -> Run:
        """Train a row and ask it the held-out questions."""
        base = {"base": str(self.work / f"read-{seed}"), "reading_steps": 0, "seed": seed}
        began = time.monotonic()
        checkpoint = self._train(f"{name}-{seed}", {**base, **changes})
        seconds = time.monotonic() - began
        report = json.loads((checkpoint / "training.json").read_text())
        seen = sum(report["questions_seen"].values())
        return Run(self.right(checkpoint, self.world.geometry), seconds, report["steps"], seen)

    def right(self, checkpoint: Path, geometry: Path, blind: bool = False) -> np.ndarray:
        """(n,) whether each held-out question is answered right."""
        shares = predict(checkpoint, self.questions, self.world.videos, geometry, blind=blind)
        return np.array(list("ABCD"))[shares.argmax(1)] == self.answers

    def shuffled(self) -> Path:
        """A folder in which each held-out clip has the scene record of another."""
        folder = self.work / "shuffled" / SHARD
        if not folder.is_dir():
            folder.mkdir(parents=True)
            clips = sorted(set(self.questions["clip"].to_pylist()))
            for clip, other in zip(clips, clips[1:] + clips[:1], strict=True):
                source = self.world.geometry / SHARD / f"{other}.safetensors"
                (folder / f"{clip}.safetensors").symlink_to(source.resolve())
        return folder.parent

    def main_rows(self, runs: dict[tuple[str, int], Run], timed: float) -> dict[str, Figure]:
        """The laptop profile beside what does not see the geometry, and beside what is not given it."""
        laptop, sft = ([runs[name, seed].right for seed in SEEDS] for name in ("laptop", "sft"))
        checkpoints = [self.work / f"laptop-{seed}" for seed in SEEDS]
        blind = [self.right(checkpoint, self.world.geometry, blind=True) for checkpoint in checkpoints]
        shuffled = [self.right(checkpoint, self.shuffled()) for checkpoint in checkpoints]
        accuracy, without, unseen, other = (np.mean(rows) for rows in (laptop, sft, blind, shuffled))
        first = runs["laptop", SEEDS[0]]
        said = f"{self._said(laptop)}; {first.steps} steps after the reading stage, {first.questions} questions seen"
        return {
            "gsm_accuracy": Figure(accuracy, 0.60, "higher", "share", said),
            "gsm_minus_sft": Figure(accuracy - without, 0.25, "higher", "share", f"SFT: {self._said(sft)}"),
            "gsm_minus_blind": Figure(accuracy - unseen, 0.25, "higher", "share", f"blind: {self._said(blind)}"),
            "shuffled_geometry_accuracy": Figure(
                other, 0.30, "lower", "share", f"each clip with another's geometry: {self._said(shuffled)}"
            ),
            "training_minutes": Figure(timed / 60, 6.0, "lower", "minutes", "all stages, two threads, start included"),
        }

    def ablation(self, runs: dict[tuple[str, int], Run]) -> dict[str, Figure]:
        """A row for each variant."""
        rows = {}
        for name in ABLATION:
            own = [runs[name, seed] for seed in SEEDS]
            seconds, first = np.mean([run.seconds for run in own]), own[0]
            how = f"{self._said([run.right for run in own])}; {first.steps} steps, {first.questions} questions"
            value = float(np.mean([run.right for run in own]))
            rows[f"ablation_{name}"] = Figure(value, None, "higher", "share", f"{how}, {seconds:.0f} s on one thread")
        return rows

    def _said(self, rights: list[np.ndarray]) -> str:
        """Mean and spread over seeds, and the interval over questions of one quad or clip."""
        share = self.interval(rights)
        each = ", ".join(f"{np.mean(right):.3f}" for right in rights)
        return f"{len(self.answers)} held-out questions; seeds {each}; 95 % {share.low:.3f}-{share.high:.3f}"

    def interval(self, rights: list[np.ndarray]) -> Share:
        """Of the mean over seeds."""
        return clustered_share(np.mean(rights, axis=0), self.clusters, CHANCE)

    def _train(self, name: str, changes: dict[str, Any], threads: int = 1) -> Path:
        """Train in a process of its own, as the chain does; returns the checkpoint."""
        out, work = self.work / name, self.work / f"{name}.work"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        (work / "parameters.json").write_text(json.dumps({**changes, "threads": threads}))
        command = [sys.executable, "-m", "models.train", "--splits", self.world.splits, "--out", out, "--work", work]
        command += ["--videos", self.world.videos, "--geometry", self.world.geometry]
        command += ["--parameters", work / "parameters.json"]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"training {name} ended with {done.returncode}: {done.stderr.strip()[-400:]}")
        print(f"trained {name}", file=sys.stderr)
        return out


def _audited(made: World) -> dict[str, Figure]:
    """The best reader that sees no video, on the same questions."""
    audit = audit_data_set(made.all_questions().to_pandas(), seed=0)
    best = audit.best()
    how = f"best reader without the video ({best.reader}), {best.n} questions, {best.low:.3f}-{best.high:.3f}"
    return {"learning_blind_readers": Figure(best.accuracy, 0.28, "lower", "share", how)}
