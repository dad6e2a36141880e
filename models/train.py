"""Trains a checkpoint in a process of its own: `python -m models.train --help`.

`--out` appears only when training has really finished. The resumable state lies in `--work/last.ckpt`; a run
that was killed goes on from there to the same weights, bit for bit, as long as parameters, data and code are
the same. Exit codes: 0 done, 1 training failed, 2 bad input, 143 stopped by SIGTERM.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
import transformers
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.exceptions import SIGTERMException

from models.batching import QuestionData, StepBatches
from models.checkpoints import (
    ResumableState,
    forget_best,
    forget_state,
    published_weights,
    resumable,
    write_checkpoint,
)
from models.data import ClipStore, Question, TreeMaker, files_identity, groups_of, questions_of
from models.evaluate import Evaluation
from models.learner import Learner, base_sha256, build_learner
from models.memory import keep_freed_memory
from models.module import PARTS, DivergedError, QuestionAnswering, part_of
from models.parameters import TrainingParameters
from models.progress import Progress, ProgressLines, print_progress
from models.prompt import Prompt
from models.screening import InputError, Screening
from models.stages import total_steps

STOPPED = 143


@dataclass(frozen=True)
class Split:
    """Questions of one side of a release, and the SHA-256 of their file."""

    questions: list[Question]
    sha256: str


@dataclass(frozen=True)
class Material:
    """What a training works with.

    Attributes:
        questions: by side, those that can be used.
        maker: turns them into trees.
        learner: the model.
        channels: of the prior features.
        hashes: of the splits and the clip files.
        skipped: what training.json says of questions that were left out.
    """

    questions: dict[str, list[Question]]
    maker: TreeMaker
    learner: Learner
    channels: int
    hashes: tuple[str, ...]
    skipped: dict[str, dict[str, int]]


def read_split(splits: Path, side: str) -> Split:
    """The questions of `train.parquet` or `val.parquet`.

    Raises:
        InputError: if the file is missing or no Parquet file.
    """
    import pyarrow
    import pyarrow.parquet

    path = splits / f"{side}.parquet"
    if not path.is_file():
        raise InputError(f"{path} is missing: seal a release of the questions first")
    content = path.read_bytes()
    try:
        table = pyarrow.parquet.read_table(io.BytesIO(content))
    except pyarrow.ArrowInvalid as error:
        raise InputError(f"{path} is no Parquet file ({error}): seal the release again") from error
    return Split(questions_of(table, with_answer=True), hashlib.sha256(content).hexdigest())


def prepare(splits: Path, videos: Path, geometry: Path, parameters: TrainingParameters) -> Material:
    """Read the splits, leave out or refuse what cannot be used, and build the model.

    Raises:
        ValueError: for bad input, in one line.
    """
    sides = ("train", "val") if parameters.evaluate_every else ("train",)
    read = {side: read_split(splits, side) for side in sides}
    screenings = {side: Screening(parameters) for side in sides}
    clips = ClipStore(videos, geometry, parameters)
    usable = {side: screenings[side].with_usable_clips(read[side].questions, clips) for side in sides}
    channels = prior_channels(clips, usable["train"])
    learner = build_learner(usable["train"], channels, parameters)
    clips.patching = learner.model.patching
    prompt = Prompt(learner.tokenizer, parameters.max_text_tokens)
    maker = TreeMaker(prompt, clips, learner.model, guided=parameters.guidance.given)
    context = learner.model.config.text_config.max_position_embeddings
    for side, screening in screenings.items():
        usable[side] = screening.with_usable_text(usable[side], maker, context)
        rank_zero_only(screening.say)(len(read[side].questions), side)
    files = files_identity(clips, groups_of([question for side in sides for question in usable[side]]))
    skipped = {"skipped" if side == "train" else f"skipped_{side}": dict(screenings[side].skipped) for side in sides}
    return Material(usable, maker, learner, channels, (*(split.sha256 for split in read.values()), files), skipped)


def prior_channels(clips: ClipStore, questions: Sequence[Question]) -> int:
    """Channels of the prior features, the same for all clips that passed the screening; 0 where none are read."""
    shape = clips.shape(questions[0].shard, questions[0].clip)
    return shape.prior[3] if shape.prior else 0


def run_identity(parameters: TrainingParameters, inputs: Sequence[str | None]) -> str:
    """Digest of what decides the weights: parameters, hashes of all inputs and the code of this package."""
    digest = hashlib.sha256(json.dumps(parameters.to_mapping(), sort_keys=True).encode())
    digest.update(json.dumps(list(inputs)).encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    for library in (torch, transformers, lightning):
        digest.update(library.__version__.encode())
    return digest.hexdigest()


def mlflow_loggers() -> list:
    """MLflow's logger where the caller has opened a run, else none; curves.csv is always written."""
    uri, run = os.environ.get("MLFLOW_TRACKING_URI"), os.environ.get("MLFLOW_RUN_ID")
    if not uri or not run:
        return []
    from lightning.pytorch.loggers import MLFlowLogger

    return [MLFlowLogger(run_id=run, tracking_uri=uri, log_model=False)]


