"""Accuracy on validation questions while a training runs, and the best weights by it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from models.batch import TreeBatch
from models.checkpoints import keep_best, step_is_over, trained_weights
from models.data import Group, Question, TreeMaker, groups_of, without_answers
from models.geometric_qwen import GeometricQwen
from models.module import QuestionAnswering
from models.parameters import TrainingParameters
from models.predict import rows_of, trees_of
from models.prompt import LETTERS

# Apart from the numbers that order the training questions (see models.batching.SEEDS).
SEED = 4


def drawn(questions: Sequence[Question], count: int, seed: int) -> list[Question]:
    """At most `count` questions, whole clips of them in a drawn order, so that few videos answer many."""
    groups, chosen = groups_of(questions), []
    for place in np.random.default_rng([seed, SEED]).permutation(len(groups)):
        chosen += groups[place].rows[: count - len(chosen)]
    return [questions[row] for row in chosen]


def right_letters(model: GeometricQwen, batch: TreeBatch, letters: Sequence[int], truth: Tensor) -> Tensor:
    """How many questions of a batch get their letter, as a scalar tensor."""
    logits = model.score(batch, batch.prompt_end)[:, list(letters)]
    return (logits.argmax(-1) == truth).sum()


class Evaluation(Callback):
    """Asks the validation questions where the module says it is time, notes it and keeps the best weights.

    Each process asks its share. All make the same number of calls, since with shards every call needs all of them.
    """

    def __init__(
        self,
        questions: Sequence[Question],
        maker: TreeMaker,
        parameters: TrainingParameters,
        work: Path,
        say: Callable[[str], None] = print,
    ) -> None:
        self.questions = drawn(questions, parameters.evaluate_questions, parameters.seed)
        self.asked = without_answers(self.questions)
        self.maker, self.work, self.say = maker, work, say
        rows = rows_of(groups_of(self.questions), maker.shares_prefix)
        # As many rows at once as a micro-batch of training has.
        size = max(parameters.clips_per_batch // parameters.parts, 1)
        self.batches = [rows[start : start + size] for start in range(0, len(rows), size)]

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: QuestionAnswering, outputs: Any, batch: Any, batch_index: int
    ) -> None:
        """Ask, note, and keep the weights if they are the best so far; of equals the first."""
        step = trainer.global_step
        if not step_is_over(trainer, batch_index) or not module.evaluates(step):
            return
        accuracy = self.accuracy(trainer, module)
        module.curves[-1]["validation"] = round(accuracy, 6)
        module.log_everywhere({"validation/accuracy": accuracy}, step)
        if module.best is None or accuracy > module.best[0]:
            module.best = (accuracy, step)
            weights = trained_weights(module)
            if trainer.is_global_zero:
                keep_best(self.work, weights, step)
        if trainer.is_global_zero:
            best, at = module.best
            self.say(f"step {step} · validation accuracy {accuracy:.3f} · best {best:.3f} at step {at}")

    def accuracy(self, trainer: lightning.Trainer, module: QuestionAnswering) -> float:
        """Share of the validation questions that get the right letter."""
        mine = self.batches[trainer.global_rank :: trainer.world_size]
        calls = -(-len(self.batches) // trainer.world_size)
        right = torch.zeros((), device=module.device)
        training = module.training
        module.eval()
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            for number in range(calls):
                groups = mine[number] if number < len(mine) else self.batches[0]
                found = self._right(groups, module)
                right += found if number < len(mine) else 0
        module.train(training)
        return float(trainer.strategy.reduce(right, reduce_op="sum")) / len(self.questions)

    def _right(self, groups: Sequence[Group], module: QuestionAnswering) -> Tensor:
        letters = self.maker.prompt.letters
        answers = [LETTERS.index(self.questions[row].answer) for group in groups for row in group.rows]
        trees = trees_of(self.maker, groups, self.asked)
        truth = torch.tensor(answers, device=module.device)
        return module.call(right_letters, self.maker.pack(trees).to(module.device), letters, truth)
