"""Which option, or which number, a model's free text answers with: ordered rules, no second model.

A reply is read as a person would grade it. What it announces as its answer counts ("the final answer is: B", a box, an
answer tag): the last announcement first, a letter before the words beside it. Where nothing is announced, an option
named by its letter counts, then the option that the last sentences speak of. Nothing is guessed: a placeholder, several
letters or a refusal is no answer.

Replies are hostile: they are bounded before they are looked at, and no pattern spans more than a bounded stretch.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

# The answer stands at the end; a reply longer than this has gone astray.
LONGEST_REPLY = 32_768
LONGEST_SENTENCE = 1_000
# What is announced stands so close behind its announcement, in characters.
REACH = 300
MOST_ANNOUNCEMENTS = 20
# So many sentences from the end make up a conclusion.
CONCLUDING = 4
# What a reply that was not cut short may end with.
ENDINGS = ".!?)]'。"
# Least share of an option's words that a sentence must hold to speak of it.
ENOUGH_WORDS = 0.5

_ANNOUNCED = " The answer is: "
_THOUGHT = re.compile(r"</?think(?:ing)?>", re.IGNORECASE)
# A box, an answer tag, and the announcement in Chinese, in which some models reply.
_BOX = re.compile(
    r"\\f?box(?:ed)?\s?\{|<answer>|<\|begin_of_box\|>|答案\s?(?:应该是|应为|是|为|选)?\s?:?", re.IGNORECASE
)
_TYPESETTING = re.compile(r"\\[a-z]{1,10}\b|</?[a-z_]{2,20}>|<\|[a-z_]{1,20}\|>", re.IGNORECASE)
_MARKS = str.maketrans(dict.fromkeys('*`$\\{}#"“”', " ") | {"’": "'", "‘": "'", "–": "-", "—": "-"})
_MARKER = re.compile(
    r"(?<!to )\b(?:answer|(?:correct|right|best|suitable|appropriate|likely|plausible|final)"
    r" (?:option|choice|response))\b"
    r"(?: [^,.:;?!\n]{0,60}?)??(?: (?:is|be|are|was)\b|(?= ?[:=]))\s{0,3}[:=]{0,2}",
    re.IGNORECASE,
)
_LEAD = re.compile(
    r"\s{0,4}(?:(?:option|choice|letter|that|the|either|likely|probably|most|is|as follows)\b[ :]{0,3}){0,5}", re.I
)
_LABEL = re.compile(r"[\s(\['<.,:-]{0,6}([A-Za-z])(?!\w|'\w)(?P<close>[)\]'>.,:;]{0,3})", re.ASCII)
_FURTHER = re.compile(
    r"\s{0,2}(?:(?:/|,?\s?\b(?:or|and)\b)\s{0,2}(?:option )?[(\['\s]{0,2}[A-Z](?!\w|'\w)"
    r"|,\s{0,2}[(\[']{0,2}[A-Z][)\]']{0,2}\s?(?:,|/|\.|\bor\b|\band\b|$))"
)
_CHOSEN = re.compile(r"\b(?i:option|choice|choose|select|pick|letter|answer|go with)[ :(']{1,4}([A-Z])(?!\w|'\w)")
_PLACEHOLDER = re.compile(r"\b(?:LETTER|(?i:your (?:answer|choice)))\b")
_DENIED = re.compile(r" {0,2}(?:not|neither) (?:option )?\(?[A-Z](?!\w)")
_PARENTHESISED = re.compile(r"\(([A-Z])\)")
_BARE = re.compile(r"[\W_]{0,20}(?:option|answer)?[\W_]{0,20}([A-Z])[\W_]{0,20}", re.IGNORECASE)
# A capital letter that is no word: "A" and "I" only where something sets them off.
_ALONE = re.compile(r"(?<![\w'])(?:([B-HJ-Z])|([AI])(?= ?(?:[)\].,:;]|$| is\b)))(?!\w|'\w)")
_LINE_LABEL = re.compile(r"^[\s(\[']{0,3}([A-Z])[)\]']{0,2}(?:[.:,]|$|(?<=[)\]]))", re.MULTILINE)
_SENTENCE_END = re.compile(r"(?<=[.!?;])\s|\n")
_REFUSAL = re.compile(
    r"\b(?:can ?not|can't|could not|couldn't|unable to|impossible|not possible|not applicable|n/a|unsure|insufficient"
    r"|do(?:es)? not apply|(?:not|without|lack of) (?:enough|sufficient|further|more|additional|specific))\b",
    re.IGNORECASE,
)
_WORD = re.compile(r"[a-z0-9]+")
_TURNING = re.compile(r"\b(?:counter|anti)[- ]?clock")
_NOT = re.compile(r"\b(?:can)?n't\b|n't\b|\bcannot\b")
_FILLERS = frozenset(["a", "an", "the", "is", "are", "was", "be", "it", "its", "their", "his", "her", "s"]).union(
    ["to", "of", "in", "on", "at", "and", "with"]
)
_DENIALS = frozenset(["not", "no", "never", "without", "neither", "nor", "than"])
# What may stand between "no" or "not" and the thing that is not there; behind the thing and "not", what says so.
_SEEING = frozenset(["any", "such", "see", "visible", "clear", "sign", "have", "there", "present", "seen"]).union(
    ["show", "shown", "depict", "contain", "include", "feature"]
)
_SEEN = frozenset(["visible", "present", "seen", "shown", "there"])
_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven")
_ALIKE = {word: str(number) for number, word in enumerate(_NUMBER_WORDS)} | dict.fromkeys(
    ["stationary", "motionless", "static"], "still"
)
_ORDINAL = re.compile(
    r"^\s{0,3}\d{1,2}[.)]\s|\b(?:image|frame|step|figure|number|option|point|no\.)s?[ #]{1,2}\d+", re.M | re.I
)
_ABSENT = re.compile(r"(?:there (?:is|are|was|were) )?no (.+?)(?: there| (?:in|on) the \w+)?", re.IGNORECASE)
_NUMBER = re.compile(
    r"(?<![\w.,^])[-+]?(?:\d{1,3}(?:,\d{3}){1,4}|\d{1,15})(?:\.\d{1,12})?(?:e[-+]?\d{1,2})?(?!\d)", re.IGNORECASE
)


@dataclass(frozen=True)
class Extraction:
    """What a reply answers.

    Attributes:
        answer: the option's letter, or the number as text; None where the reply gives none.
        rule: how it was found: "whole", "announced", "labelled", "chosen", "concluded", for numbers also "last"; or why
            there is none: "placeholder", "several", "refused", "broken off", "nothing".
    """

    answer: str | None
    rule: str


def extract_letter(reply: str, options: Sequence[str]) -> Extraction:
    """The letter of the option that a reply to a multiple-choice question answers with.

    Args:
        reply: the model's text, an answer alone or at the end of its reasoning.
        options: the options' texts without their letters; the first is "A".

    Raises:
        ValueError: there are not 1 to 26 options.
    """
    if not 0 < len(options) <= len(string.ascii_uppercase):
        raise ValueError(f"{len(options)} options; give 1 to {len(string.ascii_uppercase)}")
    text, choices = cleaned(reply), _Choices(options)
    for rule in (_whole, _announced, _labelled, _chosen, _concluded):
        if found := rule(text, choices):
            return found
    return Extraction(None, "nothing")


def extract_number(reply: str) -> Extraction:
    """The number that a reply to a question without options answers with, as text that ``float`` reads.

    The first number of the last announcement that has one, else the last number of the reply; what stands in brackets
    repeats in other units what was said before.
    """
    text = re.sub(r"(?<=\d)([^()\n]{0,40})\([^()]{0,80}\)", r"\1", cleaned(reply))
    for behind in _announcements(text):
        if found := _numbers(_statement(behind)):
            return Extraction(found[0], "announced")
    if found := _numbers(text):
        return Extraction(found[-1], "whole" if found == [text.replace(",", "")] else "last")
    return Extraction(None, "refused" if _REFUSAL.search(text) else "nothing")


def _numbers(text: str) -> list[str]:
    """The numbers of a text; where none is in digits, those in words."""
    digits = [number.replace(",", "") for number in _NUMBER.findall(text)]
    return digits or [_ALIKE[word] for word in _WORD.findall(text.lower()) if word in _NUMBER_WORDS]


def _announcements(text: str) -> list[str]:
    """What stands behind each announcement, the last one first."""
    ends = [marker.end() for marker in _MARKER.finditer(text)][-MOST_ANNOUNCEMENTS:]
    return [text[end : end + REACH] for end in reversed(ends)]


def _statement(behind: str) -> str:
    """The first sentence of what stands behind an announcement."""
    return _SENTENCE_END.split(behind.lstrip(" \n:"), maxsplit=1)[0]


def cleaned(reply: str) -> str:
    """A reply without its hidden thoughts and typesetting, bounded; a box or an answer tag becomes an announcement."""
    text = unicodedata.normalize("NFKC", reply[-LONGEST_REPLY:])[-LONGEST_REPLY:]
    if (marks := _THOUGHT.findall(text)) and not marks[-1].startswith("</"):
        return ""
    text = _THOUGHT.split(text)[-1]
    text = _TYPESETTING.sub(" ", _BOX.sub(_ANNOUNCED, text)).translate(_MARKS)
    return re.sub(r"[^\S\n]+", " ", text).strip()


# The rules: each gives what it found, or None to leave the reply to the next -----------------------------------------


def _whole(text: str, choices: _Choices) -> Extraction | None:
    """The reply, or its last line, is nothing but a letter."""
    bare = _BARE.fullmatch(text.rsplit("\n", 1)[-1])
    return Extraction(bare[1].upper(), "whole") if bare and bare[1].upper() in choices.letters else None


def _announced(text: str, choices: _Choices) -> Extraction | None:
    """The reply says that something is its answer; the last time counts that says which."""
    for behind in _announcements(text):
        if _DENIED.match(behind):
            continue
        if found := _label(behind, choices):
            return Extraction(found, "announced") if found in choices.letters else Extraction(None, "several")
        statement = _statement(behind)
        if _PLACEHOLDER.search(statement):
            return Extraction(None, "placeholder")
        named = {letter for letter in _PARENTHESISED.findall(statement) if letter in choices.letters}
        letter = named.pop() if len(named) == 1 else choices.named_in(statement) or choices.hinted_at(statement)
        if letter:
            return Extraction(letter, "announced")
        if _REFUSAL.search(statement):
            return Extraction(None, "refused")
    return None


def _labelled(text: str, choices: _Choices) -> Extraction | None:
    """One option stands under its letter, at the start, at the end or before its own text; a list of them does not."""
    lines = {letter for letter in _LINE_LABEL.findall(text) if letter in choices.letters}
    at_an_end = _LINE_LABEL.match(text) or _LINE_LABEL.match(text.rsplit("\n", 1)[-1])
    own = {letter for letter, pattern in choices.own_labels.items() if pattern.search(text)}
    letter = _only(lines) if at_an_end and lines else _only(own)
    return Extraction(letter, "labelled") if letter else None


def _chosen(text: str, choices: _Choices) -> Extraction | None:
    """The last option that the reply names by its letter: "option B fits", or "so it is B" as its last sentence."""
    for found in reversed(list(_CHOSEN.finditer(text))):
        if found[1] in choices.letters and not _FURTHER.match(text, found.end()):
            return Extraction(found[1], "chosen")
    last = text.rsplit("\n", 1)[-1]
    sentence = _SENTENCE_END.split(last)[-1]
    alone = {first or second for first, second in _ALONE.findall(sentence)} & choices.letters
    letter = None if _LINE_LABEL.match(last) else _only(alone)
    return Extraction(letter, "chosen") if letter else None


def _concluded(text: str, choices: _Choices) -> Extraction | None:
    """The option that the last sentences speak of, the later sentence first."""
    sentences = [sentence for sentence in _SENTENCE_END.split(text) if sentence.strip()]
    if len(sentences) > 1 and text[-1] not in ENDINGS:
        return Extraction(None, "broken off")
    for sentence in reversed(sentences[-CONCLUDING:]):
        if letter := choices.named_in(sentence):
            return Extraction(letter, "concluded")
        if _REFUSAL.search(sentence):
            return Extraction(None, "refused")
        if letter := choices.hinted_at(sentence):
            return Extraction(letter, "concluded")
    return None


def _label(behind: str, choices: _Choices) -> str | None:
    """The letter that text starts with; "several" where it lists more than one; None where it starts with a word."""
    label = _LABEL.match(behind, _LEAD.match(behind).end())
    if not label or label[1].upper() not in choices.letters:
        return None
    letter, rest = label[1].upper(), behind[label.end() :]
    if _FURTHER.match(behind, label.end(1) + len(label["close"].rstrip(",. "))):
        return "several"
    # "A" and "a" are also words: they are labels where something sets them off, or where their option follows.
    if letter not in "AI" and label[1].isupper():
        return letter
    if label["close"] or rest.startswith("\n") or rest.lstrip()[:1] in ("", *"(-=.,:;)"):
        return letter
    words = choices.words[letter]
    return letter if words and words_of(rest[:LONGEST_SENTENCE])[: len(words)] == words else None


# Options and what sentences say about them --------------------------------------------------------------------------


def words_of(text: str) -> list[str]:
    """The words that carry meaning, in one spelling: no fillers, numbers as digits, no "-wards"."""
    plain = _NOT.sub(" not", _TURNING.sub("counterclock", text.lower()))
    return [_spelt(word) for word in _WORD.findall(plain) if word not in _FILLERS]


def _spelt(word: str) -> str:
    word = _ALIKE.get(word, word)
    for ending in ("wards", "ward"):
        if word.endswith(ending) and len(word) > len(ending) + 1:
            return word.removesuffix(ending)
    return word.removesuffix("s") if len(word) > 3 and not word.endswith("ss") else word


class _Choices:
    """The options of a question, as sentences speak of them."""

    def __init__(self, options: Sequence[str]):
        self.texts = dict(
            zip(string.ascii_uppercase, (str(option)[:LONGEST_SENTENCE] for option in options), strict=False)
        )
        self.letters = frozenset(self.texts)
        self.words = {letter: words_of(text) for letter, text in self.texts.items()}

    @cached_property
    def own_labels(self) -> dict[str, re.Pattern]:
        """For each letter: its label followed by its option's text."""
        return {
            letter: re.compile(rf"(?<![\w']){letter}[)\]:.,]{{1,2}} ?\(?(?i:{re.escape(text.strip())})(?!\w)")
            for letter, text in self.texts.items()
            if text.strip()
        }

    @cached_property
    def numeric(self) -> bool:
        """Whether all options are numbers."""
        return all(len(words) == 1 and words[0].isdigit() for words in self.words.values())

    @cached_property
    def absent(self) -> dict[str, list[str]]:
        """For each option that says that something is not there: the words of what is not."""
        found = {letter: _ABSENT.fullmatch(text.strip(" .")) for letter, text in self.texts.items()}
        return {letter: words_of(match[1]) for letter, match in found.items() if match}

    def named_in(self, sentence: str) -> str | None:
        """The letter of the one option that a sentence names in the option's words, or None."""
        said = self._words_of(sentence)
        missing = {letter for letter, words in self.absent.items() if _says_absent(said, words)}
        return _only(missing or self._phrases(said))

    def hinted_at(self, sentence: str) -> str | None:
        """The letter of the one option that shares most of its words with a sentence that names none, or None."""
        said = set(self._words_of(sentence))
        shares = {
            letter: len(said.intersection(words)) / len(set(words)) for letter, words in self.words.items() if words
        }
        most = max(shares.values(), default=0.0)
        return _only({letter for letter, share in shares.items() if share == most >= ENOUGH_WORDS})

    def _words_of(self, sentence: str) -> list[str]:
        bounded = sentence[:LONGEST_SENTENCE]
        return words_of(_ORDINAL.sub(" ", bounded) if self.numeric else bounded)

    def _phrases(self, said: list[str]) -> set[str]:
        """Options whose words stand in a row, longer ones first; not where denied, nor as what is moved away from."""
        taken, plain, origins = [False] * len(said), set(), set()
        for letter, words in sorted(self.words.items(), key=lambda item: -len(item[1])):
            for start in _occurrences(said, words):
                if any(taken[start : start + len(words)]):
                    continue
                taken[start : start + len(words)] = [True] * len(words)
                before = said[max(0, start - 3) : start]
                if words[0] in _DENIALS or not _DENIALS.intersection(before):
                    (origins if before[-1:] == ["from"] else plain).add(letter)
        return plain or origins


def _only(letters: set[str]) -> str | None:
    """The letter where there is exactly one."""
    return next(iter(letters)) if len(letters) == 1 else None


def _occurrences(said: list[str], words: list[str]) -> Iterator[int]:
    """Where words stand in a row."""
    for start in range(len(said) - len(words) + 1):
        if words and said[start : start + len(words)] == words:
            yield start


def _says_absent(said: list[str], thing: list[str]) -> bool:
    """Whether words say that a thing is not there: "no fish", "not see any fish", "fish not visible"."""
    for start in _occurrences(said, thing):
        before = [word for word in said[max(0, start - 5) : start] if word not in _SEEING]
        after = said[start + len(thing) : start + len(thing) + 3]
        if before[-1:] in (["not"], ["no"]) or (after[:1] == ["not"] and _SEEN.intersection(after)):
            return True
    return False
