"""The training benchmark at tiny sizes: its two forms are two, its clocks and counters count, and it runs alone."""

import ast
import itertools
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.training import cost, gpu, memory, prefix
from benchmarks.training.flops import peak_rate, update_flops
from benchmarks.training.learning import Bench
from benchmarks.training.steps import plain_losses, shared_losses
from benchmarks.training.workload import SEVEN_B, model_of, random_tree
from benchmarks.training.world import SHARD, World
from models.batch import TreeBatch

TINY = replace(prefix.SMALL, layers=2, vision_depth=2, questions=2)
PRODUCTS = {"aten.mm", "aten.addmm", "aten.convolution"}
ROOT = Path(__file__).parents[2]
OURS = {path.parent.name for path in ROOT.glob("*/__init__.py")}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_both_forms_give_the_same_loss_and_gradients(checkpointing):
    loss, gradient = prefix.differing(0, checkpointing)
    assert loss <= 1e-5
    assert gradient <= 1e-4


def test_the_speedup_of_kept_memory_is_of_medians_and_of_real_steps():
    figure = memory.speedup(kept=(1.0, 9.0, 2.0), returned=(6.0, 3.0, 5.0))
    assert figure.value == 2.5 and "5.000 s a step as the C library does, 2.000 s" in figure.how
    assert memory.in_process("kept", steps=1) > 0.001


@pytest.mark.parametrize(("checkpointing", "passes"), [(False, 1), (True, 2)])
def test_checkpointing_computes_a_layer_again(checkpointing, passes):
    model, trees = model_of(TINY), [random_tree(TINY, 0)]
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    seen = []
    model.model.language_model.layers[0].self_attn.register_forward_hook(lambda *_: seen.append(1))
    shared_losses(model, trees)[0]().backward()
    assert len(seen) == passes


def test_a_leak_between_questions_is_found(monkeypatch):
    """The comparison is no comparison of a thing with itself: with a causal mask instead of the tree's it fails."""

    def causal(batch: TreeBatch, dtype: torch.dtype) -> torch.Tensor:
        length = batch.branch.shape[1]
        mask = torch.full((length, length), torch.finfo(dtype).min, dtype=dtype).triu(1)
        return mask.expand(len(batch.branch), 1, length, length)

    monkeypatch.setattr(TreeBatch, "attention_mask", causal)
    loss, gradient = prefix.differing(0, False)
    assert loss > 1e-5
    assert gradient > 1e-2


def test_the_plain_form_encodes_the_video_for_each_question_and_the_shared_form_once():
    model, trees = model_of(TINY), [random_tree(TINY, 0), random_tree(TINY, 1)]
    encoded = []
    model.model.visual.register_forward_hook(lambda *_: encoded.append(1))
    for losses, times in ((shared_losses(model, trees), 2), (plain_losses(model, trees), 4)):
        encoded.clear()
        for share in losses:
            share()
        assert len(encoded) == times


def test_figures_of_time_and_memory_are_ratios_of_what_was_measured():
    found = prefix.speedup(TINY, 1) | prefix.attention(TINY, 1) | cost.of_form(TINY, "", "as told", 1)
    assert set(found) == {
        "shared_prefix_training_speedup",
        "shared_prefix_language_speedup",
        "branch_attention_speedup",
        "gsm_step_cost",
        "gsm_memory_cost",
        "gsm_memory_cost_with_weights",
    }
    assert all(figure.value > 0 for figure in found.values())
    assert found["gsm_memory_cost"].value > 1
    assert found["gsm_memory_cost_with_weights"].value > 1


def test_peak_memory_is_what_a_step_holds_at_once():
    def step() -> None:
        first = torch.empty(1_000_000)
        second = first * 2
        del first
        (second + 1).sum()

    assert cost.peak_bytes(step) == pytest.approx(8_000_000, rel=0.01)


def test_eighths_keep_the_proportions_of_the_7b_model():
    small, full = cost.EIGHTH, SEVEN_B
    scaled = ("hidden_size", "intermediate_size", "vocabulary", "vision_width", "prior_channels", "queries")
    for name in (*scaled, "prefix_tokens", "text_tokens", "wrapping_tokens"):
        assert getattr(full, name) == 8 * getattr(small, name)
    assert full.vision_tokens == 8 * small.vision_tokens == 4224
    assert (full.layers, full.heads, full.key_value_heads) == (small.layers, small.heads, small.key_value_heads)
    assert cost.operations(small) == pytest.approx(1.0416, abs=1e-3), "what it is at full size"


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("adapters", [False, True])
def test_operations_are_those_that_torch_counts(shared, adapters):
    """Without checkpointing; attention apart, where torch counts what a mask hides."""
    case = replace(gpu.CASES[0], adapters=adapters, shared=shared, compiled=False)
    model, trees = gpu.trainable(case, TINY, "cpu", torch.float32), [random_tree(TINY, 0)]
    model.activation_checkpointing_disable()
    losses = shared_losses(model, trees) if shared else plain_losses(model, trees)
    with FlopCounterMode(display=False) as counter:
        for share in losses:
            share().backward()
    counted = counter.get_flop_counts()["Global"]
    products = sum(counted[kind] for kind in counted if str(kind) in PRODUCTS)
    assert update_flops(model, trees, shared).products == pytest.approx(products, rel=1e-6)


