"""The blind audit: how well do readers that never see a video answer the questions?

Readers are trained on the questions of one split and scored on another. They see a question's text and its four
options, nothing else. Where options are free of shortcuts every one of them stays at 1/4.
"""

import re
from dataclasses import asdict, dataclass, field

import numpy as np
from pandas import DataFrame, Series

from validations import blind_readers, blind_transformer
from validations.blind_readers import Giveaway
from validations.blind_statistics import Share, clustered_share, holm
from validations.blind_text import LETTERS, Texts, hashed

CHANCE = 0.25
OVERALL = "overall"
SIGNIFICANCE = 0.05
# Questions that hang together: those of a quad share their options, those of a clip what was filmed.
CLUSTERS = ("quad", "clip")
_TRAIN_SHARE = 0.6
_LETTERED = re.compile(r"\s*\(?([A-Da-d])\s*[.):]\s*")
_LETTER = re.compile(r"\s*\(?([A-Da-d])\s*(?:[.):].*)?", re.DOTALL)


class BlindAuditError(ValueError):
    """The tables do not allow a blind audit; the message says what is missing."""


@dataclass(frozen=True)
class Score(Share):
    """One reader's accuracy on one type (or overall)."""

    reader: str
    type: str


@dataclass(frozen=True)
class Verdict:
    """Whether a release may go out as far as blind readers are concerned, and why, in one line."""

    passed: bool
    reason: str


@dataclass(frozen=True)
class BlindAudit:
    """What every reader scored, overall and per type.

    Attributes:
        scores: of every reader, overall and on every type.
        giveaways: what gave answers away most, strongest first, by reader ("question" and "words"); where a reader is
            at chance, noise.
        left_out: rows of an imported table that cannot be read: without four options, or without a right one.
    """

    scores: list[Score]
    giveaways: dict[str, list[Giveaway]] = field(default_factory=dict)
    left_out: int = 0

    def of(self, reader: str, kind: str = OVERALL) -> Score:
        """Score of one reader on one type."""
        return next(score for score in self.scores if (score.reader, score.type) == (reader, kind))

    def best(self, kind: str = OVERALL) -> Score:
        """Score of the reader that found most."""
        return max((score for score in self.scores if score.type == kind), key=lambda score: score.accuracy)

    def worst_type(self) -> Score:
        """Score of the reader and type with the highest accuracy."""
        return max((score for score in self.scores if score.type != OVERALL), key=lambda score: score.accuracy)

    def verdict(self, overall: float = 0.03, per_type: float = 0.06) -> Verdict:
        """Judge the release.

        A reader fails it overall where its accuracy lies more than ``overall`` above chance, and on a type where it
        lies more than ``per_type`` above; in both cases only if that accuracy is significantly above chance: the
        one-sided test against 1/4 rejects at 5 % after Holm's correction, over readers for the first and over readers
        and types for the second. So the bound says how large a shortcut may be, the test only that there is one, and a
        data set without any fails for one audit in twenty at most, however small it is.
        """
        failures = [
            *_significant([score for score in self.scores if score.type == OVERALL], overall),
            *_significant([score for score in self.scores if score.type != OVERALL], per_type),
        ]
        shown = failures[0] if failures else self.best()
        where = "overall" if shown.type == OVERALL else f"on {shown.type}"
        more = f"; {len(failures) - 1} more beyond the bounds" if len(failures) > 1 else ""
        return Verdict(
            not failures,
            f"{'' if failures else 'best '}text-only reader {shown.reader} is right in {shown.accuracy:.1%} of "
            f"{shown.n} questions {where} (95 % interval {shown.low:.1%} to {shown.high:.1%}; chance 25 %, allowed "
            f"{CHANCE + (overall if shown.type == OVERALL else per_type):.1%}){more}",
        )

    def as_dict(self) -> dict:
        """Scores by reader and type, and what gave answers away, ready for JSON; rounded to 4 decimals."""
        readers: dict = {}
        for score in self.scores:
            readers.setdefault(score.reader, {})[score.type] = {
                "accuracy": round(score.accuracy, 4),
                "ci95": [round(score.low, 4), round(score.high, 4)],
                "n": score.n,
            }
        given_away = {reader: [asdict(item) for item in items] for reader, items in self.giveaways.items()}
        return {"chance": CHANCE, "readers": readers, "giveaways": given_away, "left_out": self.left_out}


