"""Trains a checkpoint in a process of its own: `python -m models.train --help`.

`--out` appears only when training has really finished. The resumable state lies in `--work/last.ckpt`; a run
that was killed goes on from there to the same weights, bit for bit, as long as parameters, data and code are
the same. Exit codes: 0 done, 1 training failed, 2 bad input, 143 stopped by SIGTERM.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import logging
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
import transformers
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException

from models.data import ClipStore, Question, QuestionData, StepBatches, TreeMaker, files_identity, questions_of
from models.geometric_qwen import GeometricQwen, geometry_config, load_base, tiny_config
from models.module import PARTS, DivergedError, QuestionAnswering, part_of
from models.parameters import TrainingParameters
from models.prompt import Prompt, build_tokenizer, question_text, special_ids

STOPPED = 143
PROGRESS_SECONDS = 3.0
Progress = Callable[[int, int, str], None]


class InputError(ValueError):
    """A file that training needs is missing or unreadable."""


class ResumableState(Callback):
    """Keeps `last.ckpt`: every few steps, and when SIGTERM asks for an end."""

    def __init__(self, path: Path, every: int, identity: str) -> None:
        self.path, self.every, self.identity = path, every, identity

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Save where it is time to; the file is replaced in one step."""
        if trainer.global_step % self.every == 0 or trainer.received_sigterm:
            partial = self.path.with_suffix(".partial")
            trainer.save_checkpoint(partial)
            os.replace(partial, self.path)

    def on_save_checkpoint(self, trainer: Any, module: Any, checkpoint: dict[str, Any]) -> None:
        """Says what the state belongs to."""
        checkpoint["identity"] = self.identity


class ProgressLines(Callback):
    """A line every few seconds, readable on a terminal and in a log."""

    def __init__(self, progress: Progress) -> None:
        self.progress, self.spoken = progress, 0.0

    def on_train_start(self, trainer: lightning.Trainer, module: QuestionAnswering) -> None:
        """Starts the clocks."""
        self.first_step, self.started = trainer.global_step, time.monotonic()
        self.first_seen = sum(module.questions_seen.values())

    def on_train_batch_end(self, trainer: lightning.Trainer, module: QuestionAnswering, *_: Any) -> None:
        """Speaks if it has been silent long enough."""
        now, step, total = time.monotonic(), trainer.global_step, trainer.max_steps
        if now - self.spoken < PROGRESS_SECONDS and step < total:
            return
        self.spoken = now
        pace = (step - self.first_step) / (now - self.started)
        asked = (sum(module.questions_seen.values()) - self.first_seen) / (now - self.started)
        stage = "reading" if step <= module.parameters_used.reading_steps else "videos"
        row = module.curves[-1] if module.curves else None
        learned = f"loss {row['loss']:.3f} · accuracy {row['accuracy']:.2f} · " if row else ""
        left = time.strftime("%M:%S", time.gmtime((total - step) / pace))
        self.progress(step, total, f"{stage} · {learned}{asked:.0f} questions/s · {left} left")


def print_progress(done: int, total: int, what: str) -> None:
    """Progress as a plain line that is seen at once, also through a pipe."""
    print(f"step {done}/{total} · {what}", flush=True)


def read_training_split(splits: Path) -> tuple[list[Question], str]:
    """The training questions and the SHA-256 of their file.

    Raises:
        InputError: if train.parquet is missing or no Parquet file.
    """
    import pyarrow
    import pyarrow.parquet

    path = splits / "train.parquet"
    if not path.is_file():
        raise InputError(f"{path} is missing: seal a release of the questions first")
    content = path.read_bytes()
    try:
        table = pyarrow.parquet.read_table(io.BytesIO(content))
    except pyarrow.ArrowInvalid as error:
        raise InputError(f"{path} is no Parquet file ({error}): seal the release again") from error
    return questions_of(table, with_answer=True), hashlib.sha256(content).hexdigest()


def build_model(
    questions: Sequence[Question], channels: int, parameters: TrainingParameters
) -> tuple[GeometricQwen, Any]:
    """The model to train and its tokenizer: from `base`, or the tiny one drawn from the seed."""
    geometry = geometry_config(parameters.geometry, channels)
    lightning.seed_everything(parameters.seed, workers=True, verbose=False)
    if parameters.base:
        model = load_base(parameters.base, geometry).train()
        return model, transformers.AutoTokenizer.from_pretrained(parameters.base)
    texts = {question_text(question.question, question.options) for question in questions}
    tokenizer = build_tokenizer(texts, parameters.tiny.vocabulary)
    return GeometricQwen(tiny_config(parameters.tiny, special_ids(tokenizer), geometry)), tokenizer


