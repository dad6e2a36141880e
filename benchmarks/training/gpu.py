"""Speed and memory of training the 7B model on a GPU: `python -m benchmarks.training.gpu [FILE]`.

Prints the figures and, if asked, writes them to FILE. Needs torch, transformers and lightning, and peft for the
adapters; of the project `models` alone is imported. The weights are random, made on the device in bf16: speed and
memory do not depend on what they are. Full fine-tuning keeps gradients and AdamW's moments in bf16 too, so that all of
it fits on one card of 139 GiB; a real training keeps them in float32 and shards them over several cards.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.figure import Figure
from benchmarks.training.flops import peak_rate, row_tokens, update_flops
from benchmarks.training.steps import Losses, plain_losses, shared_losses, update
from benchmarks.training.workload import SEVEN_B, Shape, model_of, random_tree
from models.batch import Tree
from models.geometric_qwen import GeometricQwen
from models.lora import add_lora
from models.module import choose_trained
from models.parameters import LearningRates, LoraParameters, TrainingParameters
from models.pixels import QWEN2_5_PATCHING, TEMPORAL_PATCH

CLIPS = 4
"""In an update: the published recipe's 4 sequences per card, with 5 questions each where they share a prefix."""
WARM_UP, REPETITIONS = 2, 5
RATE = 1e-6
RANK = 16
GIGA = 1e9


@dataclass(frozen=True)
class Case:
    """One way of training.

    Attributes:
        prefix: what the names of its figures begin with.
        adapters: LoRA on the decoder instead of full fine-tuning.
        shared: all questions of a clip on one encoding; else one sequence per question.
        compiled: decoder layers by torch.compile, and the tree's mask by FlexAttention instead of a dense one.
    """

    prefix: str
    adapters: bool
    shared: bool
    compiled: bool

    @property
    def name(self) -> str:
        """On the command line."""
        return self.prefix.rstrip("_").replace("_", "-") or "full"

    @property
    def how(self) -> str:
        """In words."""
        trained = f"LoRA of rank {RANK} and the geometry module" if self.adapters else "full fine-tuning"
        form = "questions on a shared prefix" if self.shared else "one question per sequence"
        return f"{trained}, {form}{', decoder layers compiled' if self.compiled else ''}"


CASES = (
    Case("", False, True, True),
    Case("eager_", False, True, False),
    Case("plain_", False, False, True),
    Case("lora_", True, True, True),
    Case("lora_plain_", True, False, True),
)


@dataclass(frozen=True)
class Measured:
    """One case, measured.

    Attributes:
        seconds: of an update.
        tokens: slots the language model works on in an update.
        questions: learned from in an update.
        flops: that an update needs by definition.
        peak_bytes: of the device's memory, weights and optimizer included.
    """

    seconds: float
    tokens: int
    questions: int
    flops: float
    peak_bytes: int


def figures(shape: Shape = SEVEN_B, clips: int = CLIPS, asked: Sequence[Case] = CASES) -> dict[str, Figure]:
    """The cases on the GPU that is here; null where none is, or where a case does not fit or run."""
    if not torch.cuda.is_available():
        return figures_of({case: "no GPU here" for case in CASES}, shape, clips, "a GPU", None)
    device = torch.cuda.get_device_name()
    results = {case: _attempt(case, shape, clips) if case in asked else "was not asked for" for case in CASES}
    return figures_of(results, shape, clips, device, peak_rate(device))


def _attempt(case: Case, shape: Shape, clips: int) -> Measured | str:
    """The measurement, or in a line why there is none; one case must not take the others with it."""
    try:
        result = measured(case, shape, clips, "cuda", torch.bfloat16)
    except (RuntimeError, ImportError) as error:
        result = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    gc.collect()
    torch.cuda.empty_cache()
    print(f"{case.how}: {result}", file=sys.stderr, flush=True)
    return result


def measured(case: Case, shape: Shape, clips: int, device: str, dtype: torch.dtype) -> Measured:
    """Train for a few updates with gradient checkpointing and take the median time of all but the first.

    Raises:
        RuntimeError: if it does not fit or a kernel is missing.
        ImportError: if peft is not there and the case asks for adapters.
    """
    on_gpu = torch.device(device).type == "cuda"
    model = trainable(case, shape, device, dtype)
    trees = [random_tree(shape, seed) for seed in range(clips)]
    learned = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=RATE, fused=on_gpu)
    losses = shared_losses(model, trees) if case.shared else plain_losses(model, [_on(tree, model) for tree in trees])
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    seconds = [_timed(losses, optimizer, on_gpu) for _ in range(WARM_UP + REPETITIONS)][WARM_UP:]
    return Measured(
        seconds=statistics.median(seconds),
        tokens=sum(_slots(model, tree, case.shared) for tree in trees),
        questions=sum(len(tree.branches) for tree in trees),
        flops=update_flops(model, trees, case.shared).total,
        peak_bytes=torch.cuda.max_memory_allocated() if on_gpu else 0,
    )


def trainable(case: Case, shape: Shape, device: str, dtype: torch.dtype) -> GeometricQwen:
    """The model of a case, as `models.train` prepares it."""
    parameters = parameters_of(case, dtype)
    model = model_of(shape, dtype, device)
    # A causal mask SDPA's own kernels know; what a tree's mask leaves out, more than half of it, FlexAttention skips.
    model.attend_with(parameters.attention)
    if case.adapters:
        add_lora(model, parameters)
    choose_trained(model, parameters)
    model.activation_checkpointing_enable({"use_reentrant": False})
    # transformers has just made the inputs of both embeddings ask for gradients, which reentrant checkpointing needs;
    # here it would only send them through the frozen vision tower.
    model.disable_input_require_grads()
    if case.compiled:
        for layer in model.model.language_model.layers:
            layer.compile(dynamic=True)
    return model


