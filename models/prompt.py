"""The words around a question, and the small tokenizer for models that bring none.

One code path serves both: a tokenizer with Qwen's special tokens and a chat template. The template is rendered
once with a mark in the question's place and cut there; the text of a question is tokenized apart from it, with
special tokens taken as plain text, so that no question can close its own turn or ask for vision tokens.
"""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from collections.abc import Iterable, Sequence

import numpy as np

from models.batch import NO_TARGET, Branch
from models.guide import Notes, state_ends, states_of
from models.parameters import ParameterError

LETTERS = ("A", "B", "C", "D")
VIDEO_PAD = "<|video_pad|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
TURN_END = "<|im_end|>"
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    TURN_END,
    VISION_START,
    VISION_END,
    "<|image_pad|>",
    VIDEO_PAD,
)
CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content -%}
{% if part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>{% elif part.type == 'image' -%}
<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
MARK = "\u2063question\u2063"
KEPT_TEXTS = 1 << 16
"""Texts whose tokens are kept, those asked for last; about 1.5 kB each at a hundred tokens."""
TOKENS_OF_A_BYTE = 3
"""A text has no more tokens than bytes; the composed form, which some tokenizers make first, has at most 3 for one."""
PIECES = r" ?\(\d{1,2}(?=\) )|\) [^().\n]{1,60}\.|\d| ?\p{L}+| ?[^\s\p{L}\d]+|\s+"
"""What the small tokenizer never merges across: numbers and states of answers, digits, words, signs, space."""


class QuestionError(ValueError):
    """A question row cannot be turned into a prompt."""


def question_text(question: str, options: Sequence[str]) -> str:
    """What the user says: the question and its options, as in the reference's training files."""
    lines = [f"{letter} {option}" for letter, option in zip(LETTERS, options, strict=True)]
    return "\n".join([question, "Options:", *lines])


class Prompt:
    """Lays questions out as a shared prefix and branches."""

    def __init__(self, tokenizer, max_text_tokens: int) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise ParameterError("the base model's tokenizer has no chat template: add chat_template.jinja to it")
        self.tokenizer, self.max_text_tokens = tokenizer, max_text_tokens
        # A question is asked in every epoch, and tokenizing it takes longer than packing it.
        self._kept: OrderedDict[str, np.ndarray] = OrderedDict()
        self.turn_end = self._shell(TURN_END)
        self.letters = [self._letter(letter) for letter in LETTERS]
        self.video_pad = self._shell(VIDEO_PAD)[0]
        before, after_video, after = self._frame([{"type": "video"}, {"type": "text", "text": MARK}])
        blind_before, _, blind_after = self._frame([{"type": "text", "text": MARK}])
        self._before = before
        self._prefixes = {True: self._shell(before), False: self._shell(blind_before)}
        self._leads = {True: self._shell(after_video), False: []}
        self._tails = {True: self._shell(after), False: self._shell(blind_after)}

    def prefix(self, with_video: bool) -> list[int]:
        """Ids in front of the vision tokens, or of the question where there is no video."""
        return self._prefixes[with_video]

    def timed_prefix(self, moments: Sequence[float]) -> tuple[list[int], list[list[int]]]:
        """Qwen3-VL's ids in front of the first temporal patch, and those in front of each later one.

        Args:
            moments: seconds of the temporal patches, as `Video` has them.
        """
        stamps = [f"<{moment:.1f} seconds>{VISION_START}" for moment in moments]
        first = self._shell(self._before.removesuffix(VISION_START) + stamps[0])
        return first, [self._shell(VISION_END + stamp) for stamp in stamps[1:]]

    def branch(
        self,
        question: str,
        options: Sequence[str],
        answer: str | None,
        with_video: bool,
        noted: bool = False,
    ) -> Branch:
        """One question.

        Args:
            question: any text.
            options: four texts without letters in front.
            answer: letter to learn, or None at prediction.
            with_video: whether the prefix ends in vision tokens.
            noted: whether training wants to know where each option ends.

        Raises:
            QuestionError: if the text is too long, or options or answer are not four and a letter.
        """
        _check_form(options, answer)
        text = question_text(question, options)
        asked = self.asked(text)
        lead = self._leads[with_video]
        prompt = [*lead, *asked, *self._tails[with_video]]
        said = [] if answer is None else [self.letters[LETTERS.index(answer)], *self.turn_end]
        tokens = prompt + said[:-1]
        silent = [NO_TARGET] * len(tokens)
        targets = silent[len(said) :] + said
        notes = self._notes(text, options, answer, len(lead)) if noted else None
        return Branch(tokens, targets, self.words(question), len(prompt), notes)

    def most_tokens(self, question: str, options: Sequence[str], answer: str | None, with_video: bool) -> int:
        """What no `branch` of it exceeds, without the work of telling its tokens.

        Raises:
            QuestionError: if options or answer are not four and a letter.
        """
        _check_form(options, answer)
        said = TOKENS_OF_A_BYTE * len(question_text(question, options).encode("utf-8", "replace"))
        around = (self._leads[with_video], self._tails[with_video], self.turn_end)
        return said + sum(map(len, around))

    def asked(self, text: str) -> list[int]:
        """Ids of what the user says.

        Raises:
            QuestionError: if it is too long.
        """
        ids = self.words(text)
        if len(ids) > self.max_text_tokens:
            raise QuestionError(
                f"a question has {len(ids)} tokens, max_text_tokens is {self.max_text_tokens}: "
                f"raise it or drop the question that begins {text[:60]!r}"
            )
        return ids

    def _notes(self, text: str, options: Sequence[str], answer: str | None, lead: int) -> Notes:
        """Where options and their states end, behind so many tokens."""
        ends, agrees = self._ends(text, options, [[len(option)] for option in options]), ()
        if answer is not None:
            cuts = [state_ends(option) for option in options]
            told = [states_of(option) for option in options]
            right = told[LETTERS.index(answer)]
            agrees = tuple(
                (lead + place, states[: number + 1] == right[: number + 1])
                for states, places in zip(told, self._ends(text, options, cuts), strict=True)
                for number, place in enumerate(places)
            )
        return Notes(tuple(lead + place for [place] in ends), agrees)

    def spans(self, text: str, names: Sequence[str]) -> np.ndarray:
        """(n,L) bool: the tokens of a text that are part of each name, wherever it occurs."""
        places = self._places(text)
        named = np.zeros((len(names), len(places)), bool)
        for row, name in zip(named, names, strict=True):
            whole = rf"(?<!\w){re.escape(name)}(?!\w)" if name else r"(?!)"
            for found in re.finditer(whole, text):
                row |= (places[:, 0] < found.end()) & (places[:, 1] > found.start())
        return named

    def _ends(self, text: str, options: Sequence[str], cuts: Sequence[Sequence[int]]) -> list[list[int]]:
        """For each option of a question's text the places of the tokens that hold the last characters of its pieces.

        Args:
            text: as `question_text` makes it.
            options: its options.
            cuts: how many characters into each option its pieces end.
        """
        ends, end = [], len(text)
        for option, pieces in zip(reversed(options), reversed(cuts), strict=True):
            end -= len(option)
            ends.append([end + piece - 1 for piece in pieces])
            end -= len("\nA ")
        last = self._places(text)[:, 1]
        return [np.searchsorted(last, pieces, side="right").tolist() for pieces in reversed(ends)]

    def _places(self, text: str) -> np.ndarray:
        """(L,2) where each token of a text begins and ends in it, characters."""
        return self._encoded(text)[:, 1:]

    def _encoded(self, text: str) -> np.ndarray:
        """(L,3) id, begin and end of each token of a text."""
        if text not in self._kept:
            encoded = self.tokenizer(
                _readable(text), add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
            )
            rows = [(token, *place) for token, place in zip(encoded.input_ids, encoded.offset_mapping, strict=True)]
            self._kept[text] = np.array(rows, np.int32).reshape(-1, 3)
            # A question of the reading stage has its options in an order of its own and is not asked again.
            if len(self._kept) > KEPT_TEXTS:
                self._kept.popitem(last=False)
        self._kept.move_to_end(text)
        return self._kept[text]

    def _frame(self, content: list[dict]) -> tuple[str, str, str]:
        """The rendered template, cut at the video pad (if any) and at the question's place."""
        rendered = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        head, found, after = rendered.partition(MARK)
        before, pad, between = head.partition(VIDEO_PAD)
        if not found or bool(pad) != (content[0]["type"] == "video"):
            raise ParameterError("the tokenizer's chat template does not place a video and a text as Qwen's does")
        return before, between, after

    def _shell(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def words(self, text: str) -> list[int]:
        """Ids of a text, special tokens taken as plain text."""
        return self._encoded(text)[:, 0].tolist()

    def _letter(self, letter: str) -> int:
        ids = self.words(letter)
        if len(ids) != 1:
            raise ParameterError(f"the tokenizer splits the option letter {letter} into {len(ids)} tokens")
        return ids[0]


def _check_form(options: Sequence[str], answer: str | None) -> None:
    if len(options) != len(LETTERS) or (answer is not None and answer not in LETTERS):
        raise QuestionError(f"{len(options)} options, answer {answer!r}: expected 4 and a letter A to D")


def _readable(text: str) -> str:
    """The text without halves of characters, which no tokenizer takes."""
    return text.encode("utf-8", "replace").decode()


def build_tokenizer(texts: Iterable[str], vocabulary: int):
    """A byte-level BPE of the given texts, saved and loaded like Qwen's: same special tokens, a chat template.

    A numbered state of an answer is two pieces, its number and all the rest, so that a small model has a word for it;
    else digits stand alone. Every byte is in the alphabet, so no text is unknown. The same texts in any order give the
    same tokenizer.

    Returns:
        transformers' `PreTrainedTokenizerFast`.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    # Read by the tokenizers library: worker threads would only fight with torch's for two cores.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sorted([*texts, "\n".join(LETTERS), "system user assistant"]), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=TURN_END,
        pad_token="<|endoftext|>",
        additional_special_tokens=[t for t in SPECIAL_TOKENS if t not in (TURN_END, "<|endoftext|>")],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def special_ids(tokenizer) -> dict[str, int]:
    """Ids of Qwen's special tokens in the tokenizer, and `vocabulary`, the number of its entries."""
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    return {**ids, "vocabulary": len(tokenizer)}
