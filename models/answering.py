"""Answers to any number of questions about a clip, on one encoding of its video.

The prefix goes through the model once and leaves its keys and values behind. The questions then follow a few at a time,
side by side in one row: each sees the prefix and itself and stands where it would stand alone. Likelihoods of letters
need no more than that; for generation the row grows by one token of each question at a time. So nothing of the prefix
is computed, or kept in memory, twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from models.batch import NO_TARGET, PREFIX, Branch, TreeBatch
from models.data import ClipStore, Group, Question, TreeMaker
from models.parameters import TrainingParameters
from models.prompt import TURN_END, Prompt, QuestionError

LETTERS = tuple("ABCDEFGHIJ")
"""Names of options; a question has at least two and at most so many."""
# The attention mask of a row grows with the square of its length; more questions than this get a second row.
BRANCHES_PER_ROW = 8
NO_INSTRUCTIONS = ("", "")

Instructions = tuple[str, str]
"""What is said behind a question with options, and behind one that asks for a number."""


def asked_text(question: str, options: Sequence[str], instruction: str = "") -> str:
    """What the user says: question, lettered options, instruction; without the last as the training has it.

    Args:
        question: any text.
        options: texts without letters in front; none for a question that asks for a number.
        instruction: a line behind all of it, where it is not empty.

    Raises:
        QuestionError: if there are more options than letters, or one alone.
    """
    if len(options) == 1 or len(options) > len(LETTERS):
        raise QuestionError(f"{len(options)} options: expected none, or 2 to {len(LETTERS)}")
    listed = [f"{letter} {option}" for letter, option in zip(LETTERS, options, strict=False)]
    return "\n".join([question, *(["Options:"] if listed else []), *listed, *([instruction] if instruction else [])])


class AnyPrompt(Prompt):
    """A prompt for questions with any number of options."""

    def __init__(self, tokenizer: Any, max_text_tokens: int) -> None:
        super().__init__(tokenizer, max_text_tokens)
        self.letters = [self._letter(letter) for letter in LETTERS]
        self.instructions = NO_INSTRUCTIONS

    def branch(
        self, question: str, options: Sequence[str], answer: str | None, with_video: bool, noted: bool = False
    ) -> Branch:
        """One question that is to be answered, with the instruction for its kind; answers and notes are for training.

        Raises:
            QuestionError: if the text is too long or has too many options.
        """
        asked = self.asked(asked_text(question, options, self.instructions[not options]))
        tokens = [*self._leads[with_video], *asked, *self._tails[with_video]]
        return Branch(tokens, [NO_TARGET] * len(tokens), self.words(question), len(tokens))


class Answering:
    """A model with all it takes to answer questions about prepared clips."""

    def __init__(self, model: Any, tokenizer: Any, parameters: TrainingParameters, clips: ClipStore) -> None:
        """Bring them together.

        Args:
            model: `GeometricQwen` or `GeometricQwen3`, on its device and in evaluation mode.
            tokenizer: of transformers.
            parameters: what a model may see, and how it computes.
            clips: where frames and priors lie.
        """
        self.model, self.tokenizer, self.parameters = model, tokenizer, parameters
        self.prompt = AnyPrompt(tokenizer, parameters.max_text_tokens)
        self.maker = TreeMaker(self.prompt, clips, model)
        ends = (TURN_END, "<|endoftext|>")
        self.ends = {tokenizer.convert_tokens_to_ids(end) for end in ends} | {tokenizer.eos_token_id}

    def shares(
        self,
        group: Group,
        questions: Sequence[Question],
        blind: bool = False,
        instructions: Instructions = NO_INSTRUCTIONS,
    ) -> list[np.ndarray]:
        """Probabilities of each question's letters, normalised over them, float64.

        Args:
            group: what the questions may see.
            questions: about that, each with its options.
            blind: without video and geometry, from the text alone.
            instructions: said behind a question with options, and behind one without.

        Raises:
            ClipError, QuestionError: as `TreeMaker` has them.
        """
        found = []
        with self._computing():
            for prefix, rows in self._prefixes(group, questions, blind, instructions):
                for row in rows:
                    logits = prefix.ask(row)[:, self.prompt.letters].double().cpu()
                    counts = [len(questions[prefix.first + number].options) for number in row]
                    found += [one[:count].softmax(-1).numpy() for one, count in zip(logits, counts, strict=True)]
        return found

    def texts(
        self,
        group: Group,
        questions: Sequence[Question],
        max_tokens: int,
        blind: bool = False,
        instructions: Instructions = NO_INSTRUCTIONS,
    ) -> list[str]:
        """What the model says to each question, greedily; a question without options asks for a number.

        A text of more than `max_tokens` is cut off; the rest as for `shares`.
        """
        found = []
        with self._computing():
            for prefix, rows in self._prefixes(group, questions, blind, instructions):
                for row in rows:
                    found += prefix.generate(row, max_tokens, self.ends)
        return [self.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in found]

    def _prefixes(
        self, group: Group, questions: Sequence[Question], blind: bool, instructions: Instructions
    ) -> Iterator[tuple[SharedPrefix, list[range]]]:
        """Encoded prefixes with the rows of questions on each: one, unless questions cannot share any."""
        self.prompt.instructions = instructions
        size = len(questions) if self.maker.shares_prefix else 1
        for first in range(0, len(questions), size):
            asked = [replace(question, answer=None) for question in questions[first : first + size]]
            tree = self.maker.blind_tree(asked) if blind else self.maker.tree(group, asked)
            prefix = SharedPrefix(self.model, self.maker.pack([tree]).to(self.model.device), first)
            steps = range(0, len(asked), BRANCHES_PER_ROW)
            yield prefix, [range(at, min(at + BRANCHES_PER_ROW, len(asked))) for at in steps]

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """As in training on a GPU; a CPU in float32 and with the training's threads, so that its numbers stay."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.parameters.threads)
        kind = self.model.device.type
        half = kind == "cuda" and self.parameters.precision != "32-true"
        try:
            with torch.no_grad(), torch.autocast(kind, torch.bfloat16, enabled=half):
                yield
        finally:
            torch.set_num_threads(before)


