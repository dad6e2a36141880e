"""What a training can use: a look at every clip and question before the first step.

Only headers, timestamps and words are read, so this takes milliseconds a clip, and a training does not stop in its
middle because of the last of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from models.data import ClipError, ClipStore, Question, TreeMaker, groups_of
from models.parameters import TrainingParameters
from models.prompt import QuestionError


class InputError(ValueError):
    """A file that training needs is missing or unreadable."""


class Screening:
    """Keeps what can be used; `bad_input` says whether anything else stops the training or is left out and counted.

    Attributes:
        skipped: number of questions left out, by reason.
    """

    def __init__(self, parameters: TrainingParameters) -> None:
        self.parameters = parameters
        self.skipped: Counter[str] = Counter()

    def with_usable_clips(self, questions: Sequence[Question], clips: ClipStore) -> list[Question]:
        """The questions whose clips have frames, marks and prior features as announced.

        Raises:
            ClipError, InputError: for the first clip that has not, if bad input is to stop the training.
        """
        bad: dict[tuple[str, str], str] = {}
        channels: dict[tuple[str, str], int] = {}
        for place in sorted({(question.shard, question.clip) for question in questions}):
            try:
                shape = clips.shape(*place)
            except ClipError as error:
                bad[place] = self._reason(error, error.reason)
                continue
            if shape.prior is not None:
                channels[place] = shape.prior[3]
        for place in self._strangers(channels):
            bad[place] = "other channels of prior features"
        self.skipped.update(bad[q.shard, q.clip] for q in questions if (q.shard, q.clip) in bad)
        return self._left([question for question in questions if (question.shard, question.clip) not in bad])

    def with_usable_text(self, questions: Sequence[Question], maker: TreeMaker, context: int) -> list[Question]:
        """The questions that fit into `max_text_tokens`, and with their video into the model's `context`.

        Raises:
            QuestionError: for the first that does not, if bad input is to stop the training.
        """
        usable = []
        for group in groups_of(questions):
            before = maker.prefix_slots(group) + maker.geometry_tokens
            room = min(context - before, self.parameters.max_text_tokens)
            for row in group.rows:
                try:
                    if maker.most_tokens(questions[row]) > room:
                        _check_length(questions[row], before + len(maker.branch(questions[row]).tokens), context)
                    usable.append(row)
                except QuestionError as error:
                    self.skipped[self._reason(error, "question too long or malformed")] += 1
        return self._left([questions[row] for row in sorted(usable)])

    def say(self, asked: int, what: str) -> None:
        """One line on what was left out."""
        if self.skipped:
            reasons = ", ".join(f"{count} for {reason}" for reason, count in sorted(self.skipped.items()))
            total = sum(self.skipped.values())
            print(f"left out {total} of {asked} {what} questions: {reasons}", flush=True)

    def _reason(self, error: ValueError, reason: str) -> str:
        if self.parameters.bad_input == "stop":
            raise error
        return reason

    def _strangers(self, channels: dict[tuple[str, str], int]) -> list[tuple[str, str]]:
        """Clips whose prior features have other channels than most clips'."""
        counts = Counter(channels.values())
        if len(counts) <= 1:
            return []
        if self.parameters.bad_input == "stop":
            first = {number: clip for (_, clip), number in reversed(channels.items())}
            described = ", ".join(f"{number} (clip {clip})" for number, clip in first.items())
            raise InputError(f"prior features differ in their number of channels: {described}: use one estimator")
        usual = min(counts, key=lambda number: (-counts[number], number))
        return [place for place, number in channels.items() if number != usual]

    def _left(self, questions: list[Question]) -> list[Question]:
        if not questions:
            reasons = ", ".join(sorted(self.skipped)) or "there was none"
            raise InputError(f"no question is left to train on: {reasons}")
        return questions


def _check_length(question: Question, slots: int, context: int) -> None:
    if slots > context:
        raise QuestionError(
            f"question {question.qa_id}: with its video it has {slots} tokens, the model's context is {context}: "
            "lower max_frames or max_pixels"
        )