def _significant(scores: list[Score], excess: float) -> list[Score]:
    """Return the scores beyond a bound that are also significant, the furthest beyond first."""
    adjusted = holm(np.array([score.p_value for score in scores]))
    found = [
        score
        for score, p_value in zip(scores, adjusted, strict=True)
        if score.accuracy > CHANCE + excess and p_value < SIGNIFICANCE
    ]
    return sorted(found, key=lambda score: -score.accuracy)


def blind_audit(
    train: DataFrame, held_out: DataFrame, seed: int, most: int = 20_000, most_steps: int = 2000
) -> BlindAudit:
    """Train text-only readers on one table of questions and score them on another.

    Args:
        train: columns type, question, options (four strings), answer (letter "A" to "D").
        held_out: the same columns; no question of it may be in ``train``. Questions that share a ``quad`` or a
            ``clip``, where there are such columns, are not taken for independent.
        seed: of the readers' own draws, and of ties.
        most: larger tables are sampled down to so many questions, those that share options together.
        most_steps: batches that the transformer learns from at most; it takes most of the time (about 25 ms each).

    Returns:
        Accuracies of the readers: "options" (boosted trees on the four options and the type), "question" (the same
        with what the question says), "words" (a conditional logit on n-grams of question and option and on their
        pairs), "transformer" (a small one, trained from random weights), "longest" and "central" (fixed rules: the
        option with most states; the one most like the others). And what gave answers away to "question" and "words".

    Raises:
        BlindAuditError: a column is missing, a table is empty, options are not four or an answer is no letter.
    """
    train, held_out = (
        _sampled(_checked(table, name), most, seed) for table, name in ((train, "train"), (held_out, "held_out"))
    )
    learned, asked = Texts.of(train), Texts.of(held_out)
    seen, shown = blind_readers.describe(learned, asked)
    readers = {"longest": shown.options[..., 0], "central": shown.options[..., 1]}
    giveaways = {}
    readers["options"], _ = blind_readers.boosted(learned, seen, shown, asked.keyed, seed, whole_question=False)
    readers["question"], giveaways["question"] = blind_readers.boosted(
        learned, seen, shown, asked.keyed, seed, whole_question=True
    )
    readers["words"], giveaways["words"] = blind_readers.words(learned, asked)
    readers["transformer"] = blind_transformer.read(learned, asked, seed, most_steps)
    clusters = [held_out[name].to_numpy(str) for name in CLUSTERS if name in held_out]
    ties = _ties(asked, seed)
    scores = []
    for name, score in readers.items():
        right = _choices(score, ties) == asked.keyed
        scores.append(_score(name, OVERALL, right, clusters))
        for kind in sorted(set(asked.kinds)):
            among = asked.kinds == kind
            scores.append(_score(name, str(kind), right[among], [labels[among] for labels in clusters]))
    return BlindAudit(scores, giveaways)


def audit_data_set(table: DataFrame, seed: int, most: int = 20_000, most_steps: int = 2000) -> BlindAudit:
    """Audit one table of questions from anywhere.

    Args:
        table: columns question, options and answer; options may carry their letters ("A. Left"), answers may be a
            letter, a letter with more behind it, or the text of an option. ``type`` may be missing. Where ``split``
            has "train" and something else, readers learn from the one and are scored on the other; else three fifths
            of the videos (``clip`` or ``videoID``; without either, of the sets of options) are learned from. Questions
            of a ``quad`` that lies on both sides are not scored: its other questions would rule out their options.
        seed: of the readers, and of the split.
        most: as in ``blind_audit``.
        most_steps: as in ``blind_audit``.

    Returns:
        The audit; ``left_out`` counts the rows that cannot be read.

    Raises:
        BlindAuditError: a column is missing, or one side of the split is left without questions.
    """
    read = _read(table)
    learned = _learned_from(read, seed)
    held_out = read[~learned]
    if "quad" in read:
        held_out = held_out[~held_out["quad"].isin(set(read["quad"][learned]))]
    audit = blind_audit(read[learned], held_out, seed, most, most_steps)
    return BlindAudit(audit.scores, audit.giveaways, len(table) - len(read))