@dataclass
class _Row:
    """Questions side by side behind a prefix.

    Attributes:
        owner: (slots so far,) number of the question that each slot belongs to, PREFIX in the prefix.
        position: (n,) the text position that follows each question.
    """

    owner: Tensor
    position: Tensor


class SharedPrefix:
    """Keys and values of what some questions share, and what each of them adds.

    Attributes:
        first: place, in whatever list the caller keeps, of the first question.
    """

    def __init__(self, model: Any, batch: TreeBatch, first: int = 0) -> None:
        """Encode video, geometry and prefix.

        Args:
            model: `GeometricQwen` or `GeometricQwen3`.
            batch: one tree with all its questions.
            first: see the class.
        """
        self.model, self.batch, self.first = model, batch, first
        self.reading = model.read(batch)
        self.length = int((batch.branch[0] == PREFIX).sum())
        self.cache = DynamicCache(config=model.model.language_model.config)
        deepstack = {}
        if self.reading.deepstack:
            deepstack = {
                "visual_pos_masks": batch.video_slots[:, : self.length],
                "deepstack_visual_embeds": list(self.reading.deepstack),
            }
        # Without a mask it is causal, for which there are faster kernels.
        self._think(self.reading.embeddings[:, : self.length], batch.positions[..., : self.length], None, **deepstack)

    def ask(self, numbers: Sequence[int]) -> Tensor:
        """Next-token logits (n,vocabulary) behind the prompts of some questions."""
        logits, _ = self._ask(numbers)
        self._forget()
        return logits

    def generate(self, numbers: Sequence[int], max_tokens: int, ends: set[int]) -> list[list[int]]:
        """Ids of the greedy answers to some questions, without the end that closes them.

        Args:
            numbers: of the questions.
            max_tokens: a longer answer is cut off.
            ends: ids that close an answer.
        """
        logits, row = self._ask(numbers)
        said: list[list[int]] = [[] for _ in numbers]
        live = list(range(len(numbers)))
        for step in range(max_tokens):
            chosen = dict(zip(live, logits.argmax(-1).tolist(), strict=True))
            live = [place for place in live if chosen[place] not in ends]
            for place in live:
                said[place].append(chosen[place])
            if not live or step + 1 == max_tokens:
                break
            logits = self._next([chosen[place] for place in live], live, numbers, row, step)
        self._forget()
        return said

    def _ask(self, numbers: Sequence[int]) -> tuple[Tensor, _Row]:
        """Put questions behind the prefix."""
        branch = self.batch.branch[0]
        slots = torch.isin(branch, torch.tensor(list(numbers), device=branch.device)).nonzero()[:, 0]
        owner = torch.cat([branch[: self.length], branch[slots]])
        row = _Row(owner, branch.new_zeros(len(numbers)))
        hidden = self._think(
            self.reading.embeddings[:, slots], self.batch.positions[..., slots], self._mask(owner, len(slots))
        )
        last = self.batch.prompt_end[0, slots]
        row.position = self.batch.positions[:, 0, slots[last]].amax(0) + 1
        return self.model.lm_head(hidden[0, last]), row

    def _next(self, tokens: list[int], live: list[int], numbers: Sequence[int], row: _Row, step: int) -> Tensor:
        """Logits behind one more token of each live question."""
        device = row.owner.device
        row.owner = torch.cat([row.owner, torch.tensor([numbers[place] for place in live], device=device)])
        embedded = self.model.get_input_embeddings()(torch.tensor([tokens], device=device))
        positions = (row.position[live] + step).expand(3, 1, -1)
        return self.model.lm_head(self._think(embedded, positions, self._mask(row.owner, len(live)))[0])

    def _mask(self, owner: Tensor, new: int) -> Tensor:
        """(1,1,new,slots) additive: the last `new` slots see the prefix and, up to themselves, their own question."""
        place = torch.arange(len(owner), device=owner.device)
        mine = owner[-new:, None]
        seen = ((owner == PREFIX) | (owner == mine)) & (place <= place[-new:, None])
        dtype = self.reading.embeddings.dtype
        return torch.zeros(seen.shape, dtype=dtype, device=owner.device).masked_fill(~seen, torch.finfo(dtype).min)[
            None, None
        ]

    def _think(self, embeddings: Tensor, positions: Tensor, mask: Tensor | None, **deepstack: Any) -> Tensor:
        return self.model.model.language_model(
            inputs_embeds=embeddings,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            **deepstack,
        ).last_hidden_state

    def _forget(self) -> None:
        """Take everything but the prefix out of the cache."""
        self.cache.crop(self.length - self.cache.get_seq_length())
