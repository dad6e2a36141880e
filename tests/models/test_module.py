import copy
from pathlib import Path

import lightning
import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.training.processes import start
from models.batching import QuestionData, StepBatches
from models.loss import stage_loss
from models.module import QuestionAnswering, part_of
from models.parameters import TrainingParameters
from models.train import fit
from tests.models.conftest import TINY, made
from tests.models.processes import finish

STEP = {**TINY, "reading_steps": 0, "clips_per_batch": 5, "steps": 1}
ONE_PROCESS = [
    {"accumulate": 2},
    {"accumulate": 5},
    {"tokens_per_batch": 100_000},
    {"tokens_per_batch": 100_000, "accumulate": 3},
    {"gradient_checkpointing": True, "accumulate": 2},
]


def parts_of_step(maker, changes: dict, stage: str = "videos"):
    make, model, questions = maker
    steps = {"reading_steps": 1} if stage == "reading" else {}
    parameters = TrainingParameters.from_mapping({**STEP, **steps, **changes})
    batches = StepBatches(questions, make, parameters)
    return model, parameters, [batches[0, part] for part in range(parameters.parts)]


def gradient(maker, changes: dict, stage: str = "videos") -> tuple[float, torch.Tensor]:
    """The loss of a step and its whole gradient, from its micro-batches one after the other."""
    model, parameters, micros = parts_of_step(maker, changes, stage)
    model = copy.deepcopy(model).train()
    if parameters.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    total = 0.0
    for micro in micros:
        loss = stage_loss(model, micro.trees, micro.stage, parameters, micro.totals)
        loss.total.backward()
        total += loss.total.item()
    return total, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("stage", ["videos", "reading"])
@pytest.mark.parametrize("changes", ONE_PROCESS, ids=str)
def test_packing_does_not_change_the_objective(maker, changes, stage):
    # One budget holds all 8 packs of the release: the step that the other packings have to equal.
    whole = {"clips_per_batch": 8} if "tokens_per_batch" in changes else {}
    loss, expected = gradient(maker, whole, stage)
    other, found = gradient(maker, {**whole, **changes}, stage)
    assert other == pytest.approx(loss, rel=1e-6)
    assert (found - expected).norm() < 1e-6 * expected.norm()


def test_mean_of_unequal_parts_is_another_objective(maker):
    """What would come out without the counts of the whole step: the test above can fail."""
    model, parameters, micros = parts_of_step(maker, {"accumulate": 5})
    assert len({micro.trees.prompt_end.sum().item() for micro in micros}) > 1
    means = [stage_loss(model, micro.trees, "videos", parameters).total for micro in micros]
    shares = [stage_loss(model, micro.trees, "videos", parameters, micro.totals).total for micro in micros]
    assert abs(sum(means) / 5 - sum(shares)) > 1e-5 * sum(shares)


class Gradients(lightning.Callback):
    """Writes the gradient that the optimizer is about to see."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_before_optimizer_step(self, trainer, module, optimizer) -> None:
        found = {name: q.grad for name, q in module.model.named_parameters() if q.grad is not None}
        save_file(found, self.path.with_suffix(f".{trainer.global_rank}"))


def one_step(release, mapping: dict, root: Path) -> None:
    root.mkdir(exist_ok=True)
    torch.set_num_threads(1)
    make, model, questions = made(release, TrainingParameters.from_mapping(TINY))
    parameters = TrainingParameters.from_mapping(mapping)
    module = QuestionAnswering(model, make.prompt.letters, parameters)
    data = QuestionData(StepBatches(questions, make, parameters))
    fit(module, data, parameters, root, "", [Gradients(root / "gradients")])


def test_processes_do_not_change_the_objective(release, tmp_path):
    one_step(release, STEP, tmp_path / "one")
    expected = load_file(tmp_path / "one" / "gradients.0")
    for accumulate in (1, 2):
        root = tmp_path / f"two {accumulate}"
        root.mkdir()
        mapping = {**STEP, "devices": 2, "accumulate": accumulate}
        running = start(one_step, [release, mapping, root], root / "log", 2)
        said = finish(running, root / "log")
        assert {process.exitcode for process in running} == {0}, said
        for rank in (0, 1):
            found = load_file(root / f"gradients.{rank}")
            assert set(found) == set(expected)
            flat = [torch.cat([gradients[name].flatten() for name in expected]) for gradients in (found, expected)]
            assert (flat[0] - flat[1]).norm() < 1e-6 * flat[1].norm()


def test_dropout_depends_on_the_place_in_the_training_alone(maker):
    make, model, questions = maker
    parameters = TrainingParameters.from_mapping({**STEP, "accumulate": 2})
    module = QuestionAnswering(model, make.prompt.letters, parameters)
    batches = StepBatches(questions, make, parameters)
    seeds = [module._seed(batches[0, part]) for part in (0, 1, 0)]
    assert seeds[0] == seeds[2] != seeds[1]


def test_parts_of_both_families(maker):
    assert part_of("gsm.queries") == part_of("fusion.gate.weight") == "geometry"
    assert part_of("model.visual.merger.mlp.0.weight") == "merger"
    assert part_of("model.visual.deepstack_merger_list.0.norm.weight") == "merger"
    assert part_of("model.visual.blocks.0.attn.qkv.weight") == "vision"
    assert part_of("lm_head.weight") == part_of("model.language_model.norm.weight") == "language"