def _read(table: DataFrame) -> DataFrame:
    """Bring rows of other data sets to the form that readers expect, without those that cannot be."""
    missing = {"question", "options", "answer"} - set(table.columns)
    if missing:
        raise BlindAuditError(f"lacks the columns {sorted(missing)}; give a table of questions with four options each")
    options = [_without_letters([str(option) for option in four]) for four in table["options"]]
    answers = [_letter(str(answer), four) for answer, four in zip(table["answer"], options, strict=True)]
    read = table.assign(
        type=table["type"].fillna("unknown").astype(str) if "type" in table else "all",
        question=table["question"].astype(str),
        options=options,
        answer=answers,
    )
    if "clip" not in read and "videoID" in read:
        read["clip"] = read["videoID"].astype(str)
    return read[[len(four) == 4 and letter is not None for four, letter in zip(options, answers, strict=True)]]


def _without_letters(options: list[str]) -> list[str]:
    found = [_LETTERED.match(option) for option in options]
    if all(found) and "".join(match[1] for match in found).upper() == LETTERS[: len(options)]:
        return [option[match.end() :] for option, match in zip(options, found, strict=True)]
    return options


def _letter(answer: str, options: list[str]) -> str | None:
    """Letter of the right option, None where the answer names none or its text stands there twice."""
    if options.count(answer) == 1 and len(options) <= len(LETTERS):
        return LETTERS[options.index(answer)]
    found = _LETTER.fullmatch(answer)
    return found[1].upper() if found else None


def _learned_from(table: DataFrame, seed: int) -> Series:
    """Which rows the readers learn from."""
    if "split" in table and (table["split"] == "train").any() and (table["split"] != "train").any():
        return table["split"] == "train"
    group = table["clip"].astype(str) if "clip" in table else table["options"].map(lambda four: "|".join(sorted(four)))
    # Shares of the groups in a drawn order, so that a handful of videos still has both sides.
    order = sorted(set(group), key=lambda name: hashed(f"{seed}|split|{name}"))
    return group.isin(order[: max(int(_TRAIN_SHARE * len(order)), 1)])


def _score(reader: str, kind: str, right: np.ndarray, clusters: list[np.ndarray]) -> Score:
    return Score(**asdict(clustered_share(right, clusters, CHANCE)), reader=reader, type=kind)


def _checked(table: DataFrame, name: str) -> DataFrame:
    missing = {"type", "question", "options", "answer"} - set(table.columns)
    if missing:
        raise BlindAuditError(f"{name}: lacks the columns {sorted(missing)}; give a table of questions")
    if not len(table):
        raise BlindAuditError(f"{name}: no questions; build more before auditing")
    if not all(len(options) == 4 for options in table["options"]) or not set(table["answer"]) <= set(LETTERS):
        raise BlindAuditError(f"{name}: expected four options and a letter A to D in every row")
    return table.reset_index(drop=True)


def _sampled(table: DataFrame, most: int, seed: int) -> DataFrame:
    if len(table) <= most:
        return table
    drawn = np.array([hashed("|".join([str(seed), *sorted(options)])) for options in table["options"]])
    return table.iloc[np.argsort(drawn, kind="stable")[:most]].reset_index(drop=True)


def _ties(texts: Texts, seed: int) -> np.ndarray:
    """(n,4) draws that decide between options of equal score, by what the options say, not by their letters."""
    drawn: dict[tuple[str, ...], list[float]] = {}
    for options in texts.options:
        if options not in drawn:
            among = "|".join(sorted(options))
            drawn[options] = [hashed(f"{seed}|{option}|{among}") for option in options]
    return np.array([drawn[options] for options in texts.options])


def _choices(scores: np.ndarray, ties: np.ndarray) -> np.ndarray:
    """Index of the best option per question (n,)."""
    best = scores >= scores.max(axis=1, keepdims=True) - 1e-12
    return np.where(best, ties, -1.0).argmax(axis=1)