def strategy_of(parameters: TrainingParameters) -> Any:
    """How the devices share the work, as Lightning takes it."""
    if parameters.strategy == "fsdp":
        return ModelParallelStrategy(data_parallel_size=parameters.processes, tensor_parallel_size=1)
    if parameters.strategy == "auto" and parameters.processes == 1:
        return "auto"
    # Which weights a loss reaches depends on stage, guidance and module; wrongly told that it reaches all, DDP would
    # silently leave each process with gradients of its own.
    return DDPStrategy(find_unused_parameters=True)


def fit(
    module: QuestionAnswering,
    data: QuestionData,
    parameters: TrainingParameters,
    work: Path,
    identity: str,
    callbacks: Sequence[Callback],
) -> None:
    """Run Lightning until the last step.

    Raises:
        DivergedError: if the loss is no longer a number.
        SIGTERMException: if the process was asked to stop; the state has been saved.
        RuntimeError: if Lightning came back early for any other reason.
    """
    warnings.filterwarnings("ignore", message=".*resuming from a checkpoint that ended before.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    total = total_steps(parameters)
    state = resumable(work, identity)
    if state is None:
        forget_best(work)
    trainer = lightning.Trainer(
        accelerator=parameters.accelerator,
        devices=parameters.devices,
        num_nodes=parameters.nodes,
        strategy=strategy_of(parameters),
        # Lightning's bf16-true would also round positions and times; here the weights alone are bfloat16.
        precision="bf16-mixed" if parameters.precision == "bf16-true" else parameters.precision,
        accumulate_grad_batches=parameters.accumulate,
        max_steps=total,
        max_epochs=-1,
        log_every_n_steps=1,
        gradient_clip_val=parameters.clip_norm or None,
        # Some kernels have no deterministic form on GPUs; there a warning has to do.
        deterministic=True if parameters.accelerator == "cpu" else "warn",
        default_root_dir=work,
        logger=mlflow_loggers(),
        callbacks=[*callbacks, ResumableState(work, parameters.checkpoint_every, identity)],
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data, ckpt_path=state, weights_only=True)
    if not trainer.state.finished or trainer.global_step < total:
        raise RuntimeError(f"training stopped at step {trainer.global_step} of {total}")


def training_report(module: QuestionAnswering, questions: Sequence[Question]) -> dict[str, Any]:
    """What training.json says: no clock, no path of this machine."""
    sizes = dict.fromkeys(PARTS, 0)
    for name, parameter in module.model.named_parameters():
        sizes[part_of(name)] += parameter.numel()
    last = {name: [row[name] for row in module.curves if name in row][-5:] for name in ("loss", "accuracy")}
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    if module.parameters_used.lora.rank:
        import peft

        versions["peft"] = peft.__version__
    return {
        "parameters": module.parameters_used.to_mapping(),
        "steps": total_steps(module.parameters_used),
        **{name: round(float(np.mean(values)), 6) for name, values in last.items() if values},
        "questions_seen": module.questions_seen,
        "train_questions": len(questions),
        "train_clips": len({question.clip for question in questions}),
        "weights": sizes,
        "versions": {**versions, "lightning": lightning.__version__},
    }


def train(
    splits: Path,
    videos: Path,
    geometry: Path,
    out: Path,
    work: Path,
    parameters: TrainingParameters,
    progress: Progress = print_progress,
) -> None:
    """Train on the split's train.parquet and write the checkpoint folder `out`.

    Args:
        splits: folder with train.parquet, and val.parquet where training is to be evaluated.
        videos: folder with `<shard>/frames/<clip>.safetensors`.
        geometry: folder with `<shard>/<clip>.safetensors`.
        out: made, or replaced, when training has finished.
        work: keeps the resumable state and the best weights between attempts; afterwards best and last weights.
        parameters: all of them.
        progress: called every few seconds.

    Raises:
        ValueError: for bad input, in one line.
        DivergedError, SIGTERMException: as `fit`.
    """
    torch.set_num_threads(parameters.threads)
    keep_freed_memory()
    # Deterministic algorithms would also fill all new memory, to show who reads what was never written.
    torch.utils.deterministic.fill_uninitialized_memory = False
    work.mkdir(parents=True, exist_ok=True)
    material = prepare(splits, videos, geometry, parameters)
    maker, questions = material.maker, material.questions["train"]
    module = QuestionAnswering(material.learner.model, maker.prompt.letters, parameters)
    callbacks: list[Callback] = [ProgressLines(progress)]
    if parameters.evaluate_every:
        callbacks.insert(0, Evaluation(material.questions["val"], maker, parameters, work))
    base = base_sha256(parameters)
    identity = run_identity(parameters, [*material.hashes, base])
    started = time.monotonic()
    fit(module, QuestionData(StepBatches(questions, maker, parameters)), parameters, work, identity, callbacks)
    seconds = time.monotonic() - started
    weights, kept = published_weights(module, work)
    if not module.trainer.is_global_zero:
        return
    report = {**training_report(module, questions), "kept": kept, "base_sha256": base, **material.skipped}
    # A process that holds a shard of the weights makes the whole model anew to lay them over.
    learner = build_learner(questions, material.channels, parameters) if module.sharded else material.learner
    write_checkpoint(out, learner.model, learner.view, weights, learner.tokenizer, module.curves, report)
    timing = {"seconds_of_the_last_attempt": round(seconds, 1), "finished": time.strftime("%FT%TZ", time.gmtime())}
    (work / "timing.json").write_text(json.dumps(timing, indent=1) + "\n")
    forget_state(work)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m models.train", description=__doc__)
    for name, meaning in (
        ("splits", "folder with train.parquet"),
        ("videos", "folder with the shards' frames"),
        ("geometry", "folder with the shards' scene records"),
        ("out", "checkpoint folder to make"),
        ("work", "folder for the resumable state"),
    ):
        parser.add_argument(f"--{name}", type=Path, required=True, help=meaning)
    parser.add_argument("--parameters", type=Path, help="JSON with training parameters; none means the defaults")
    given = parser.parse_args(arguments)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    try:
        mapping = json.loads(given.parameters.read_text()) if given.parameters else {}
        parameters = TrainingParameters.from_mapping(mapping)
        train(given.splits, given.videos, given.geometry, given.out, given.work, parameters)
    except SIGTERMException:
        complain("stopped by SIGTERM; the state is saved and the next run goes on from it")
        return STOPPED
    except DivergedError as error:
        complain(f"training failed: {error}")
        return 1
    except (ValueError, OSError) as error:
        # An error of a loading process brings its whole traceback; its last line is the message.
        complain(f"bad input: {str(error).strip().splitlines()[-1]}")
        return 2
    return 0


@rank_zero_only
def complain(line: str) -> None:
    """A line on stderr, once however many processes fail."""
    print(line, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
