"""What the laptop profile learns on scenes it has never seen, what each part of the model is worth, and what it costs.

The main rows, the laptop profile and plain SFT, are whole trainings, as their users run them. Those of the ablation
start from a text-only stage that is learned once for each seed, and have fewer steps (`SHORT`). What has no geometry
module to guide spends the steps of that stage on the questions, four for one, for that is about what they cost. An hour
and more on two cores: what is finished is kept in `.cache` until a parameter or the code of the model changes, so that
a bench that was stopped goes on.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from assets.reuse import key_of
from assets.workspace import Workspace
from benchmarks.figure import Figure
from benchmarks.training.world import SHARD, World, world
from models.parameters import GuidanceParameters, TrainingParameters
from models.predict import predict
from validations.blind import audit_data_set
from validations.blind_statistics import Share, clustered_share

SEEDS = (0, 1, 2)
CHANCE = 0.25
CODE = (Path(__file__), *(Path(__file__).parents[2] / "models").glob("*.py"))
WITHOUT_GROUNDING = dataclasses.asdict(GuidanceParameters.silent()) | {"options": GuidanceParameters().options}
NO_GROUNDING = {"naming_steps": 0, "grounding_steps": 0}
SHORT = {"naming_steps": 150, "grounding_steps": 150, "steps": 50}
# Without a shared prefix a question costs as much as a clip.
ALONE = {"questions_per_clip": 4, "geometry": {"variant": "fused"}}


def unguided(naming_steps: int, grounding_steps: int, steps: int) -> dict[str, Any]:
    """As long a training without guidance: four steps of the geometry module alone become one on questions."""
    steps += (naming_steps + grounding_steps) // 4
    return {**NO_GROUNDING, "steps": steps, "guidance": WITHOUT_GROUNDING}


LAPTOP = {name: getattr(TrainingParameters(), name) for name in SHORT}
MAIN: dict[str, dict[str, Any]] = {"laptop": {}, "sft": {**unguided(**LAPTOP), "geometry": {"variant": "none"}}}
SHORT_UNGUIDED = unguided(**SHORT)
ABLATION: dict[str, dict[str, Any]] = {
    "none": {**SHORT_UNGUIDED, "geometry": {"variant": "none"}},
    "addition": {**SHORT_UNGUIDED, "geometry": {"variant": "addition"}},
    "concatenation": {**SHORT_UNGUIDED, "geometry": {"variant": "concatenation", "merge_time": 2, "merge_space": 4}},
    "gsm": SHORT_UNGUIDED,
    "gsm_grounded": SHORT,
    "fused": {**SHORT_UNGUIDED, **ALONE},
    "fused_grounded": {**SHORT, **ALONE},
    "queries_8_grounded": {**SHORT, "geometry": {"queries": 8}},
    "queries_32_grounded": {**SHORT, "geometry": {"queries": 32}},
}


@dataclass(frozen=True)
class Run:
    """A finished training and how well it answers.

    Attributes:
        right: (n,) whether each held-out question is answered right.
        seconds: of training, without the text-only stage where it is shared.
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
    parts = {"laptop": TrainingParameters().to_mapping(), "world": made.root.name}
    bench = Bench(made, workspace.root / ".cache" / f"learning-{key_of(parts, CODE)[:12]}")
    timed = bench.whole(SEEDS[0], "laptop", TrainingParameters().threads).seconds
    with ThreadPoolExecutor(2) as pool:
        started = {place: pool.submit(bench.whole, *place) for place in product(SEEDS, MAIN)}
        list(pool.map(bench.read, SEEDS))
        started |= {place: pool.submit(bench.variant, *place) for place in product(SEEDS, ABLATION)}
        runs = {place: job.result() for place, job in started.items()}
    return bench.main_rows(runs, timed) | bench.ablation(runs) | _audited(made)