def run_identity(parameters: TrainingParameters, split: str, files: str) -> str:
    """Digest of what decides the weights: parameters, split, clip files and the code of this package."""
    digest = hashlib.sha256(json.dumps(parameters.to_mapping(), sort_keys=True).encode())
    digest.update(f"{split}|{files}".encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    for library in (torch, transformers, lightning):
        digest.update(library.__version__.encode())
    return digest.hexdigest()


def resumable(path: Path, identity: str) -> Path | None:
    """The saved state, if it belongs to the same run; another run's is left to be overwritten."""
    if not path.is_file():
        return None
    state = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    if state.get("identity") == identity:
        print(f"resuming at step {state['global_step']}", flush=True)
        return path
    print("starting over: the saved state belongs to other parameters, data or code", flush=True)
    return None


def mlflow_loggers() -> list:
    """MLflow's logger where the caller has opened a run, else none; curves.csv is always written."""
    uri, run = os.environ.get("MLFLOW_TRACKING_URI"), os.environ.get("MLFLOW_RUN_ID")
    if not uri or not run:
        return []
    from lightning.pytorch.loggers import MLFlowLogger

    return [MLFlowLogger(run_id=run, tracking_uri=uri, log_model=False)]


def fit(
    module: QuestionAnswering,
    data: QuestionData,
    parameters: TrainingParameters,
    work: Path,
    identity: str,
    progress: Progress,
) -> None:
    """Run Lightning until the last step.

    Raises:
        DivergedError: if the loss is no longer a number.
        SIGTERMException: if the process was asked to stop; the state has been saved.
        RuntimeError: if Lightning came back early for any other reason.
    """
    warnings.filterwarnings("ignore", message=".*resuming from a checkpoint that ended before.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    last = work / "last.ckpt"
    total = len(data.batches)
    trainer = lightning.Trainer(
        accelerator=parameters.accelerator,
        devices=1,
        precision=parameters.precision,
        max_steps=total,
        max_epochs=-1,
        log_every_n_steps=1,
        gradient_clip_val=parameters.clip_norm or None,
        deterministic=True,
        default_root_dir=work,
        logger=mlflow_loggers(),
        callbacks=[ResumableState(last, parameters.checkpoint_every, identity), ProgressLines(progress)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data, ckpt_path=resumable(last, identity), weights_only=True)
    if not trainer.state.finished or trainer.global_step < total:
        raise RuntimeError(f"training stopped at step {trainer.global_step} of {total}")


def write_checkpoint(out: Path, module: QuestionAnswering, tokenizer: Any, questions: Sequence[Question]) -> None:
    """Write the finished model folder beside `out` and move it into place."""
    out.parent.mkdir(parents=True, exist_ok=True)
    partial, old = out.with_name(f".{out.name}.partial"), out.with_name(f".{out.name}.old")
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    module.model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    with (partial / "curves.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["step", "stage", "loss", "accuracy", "rate"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(module.curves)
    report = training_report(module, questions)
    (partial / "training.json").write_text(json.dumps(report, indent=1, sort_keys=True) + "\n")
    if out.exists():
        os.replace(out, old)
    os.replace(partial, out)
    shutil.rmtree(old, ignore_errors=True)


def training_report(module: QuestionAnswering, questions: Sequence[Question]) -> dict[str, Any]:
    """What training.json says: no clock, no path of this machine."""
    sizes = dict.fromkeys(PARTS, 0)
    for name, parameter in module.model.named_parameters():
        sizes[part_of(name)] += parameter.numel()
    last = module.curves[-5:]
    return {
        "parameters": module.parameters_used.to_mapping(),
        "steps": module.parameters_used.reading_steps + module.parameters_used.steps,
        "loss": round(float(np.mean([row["loss"] for row in last])), 6),
        "accuracy": round(float(np.mean([row["accuracy"] for row in last])), 6),
        "questions_seen": module.questions_seen,
        "train_questions": len(questions),
        "train_clips": len({question.clip for question in questions}),
        "weights": sizes,
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "lightning": lightning.__version__,
        },
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
        splits: folder with train.parquet.
        videos: folder with `<shard>/frames/<clip>.safetensors`.
        geometry: folder with `<shard>/<clip>.safetensors`.
        out: made, or replaced, when training has finished.
        work: keeps the resumable state and timing.json between attempts.
        parameters: all of them.
        progress: called every few seconds.

    Raises:
        ValueError: for bad input, in one line.
        DivergedError, SIGTERMException: as `fit`.
    """
    torch.set_num_threads(parameters.threads)
    work.mkdir(parents=True, exist_ok=True)
    questions, split = read_training_split(splits)
    clips = ClipStore(videos, geometry, parameters)
    channels = prior_channels(clips, questions) if parameters.geometry.queries else 0
    model, tokenizer = build_model(questions, channels, parameters)
    prompt = Prompt(tokenizer, parameters.max_text_tokens)
    per_second = model.config.vision_config.tokens_per_second
    batches = StepBatches(questions, TreeMaker(prompt, clips, channels, per_second, model.geometry_tokens), parameters)
    identity = run_identity(parameters, split, files_identity(clips, batches.groups))
    module = QuestionAnswering(model, prompt.letters, parameters)
    started = time.monotonic()
    fit(module, QuestionData(batches), parameters, work, identity, progress)
    seconds = time.monotonic() - started
    write_checkpoint(out, module, tokenizer, questions)
    timing = {"seconds_of_the_last_attempt": round(seconds, 1), "finished": time.strftime("%FT%TZ", time.gmtime())}
    (work / "timing.json").write_text(json.dumps(timing, indent=1) + "\n")
    (work / "last.ckpt").unlink(missing_ok=True)


def prior_channels(clips: ClipStore, questions: Sequence[Question]) -> int:
    """Channels of the prior features, as the first training clip has them; every clip must agree.

    Raises:
        ClipError: if a scene record is missing or damaged.
    """
    found = {}
    for shard, clip in sorted({(question.shard, question.clip) for question in questions}):
        found.setdefault(clips.prior(shard, clip, None).features.shape[-1], clip)
    if len(found) > 1:
        described = ", ".join(f"{channels} (clip {clip})" for channels, clip in found.items())
        raise InputError(f"prior features differ in their number of channels: {described}: use one estimator")
    return next(iter(found))


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
        print("stopped by SIGTERM; the state is saved and the next run goes on from it", file=sys.stderr)
        return STOPPED
    except DivergedError as error:
        print(f"training failed: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"bad input: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
