"""What questions cost: time and memory for fifty thousand of them, how that grows, and how the reference compares."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from assets.processes import processes
from assets.questions.build import finish
from assets.questions.candidates import derive
from assets.questions.parameters import QuestionParameters
from assets.questions.row import QUESTIONS, write_table
from assets.videos.parameters import SampleWorldParameters
from assets.videos.split import SplitParameters, split_of
from benchmarks.figure import Figure
from benchmarks.questions.pool import MANY
from benchmarks.questions.reference_way import seconds_per_question
from benchmarks.questions.scenes import SHARD, identity, sample_world_record

FINISHED = 50_000
SCENES, MORE_SCENES = 230, 460
DRAWS = 64
WORKERS = 2


def figures(world: SampleWorldParameters) -> dict[str, Figure]:
    """Figures of the whole way from scene records to Parquet; each run has a process of its own."""
    small, large = (_measured(scenes, world) for scenes in (SCENES, MORE_SCENES))
    scale = FINISHED / small["questions"]
    each, each_of_many = (run["seconds"] / run["questions"] for run in (small, large))
    how = f"{small['questions']} questions of {SCENES} drawn scenes in {small['seconds']:.0f} s, scaled to 50,000"
    many = f"seconds per question at {large['questions']} questions over those at {small['questions']}"
    reference = seconds_per_question(world)
    return {
        "seconds_50k": Figure(
            small["seconds"] * scale, 240, "lower", "s", f"{how}; candidates, {DRAWS} draws, quads, Parquet"
        ),
        "derivation_seconds_50k": Figure(
            small["derivation"] * scale, 30, "lower", "s", "the same, candidates alone, answers derived once"
        ),
        "peak_gb_50k": Figure(small["peak_gb"], 4, "lower", "GB", "largest process plus its workers' largest"),
        "growth_1m": Figure(
            None, 1.2, "lower", "ratio", "one million as rows of Python needs more memory than is here; see growth_2x"
        ),
        "growth_2x": Figure(each_of_many / each, 1.2, "lower", "ratio", many),
        "speedup_reference": Figure(
            reference / each,
            None,
            "higher",
            "ratio",
            f"{reference * 1e3:.0f} ms a question the reference's way over ours",
        ),
    }


def _measured(scenes: int, world: SampleWorldParameters) -> dict[str, float]:
    """One run in a process of its own, so that its largest memory is its own too."""
    command = [sys.executable, "-m", "benchmarks.questions.cost", str(scenes), world.model_dump_json()]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def run(scenes: int, world: SampleWorldParameters) -> dict[str, float]:
    """Seconds, questions and memory of making questions of so many scenes."""
    parameters = QuestionParameters(draws=DRAWS, max_per_clip=MANY)
    records = [sample_world_record(number, world) for number in range(scenes)]
    started = time.perf_counter()
    _derived(records, parameters.model_copy(update={"draws": 1, "min_stability": 0.0}))
    derivation = time.perf_counter() - started
    started = time.perf_counter()
    candidates = _derived(records, parameters)
    questions, _ = finish(candidates, parameters, lambda clip: split_of(clip, SplitParameters()))
    with tempfile.TemporaryDirectory() as folder:
        write_table(questions, QUESTIONS, Path(folder) / "questions.parquet")
    seconds = time.perf_counter() - started
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    kilobytes = resource.getrusage(who[0]).ru_maxrss + WORKERS * resource.getrusage(who[1]).ru_maxrss
    return {
        "questions": len(questions),
        "seconds": seconds,
        "derivation": derivation,
        "peak_gb": kilobytes / 2**20,
    }


def _derived(records: list, parameters: QuestionParameters) -> list[dict]:
    with processes(WORKERS) as workers:
        derived = workers.map(partial(_rows, parameters=parameters), enumerate(records), chunksize=4)
        return [row for rows in derived for row in rows]


def _rows(numbered: tuple, parameters: QuestionParameters) -> list[dict]:
    number, record = numbered
    return derive(record, identity(f"sample world {number}"), SHARD, True, parameters).rows


if __name__ == "__main__":
    print(json.dumps(run(int(sys.argv[1]), SampleWorldParameters.model_validate_json(sys.argv[2]))))