def parameters_of(case: Case, dtype: torch.dtype) -> TrainingParameters:
    """What a training run of this case is told."""
    return TrainingParameters(
        learning_rates=LearningRates(language=RATE, vision=0.0, merger=RATE, geometry=RATE),
        lora=LoraParameters(rank=RANK if case.adapters else 0),
        precision="bf16-true" if dtype == torch.bfloat16 else "32-true",
        attention="flex_attention" if case.shared and case.compiled else "sdpa",
        gradient_checkpointing=True,
        compile=case.compiled,
        reading_steps=0,
        naming_steps=0,
        grounding_steps=0,
    )


def _on(tree: Tree, model: GeometricQwen) -> Tree:
    """The tree with its arrays on the model's device, where a loader would have put them by then."""
    patches = torch.as_tensor(tree.video.patches, dtype=model.dtype, device=model.device)
    features = torch.as_tensor(tree.prior.features, dtype=model.dtype, device=model.device)
    return replace(tree, video=replace(tree.video, patches=patches), prior=replace(tree.prior, features=features))


def _timed(losses: Losses, optimizer: torch.optim.Optimizer, on_gpu: bool) -> float:
    started = time.perf_counter()
    update(losses, optimizer)
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _slots(model: GeometricQwen, tree: Tree, shared: bool) -> int:
    prefix, lengths = row_tokens(model, tree, tree.branches)
    return sum(lengths) + prefix * (1 if shared else len(lengths))


def figures_of(
    results: dict[Case, Measured | str], shape: Shape, clips: int, device: str, rate: float | None
) -> dict[str, Figure]:
    """Figures of cases that were measured, or were not for the reason given, on a device of such a peak rate."""
    t, h, w = shape.grid
    what = (
        f"{shape.layers} layers {shape.hidden_size} wide with the published module, random weights, gradients and "
        f"AdamW's moments in bf16, gradient checkpointing, vision tower frozen, {clips} clips of {TEMPORAL_PATCH * t} "
        f"frames of {QWEN2_5_PATCHING.side * w}x{QWEN2_5_PATCHING.side * h} an update, {shape.questions} questions on "
        f"each, on {device}"
    )
    found: dict[str, Figure] = {}
    for case, result in results.items():
        found |= _case_figures(case, result, rate, what)
    by_prefix = {case.prefix: result for case, result in results.items()}
    for prefix in ("", "lora_"):
        found[f"{prefix}shared_prefix_speedup_gpu"] = _speedup(by_prefix[prefix], by_prefix[f"{prefix}plain_"], what)
    return found


def _case_figures(case: Case, result: Measured | str, rate: float | None, what: str) -> dict[str, Figure]:
    values = dict.fromkeys(("tokens", "questions", "mfu", "peak"))
    if isinstance(result, str):
        how = f"{result}; `python -m benchmarks.training.gpu` measures it: {case.how}; {what}"
    else:
        how = f"{result.seconds:.2f} s an update, median of {REPETITIONS}; {case.how}; {what}"
        values["tokens"], values["questions"] = result.tokens / result.seconds, result.questions / result.seconds
        values["mfu"] = None if rate is None else result.flops / result.seconds / rate
        values["peak"] = result.peak_bytes / GIGA
    peak_rate_said = "a device whose peak is not known" if rate is None else f"{rate / 1e12:.0f} dense bf16 TFLOP/s"
    counted = (
        f"of {peak_rate_said}; counted are 2 operations a weight and row forward, 2 for its input's gradient, 2 for "
        "its own where it learns, visible pairs of attention, nothing for recomputation"
    )
    bound = 0.4 if case == CASES[0] else None
    return {
        f"{case.prefix}tokens_per_second": Figure(
            values["tokens"], None, "higher", "1/s", f"{how}; slots of the language model's rows"
        ),
        f"{case.prefix}questions_per_second": Figure(values["questions"], None, "higher", "1/s", how),
        f"{case.prefix}mfu": Figure(values["mfu"], bound, "higher", "share", f"{how}; {counted}"),
        f"{case.prefix}peak_gb": Figure(values["peak"], None, "lower", "GB", f"{how}; weights and optimizer included"),
    }


def _speedup(shared: Measured | str, plain: Measured | str, what: str) -> Figure:
    value = None
    if isinstance(shared, Measured) and isinstance(plain, Measured):
        value = shared.questions / shared.seconds / (plain.questions / plain.seconds)
    how = "questions per second on shared prefixes over those with one question per sequence"
    return Figure(value, None, "higher", "ratio", f"{how}; {what}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code: 0 done, 1 a figure misses its bound."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training.gpu", description=__doc__)
    parser.add_argument("file", type=Path, nargs="?", help="JSON to write the figures to")
    parser.add_argument("--clips", type=int, default=CLIPS, help="clips in an update")
    names = {case.name: case for case in CASES}
    parser.add_argument("--cases", nargs="+", choices=names, default=list(names), help="which ones to measure")
    given = parser.parse_args(arguments)
    found = figures(clips=given.clips, asked=[names[name] for name in given.cases])
    for name, figure in found.items():
        print(figure.line(name))
    if given.file:
        partial = given.file.with_name(f"{given.file.name}.partial")
        page = {name: figure.as_dict() for name, figure in found.items()}
        partial.write_text(json.dumps({"figures": page}, indent=1, sort_keys=True) + "\n")
        partial.replace(given.file)
    return int(any(figure.missed for figure in found.values()))


if __name__ == "__main__":
    sys.exit(main())