def test_sharing_saves_operations_of_attention_and_products():
    model, trees = model_of(TINY), [random_tree(TINY, 0)]
    shared, plain = update_flops(model, trees, True), update_flops(model, trees, False)
    assert shared.products < plain.products
    assert shared.attention < plain.attention


@pytest.mark.parametrize("case", [replace(case, compiled=False) for case in gpu.CASES], ids=lambda case: case.how)
def test_every_case_of_the_gpu_runs_here_at_a_tiny_size(case, monkeypatch):
    monkeypatch.setattr(gpu, "WARM_UP", 0)
    monkeypatch.setattr(gpu, "REPETITIONS", 1)
    result = gpu.measured(case, TINY, 1, "cpu", torch.bfloat16)
    rows = 2 * (TINY.queries + TINY.text_tokens) + (1 if case.shared else 2) * (TINY.prefix_tokens + TINY.vision_tokens)
    assert (result.tokens, result.questions) == (rows, 2)
    assert result.seconds > 0 and result.flops > 0


def test_gpu_figures_are_null_without_one_and_say_how_to_get_them(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = gpu.figures()
    assert {"tokens_per_second", "mfu", "peak_gb", "lora_mfu", "plain_mfu", "shared_prefix_speedup_gpu"} <= set(found)
    assert all(figure.value is None for figure in found.values())
    assert "python -m benchmarks.training.gpu" in found["mfu"].how
    assert found["mfu"].bound == 0.4


def test_a_case_that_does_not_fit_leaves_the_others_alone():
    results = {case: gpu.Measured(2.0, 100, 10, 3e15, 8_000_000_000) for case in gpu.CASES}
    results[gpu.CASES[2]] = "OutOfMemoryError: too much"
    found = gpu.figures_of(results, SEVEN_B, 4, "NVIDIA H200", peak_rate("NVIDIA H200"))
    assert found["plain_mfu"].value is None and "too much" in found["plain_mfu"].how
    assert found["shared_prefix_speedup_gpu"].value is None
    assert found["tokens_per_second"].value == 50
    assert found["mfu"].value == pytest.approx(1.5e15 / 9.89e14)
    assert found["lora_shared_prefix_speedup_gpu"].value == 1


def test_the_gpu_part_needs_nothing_but_models():
    """What it imports when it starts, itself and through others of ours, is what a GPU box has."""
    ours, others = set(), set()
    waiting = ["benchmarks.training.gpu"]
    while waiting:
        if (name := waiting.pop()) in ours:
            continue
        ours.add(name)
        for found in _imported(ROOT / name.replace(".", "/")):
            top = found.partition(".")[0]
            waiting += [found, *itertools.accumulate(found.split(".")[:-1], "{}.{}".format)] if top in OURS else []
            others.add(top)
    assert "models.geometric_qwen" in ours and "benchmarks.training" in ours
    allowed = {"torch", "transformers", "lightning", "numpy", "safetensors", "tokenizers"}
    assert others - set(sys.stdlib_module_names) - allowed == {"benchmarks", "models"}


def _imported(path: Path) -> list[str]:
    """Modules that a file of ours imports at its top level, outside functions and `if TYPE_CHECKING`."""
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    found = []
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            inner = [f"{node.module}.{name.name}" for name in node.names]
            found += [name if _is_module(name) else node.module for name in inner]
    return found


def _is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").is_file()


def test_a_bench_of_learning_that_was_stopped_goes_on(tmp_path):
    """What is finished is not trained or asked again, and a folder that was half made is completed."""
    made = World(tmp_path / "world")
    made.splits.mkdir(parents=True)
    table = {"answer": ["A", "B", "C"], "quad": ["q"] * 3, "clip": ["a" * 64, "b" * 64, "c" * 64]}
    pq.write_table(pa.table(table), made.splits / "val.parquet")
    bench = Bench(made, tmp_path / "work")
    (bench.work / "laptop-0.seconds").write_text("12.5\n")
    assert bench._train("laptop-0", {}) == 12.5
    np.save(bench.work / "laptop-0.blind.npy", np.array([True, False, True]))
    assert bench.right("laptop-0", "blind").tolist() == [True, False, True]
    folder = bench.work / "shuffled" / SHARD
    folder.mkdir(parents=True)
    (folder / f"{'a' * 64}.safetensors").symlink_to(made.geometry / SHARD / f"{'b' * 64}.safetensors")
    found = {link.stem[0]: link.readlink().stem[0] for link in (bench.shuffled() / SHARD).iterdir()}
    assert found == {"a": "b", "b": "c", "c": "a"}