class Bench:
    """Trainings on one world, and their answers; what is in the folder `work` already is not made again."""

    def __init__(self, made: World, work: Path) -> None:
        work.mkdir(parents=True, exist_ok=True)
        self.world, self.work, self.questions = made, work, made.held_out()
        self.answers = np.array(self.questions["answer"].to_pylist())
        self.clusters = [np.array(self.questions[name].to_pylist()) for name in ("quad", "clip")]

    def whole(self, seed: int, name: str, threads: int = 1) -> Run:
        """A main row, all its stages."""
        return self._run(f"{name}-{seed}", {**MAIN[name], "seed": seed}, threads)

    def read(self, seed: int) -> None:
        """The text-only stage that the ablation's rows of a seed begin with."""
        only = {**NO_GROUNDING, "steps": 0, "geometry": {"variant": "none"}, "guidance": WITHOUT_GROUNDING}
        self._train(f"read-{seed}", {**only, "seed": seed})

    def variant(self, seed: int, name: str) -> Run:
        """A row of the ablation."""
        base = {"base": str(self.work / f"read-{seed}"), "reading_steps": 0, "seed": seed}
        return self._run(f"{name}-{seed}", {**base, **ABLATION[name]})

    def _run(self, name: str, changes: dict[str, Any], threads: int = 1) -> Run:
        """Train, and ask the held-out questions."""
        seconds = self._train(name, changes, threads)
        report = json.loads((self.work / name / "training.json").read_text())
        return Run(self.right(name), seconds, report["steps"], sum(report["questions_seen"].values()))

    def right(self, name: str, what: str = "seen") -> np.ndarray:
        """(n,) whether each held-out question is answered right by a trained row: "seen", "blind" or "shuffled"."""
        kept = self.work / f"{name}.{what}.npy"
        if not kept.is_file():
            geometry = self.shuffled() if what == "shuffled" else self.world.geometry
            shares = predict(self.work / name, self.questions, self.world.videos, geometry, blind=what == "blind")
            partial = kept.with_suffix(".partial.npy")
            np.save(partial, np.array(list("ABCD"))[shares.argmax(1)] == self.answers)
            partial.replace(kept)
        return np.load(kept)

    def shuffled(self) -> Path:
        """A folder in which each held-out clip has the scene record of another."""
        folder = self.work / "shuffled" / SHARD
        folder.mkdir(parents=True, exist_ok=True)
        clips = sorted(set(self.questions["clip"].to_pylist()))
        for clip, other in zip(clips, clips[1:] + clips[:1], strict=True):
            link = folder / f"{clip}.safetensors"
            if not link.is_symlink():
                link.symlink_to((self.world.geometry / SHARD / f"{other}.safetensors").resolve())
        return folder.parent

    def main_rows(self, runs: dict[tuple[int, str], Run], timed: float) -> dict[str, Figure]:
        """The laptop profile beside what does not see the geometry, and beside what is not given it."""
        laptop, sft = ([runs[seed, name].right for seed in SEEDS] for name in ("laptop", "sft"))
        blind = [self.right(f"laptop-{seed}", "blind") for seed in SEEDS]
        shuffled = [self.right(f"laptop-{seed}", "shuffled") for seed in SEEDS]
        accuracy, without, unseen, other = (np.mean(rows) for rows in (laptop, sft, blind, shuffled))
        first = runs[SEEDS[0], "laptop"]
        said = f"{self._said(laptop)}; {first.steps} steps in all stages, {first.questions} questions seen"
        return {
            "gsm_accuracy": Figure(accuracy, 0.60, "higher", "share", said),
            "gsm_minus_sft": Figure(accuracy - without, 0.25, "higher", "share", f"SFT: {self._said(sft)}"),
            "gsm_minus_blind": Figure(accuracy - unseen, 0.25, "higher", "share", f"blind: {self._said(blind)}"),
            "shuffled_geometry_accuracy": Figure(
                other, 0.30, "lower", "share", f"each clip with another's geometry: {self._said(shuffled)}"
            ),
            "training_minutes": Figure(timed / 60, 6.0, "lower", "minutes", "all stages, two threads, start included"),
        }

    def ablation(self, runs: dict[tuple[int, str], Run]) -> dict[str, Figure]:
        """A row for each variant."""
        rows = {}
        for name in ABLATION:
            own = [runs[seed, name] for seed in SEEDS]
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

    def _train(self, name: str, changes: dict[str, Any], threads: int = 1) -> float:
        """Train in a process of its own, as the chain does; returns its seconds from start to finished checkpoint."""
        out, work, seconds = self.work / name, self.work / f"{name}.work", self.work / f"{name}.seconds"
        if seconds.is_file():
            return float(seconds.read_text())
        # A training that was stopped would go on, and its time be that of the rest alone.
        for folder in (out, work):
            shutil.rmtree(folder, ignore_errors=True)
        work.mkdir()
        (work / "parameters.json").write_text(json.dumps({**changes, "threads": threads}))
        command = [sys.executable, "-m", "models.train", "--splits", self.world.splits, "--out", out, "--work", work]
        command += ["--videos", self.world.videos, "--geometry", self.world.geometry]
        command += ["--parameters", work / "parameters.json"]
        began = time.monotonic()
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"training {name} ended with {done.returncode}: {done.stderr.strip()[-400:]}")
        took = time.monotonic() - began
        partial = seconds.with_suffix(".partial")
        partial.write_text(f"{took}\n")
        partial.replace(seconds)
        print(f"trained {name} in {took:.0f} s", file=sys.stderr)
        return took


def _audited(made: World) -> dict[str, Figure]:
    """The best reader that sees no video, on the same questions."""
    audit = audit_data_set(made.all_questions().to_pandas(), seed=0)
    best = audit.best()
    how = f"best reader without the video ({best.reader}), {best.n} questions, {best.low:.3f}-{best.high:.3f}"
    return {"learning_blind_readers": Figure(best.accuracy, 0.28, "lower", "share", how)}
