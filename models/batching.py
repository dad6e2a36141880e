"""Which questions make up a step, and how a step is cut into micro-batches.

A step is what the optimizer sees: a set of questions that is a pure function of (seed, stage, step), so that
training which was killed goes on exactly where it stopped. How many processes share a step, and into how many
micro-batches each cuts its share, changes what lies in memory at once and nothing else: every micro-batch knows the
counts of the whole step, and its loss is divided by those.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import lightning
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from models.batch import NO_TARGET, PADDING, Tree, TreeBatch
from models.data import Question, TreeMaker, groups_of
from models.loss import Totals
from models.parameters import ParameterError, TrainingParameters
from models.prompt import QuestionError
from models.reading import open_share, reading_rows
from models.stages import Stage, stage_at, total_steps

# Packs of one window are sorted by length before they are cut into steps of a token budget. A window of this many
# steps' packs leaves a few percent of padding and still mixes clips well.
WINDOW_STEPS = 32
SEEDS = {"reading": 1, "videos": 2, "grounding": 3, "naming": 4}


class Pack(NamedTuple):
    """Questions that ride on one prefix: the number of their group, and their places in the list of questions."""

    group: int
    rows: tuple[int, ...]


class MicroBatch:
    """A part of a step that is computed at once.

    A plain class, because Lightning takes dataclasses apart to convert the numbers in them.

    Attributes:
        trees: the questions.
        stage: name of the stage.
        step, part: which part of which step; the random numbers drawn while computing it depend on these alone.
        totals: counts of the whole step.
        slots: (B·L) without padding.
    """

    def __init__(self, trees: TreeBatch, stage: str, step: int, part: int, totals: Totals) -> None:
        self.trees, self.stage, self.step, self.part, self.totals = trees, stage, step, part, totals
        self.slots = int((trees.branch != PADDING).sum())

    def to(self, device: torch.device | str, **options: bool) -> MicroBatch:
        """The same on another device."""
        moved = object.__new__(MicroBatch)
        moved.__dict__.update(self.__dict__, trees=self.trees.to(device, **options))
        return moved


class StepBatches(Dataset):
    """Micro-batch (k, part) of each training step k, out of `parameters.parts`.

    In the reading stage questions are drawn. In the others an epoch cuts each group, shuffled, into packs of at most
    `questions_per_clip` questions and shuffles the packs; a step is the next `clips_per_batch` packs, or as many packs
    of similar length as fit into `tokens_per_batch`. What does not fill a step at the end is left out of the epoch.
    """

    def __init__(self, questions: Sequence[Question], maker: TreeMaker, parameters: TrainingParameters) -> None:
        if not questions:
            raise QuestionError("the training split has no question")
        self.questions, self.maker, self.parameters = questions, maker, parameters
        self.groups = groups_of(questions)
        self.by_length = reading_rows([question.options for question in questions])
        self._branch_slots: dict[int, int] = {}
        self._prefix_slots: dict[int, int] = {}
        self._epochs: dict[str, list[int]] = {}
        self._epoch: tuple[str, int, list[list[Pack]]] = ("", -1, [])

    def __len__(self) -> int:
        return total_steps(self.parameters)

    def __getitem__(self, place: tuple[int, int]) -> MicroBatch:
        step, part = place
        stage = stage_at(step, self.parameters)
        if stage.name == "reading":
            return self._reading(stage, step, part)
        packs = self._single(self.packs(stage, step - stage.first))
        chosen = self._shares([self._length(pack) for pack in packs])[part]
        trees = [self._tree(stage, packs[number]) for number in chosen]
        totals = _totals_of(trees) if self.parameters.parts == 1 else self._totals(stage, packs)
        return self._micro_batch(trees, stage, step, part, totals)

    def packs(self, stage: Stage, place: int) -> list[Pack]:
        """The packs of a step, counted from the beginning of its stage."""
        counts, epoch = self._epochs.setdefault(stage.name, []), 0
        while True:
            if epoch == len(counts):
                counts.append(len(self._steps_of_epoch(stage.name, epoch)))
            if place < counts[epoch]:
                return self._steps_of_epoch(stage.name, epoch)[place]
            place -= counts[epoch]
            epoch += 1

    def _reading(self, stage: Stage, step: int, part: int) -> MicroBatch:
        p, place = self.parameters, step - stage.first
        rng = np.random.default_rng([p.seed, SEEDS["reading"], place])
        taking_part = max(int(open_share(place, stage.steps) * len(self.questions)), 1)
        # With next to no prefix to share, a row for each question costs the least attention.
        rows = self.by_length[rng.integers(taking_part, size=p.reading_questions)]
        trees = [self.maker.reading_tree(self.questions[row], rng) for row in rows]
        chosen = self._shares([len(tree.branches[0].tokens) for tree in trees])[part]
        return self._micro_batch([trees[number] for number in chosen], stage, step, part, _totals_of(trees))

    def _micro_batch(self, trees: list[Tree], stage: Stage, step: int, part: int, totals: Totals) -> MicroBatch:
        return MicroBatch(self.maker.pack(trees), stage.name, step, part, totals)

    def _tree(self, stage: Stage, pack: Pack) -> Tree:
        group, asked = self.groups[pack.group], [self.questions[row] for row in pack.rows]
        return self.maker.tree(group, asked) if stage.name == "videos" else self.maker.grounding_tree(group, asked)

    def _totals(self, stage: Stage, packs: Sequence[Pack]) -> Totals:
        """Of all parts of a step, of which this process may hold one."""
        with_video = stage.name == "videos"
        branches = [self.maker.branch(self.questions[row], with_video) for pack in packs for row in pack.rows]
        return _totals_of([Tree([], None, None, branches)])

    def _shares(self, lengths: Sequence[int]) -> list[list[int]]:
        """For each part of a step the numbers of its rows."""
        if self.parameters.parts == 1:
            return [list(range(len(lengths)))]
        return cut_by_length(lengths, self.parameters.parts)

    def _single(self, packs: Sequence[Pack]) -> list[Pack]:
        """The same questions in packs of one, where the model lets none share a prefix."""
        if self.maker.shares_prefix:
            return list(packs)
        return [Pack(pack.group, (row,)) for pack in packs for row in pack.rows]

    def _length(self, pack: Pack) -> int:
        """Slots of a pack's row."""
        if self.parameters.parts == 1 and not self.parameters.tokens_per_batch:
            return 0
        if pack.group not in self._prefix_slots:
            self._prefix_slots[pack.group] = self.maker.prefix_slots(self.groups[pack.group])
        return self._prefix_slots[pack.group] + sum(map(self._slots_of, pack.rows))

    def _slots_of(self, row: int) -> int:
        if row not in self._branch_slots:
            self._branch_slots[row] = self.maker.geometry_tokens + len(self.maker.branch(self.questions[row]).tokens)
        return self._branch_slots[row]

    def _steps_of_epoch(self, stage: str, epoch: int) -> list[list[Pack]]:
        if self._epoch[:2] != (stage, epoch):
            rng = np.random.default_rng([self.parameters.seed, SEEDS[stage], epoch])
            # Naming reads clips and no question; one stands for its clip.
            size = 1 if stage == "naming" else self.parameters.questions_per_clip
            packs = []
            for number, group in enumerate(self.groups):
                rows = rng.permutation(np.array(group.rows)).tolist()
                packs += [Pack(number, tuple(rows[start : start + size])) for start in range(0, len(rows), size)]
            packs = [packs[place] for place in rng.permutation(len(packs))]
            steps = self._by_budget(packs, rng) if self.parameters.tokens_per_batch else self._by_count(packs)
            self._epoch = (stage, epoch, steps)
        return self._epoch[2]

    def _by_count(self, packs: list[Pack]) -> list[list[Pack]]:
        size = self.parameters.clips_per_batch
        steps = [packs[start : start + size] for start in range(0, max(len(packs) - size, 0) + 1, size)]
        if len(self._single(steps[0])) < self.parameters.parts:
            raise _too_few(packs, self.parameters.parts)
        return steps

    def _by_budget(self, packs: list[Pack], rng: np.random.Generator) -> list[list[Pack]]:
        """Steps of packs of similar length, each of at most `tokens_per_batch` slots with padding."""
        budget, parts = self.parameters.tokens_per_batch, self.parameters.parts
        sizes = {pack: [self._length(single) for single in self._single([pack])] for pack in packs}
        longest = max(max(lengths) for lengths in sizes.values())
        # A step that is full has a row for each part, even if the pack that no longer fitted makes several rows.
        needed = longest * (parts + max(map(len, sizes.values())) - 1)
        if needed > budget:
            raise ParameterError(
                f"tokens_per_batch = {budget}: the longest row has {longest} slots, and a step needs one for each of "
                f"accumulate · devices · nodes = {parts} parts: raise it to {needed} or more"
            )
        window = max(WINDOW_STEPS * budget // longest, 1)
        steps, waiting = [], []
        for start in range(0, len(packs), window):
            ordered = sorted([*waiting, *packs[start : start + window]], key=lambda pack: (max(sizes[pack]), pack))
            cut, rows = [[]], 0
            for pack in ordered:
                rows += len(sizes[pack])
                if rows * max(sizes[pack]) > budget and cut[-1]:
                    cut.append([])
                    rows = len(sizes[pack])
                cut[-1].append(pack)
            # The longest packs of a window may fill a step together with those of the next.
            *full, waiting = cut
            steps += full
        if sum(len(sizes[pack]) for pack in waiting) >= parts:
            steps.append(waiting)
        if not steps:
            raise _too_few(packs, parts)
        return [steps[place] for place in rng.permutation(len(steps))]


def cut_by_length(lengths: Sequence[int], parts: int) -> list[list[int]]:
    """Rows cut into parts so that the largest part, padded to its longest row, is as small as it can be.

    Rows of similar length come together. Neighbouring parts are of similar size, so processes that take neighbouring
    parts wait little for each other.

    Args:
        lengths: at least `parts` of them.
        parts: each gets at least one row.

    Returns:
        For each part the places of its rows, the longest row first.
    """
    order = sorted(range(len(lengths)), key=lambda place: (-lengths[place], place))
    low, high = 1, max(lengths) * len(lengths)
    while low < high:
        middle = (low + high) // 2
        if len(_filled(order, lengths, middle)) <= parts:
            high = middle
        else:
            low = middle + 1
    chunks = _filled(order, lengths, high)
    while len(chunks) < parts:
        largest = max(range(len(chunks)), key=lambda number: len(chunks[number]))
        half = (len(chunks[largest]) + 1) // 2
        chunks[largest : largest + 1] = [chunks[largest][:half], chunks[largest][half:]]
    return chunks


def _filled(order: Sequence[int], lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Rows in order, cut where the padded size would exceed the capacity; a row that is larger stands alone."""
    chunks: list[list[int]] = []
    for place in order:
        if chunks and (len(chunks[-1]) + 1) * lengths[chunks[-1][0]] <= capacity:
            chunks[-1].append(place)
        else:
            chunks.append([place])
    return chunks


def _too_few(packs: Sequence[Pack], parts: int) -> ParameterError:
    return ParameterError(
        f"the training questions make {len(packs)} prefixes, accumulate · devices · nodes is {parts}: lower it"
    )


def _totals_of(trees: Sequence[Tree]) -> Totals:
    branches = [branch for tree in trees for branch in tree.branches]
    return Totals(sum(token != NO_TARGET for branch in branches for token in branch.targets), len(branches))


class FromStep(Sampler):
    """Places (step, part) of one process, from the step at which training stands; its length is that of the whole."""

    def __init__(self, start: int, total: int, accumulate: int = 1, rank: int = 0, processes: int = 1) -> None:
        self.start, self.total, self.accumulate = start, total, accumulate
        self.rank, self.processes = rank, processes

    def __len__(self) -> int:
        return self.total * self.accumulate

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for step in range(self.start, self.total):
            for number in range(self.accumulate):
                yield step, number * self.processes + self.rank


class QuestionData(lightning.LightningDataModule):
    """The training batches; after a restart they go on with the step the trainer has reached."""

    def __init__(self, batches: StepBatches) -> None:
        super().__init__()
        self.batches = batches

    def train_dataloader(self) -> DataLoader:
        """One ready micro-batch after the other, in order."""
        p, trainer = self.batches.parameters, self.trainer
        places = FromStep(trainer.global_step, len(self.batches), p.accumulate, trainer.global_rank, p.processes)
        return DataLoader(
            self.batches,
            batch_size=None,
            sampler=places,
            num_workers=p.loader_workers,
        )
