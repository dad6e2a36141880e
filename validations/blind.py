"""The blind audit: how well do readers that never see a video answer the questions?

Readers are trained on the questions of one split and scored on another. They see a question's text and its four
options, nothing else. Where options are free of shortcuts every one of them stays at 1/4.
"""

import hashlib
import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
from pandas import DataFrame

CHANCE = 0.25
OVERALL = "overall"
_LETTERS = "ABCD"
_STATES = re.compile(r"\(\d+\)\s*([^()]+?)\s*\.?\s*(?=\(\d+\)|$)")
_TIMES = re.compile(r"(\d+(?:\.\d+)?)s\b")
_WORDS = re.compile(r"[a-z]+|\d+(?:\.\d+)?", re.IGNORECASE)
_TEXT_BUCKETS = 2**20
_WORD_BUCKETS = 32


class BlindAuditError(ValueError):
    """The tables do not allow a blind audit; the message says what is missing."""


@dataclass(frozen=True)
class Score:
    """One reader's accuracy on one type (or overall), with its 95 % Wilson interval."""

    reader: str
    type: str
    n: int
    correct: int
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True)
class BlindAudit:
    """What every reader scored, overall and per type."""

    scores: list[Score]

    def of(self, reader: str, kind: str = OVERALL) -> Score:
        """Score of one reader on one type."""
        return next(score for score in self.scores if (score.reader, score.type) == (reader, kind))

    def best(self, kind: str = OVERALL) -> Score:
        """Score of the reader that found most."""
        return max((score for score in self.scores if score.type == kind), key=lambda score: score.accuracy)

    def as_dict(self) -> dict:
        """Scores by reader and type, ready for JSON; rounded to 4 decimals."""
        readers: dict = {}
        for score in self.scores:
            readers.setdefault(score.reader, {})[score.type] = {
                "accuracy": round(score.accuracy, 4),
                "ci95": [round(score.low, 4), round(score.high, 4)],
                "n": score.n,
            }
        return {"chance": CHANCE, "readers": readers}


def wilson(correct: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (Wilson 1927, JASA 22, 209-212); (0, 1) where n is 0."""
    if n == 0:
        return 0.0, 1.0
    share = correct / n
    center = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return float(max(center - half, 0.0)), float(min(center + half, 1.0))


def blind_audit(train: DataFrame, held_out: DataFrame, seed: int, most: int = 20_000) -> BlindAudit:
    """Train text-only readers on one table of questions and score them on another.

    Args:
        train: columns type, question, options (four strings), answer (letter "A" to "D").
        held_out: the same columns; no question of it may be in ``train``.
        seed: of the readers' own draws, and of ties.
        most: larger tables are sampled down to so many questions, those that share options together.

    Returns:
        Accuracies of the readers: "options" (boosted trees on the four options alone), "question" (the same with
        what the question says), "words" (logistic regression on n-grams of question and option and on their pairs),
        "longest" and "central" (fixed rules: the longest option; the one most like the others).

    Raises:
        BlindAuditError: a column is missing, a table is empty, options are not four or an answer is no letter.
    """
    train, held_out = (
        _sampled(_checked(table, name), most, seed) for table, name in ((train, "train"), (held_out, "held_out"))
    )
    seen, options = _option_features(train), _option_features(held_out)
    asked, asks = _question_features(train), _question_features(held_out)
    readers = {
        "options": _boosted(seen, asked[:, :1], train, options, asks[:, :1], seed),
        "question": _boosted(seen, asked, train, options, asks, seed),
        "words": _words(train, held_out, seed),
        "longest": options[..., 0],
        "central": options[..., 1],
    }
    keyed = np.array([_LETTERS.index(letter) for letter in held_out["answer"]])
    scores = []
    for name, score in readers.items():
        right = _choices(score, held_out, seed) == keyed
        scores.append(_score(name, OVERALL, right))
        kinds = held_out["type"].to_numpy()
        scores += [_score(name, kind, right[kinds == kind]) for kind in sorted(set(kinds))]
    return BlindAudit(scores)


def _score(reader: str, kind: str, right: np.ndarray) -> Score:
    correct, n = int(right.sum()), len(right)
    return Score(reader, kind, n, correct, correct / n, *wilson(correct, n))


def _checked(table: DataFrame, name: str) -> DataFrame:
    missing = {"type", "question", "options", "answer"} - set(table.columns)
    if missing:
        raise BlindAuditError(f"{name}: lacks the columns {sorted(missing)}; give a table of questions")
    if not len(table):
        raise BlindAuditError(f"{name}: no questions; build more before auditing")
    if not all(len(options) == 4 for options in table["options"]) or not set(table["answer"]) <= set(_LETTERS):
        raise BlindAuditError(f"{name}: expected four options and a letter A to D in every row")
    return table.reset_index(drop=True)


def _sampled(table: DataFrame, most: int, seed: int) -> DataFrame:
    if len(table) <= most:
        return table
    drawn = np.array([_hashed("|".join([str(seed), *sorted(options)])) for options in table["options"]])
    return table.iloc[np.argsort(drawn, kind="stable")[:most]].reset_index(drop=True)


def _choices(scores: np.ndarray, table: DataFrame, seed: int) -> np.ndarray:
    """Index of the best option per question (n,); ties fall by what the options say, not by their letters."""
    ties = np.array(
        [
            [_hashed("|".join([str(seed), option, *sorted(options)])) for option in options]
            for options in table["options"]
        ]
    )
    best = scores >= scores.max(axis=1, keepdims=True) - 1e-12
    return np.where(best, ties, -1.0).argmax(axis=1)


def _hashed(text: str) -> float:
    """Return a number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "little") / 2**48


def states_of(option: str) -> list[str]:
    """Split "(1) Front. (2) Front|Left." into its states; an option without numbers is one state."""
    return _STATES.findall(option) or [option.strip()]


def _option_features(table: DataFrame) -> np.ndarray:
    """(n,4,F) numbers that describe each option among its four, from the options alone.

    The first is the number of states, the second how like the others the option is.
    """
    return np.array([_describe_options([states_of(option) for option in options]) for options in table["options"]])


def _describe_options(options: list[list[str]]) -> list[list[float]]:
    lengths = np.array([len(states) for states in options], float)
    edges = [set(pairwise(["", *states, ""])) for states in options]
    rows = []
    for index, states in enumerate(options):
        others = [edge for position, edge in enumerate(edges) if position != index]
        alike = [len(edges[index] & other) / len(edges[index] | other) for other in others]
        parts = [set(state.split("|")) for state in states]
        smooth = [len(a & b) / len(a | b) for a, b in pairwise(parts)]
        words = " ".join(states).lower()
        rows.append(
            [
                lengths[index],
                float(np.mean(alike)),
                max(alike),
                float((lengths < lengths[index]).sum()),
                float((lengths == lengths[index]).sum()),
                lengths[index] - lengths.mean(),
                len(set(states)) / len(states),
                float(np.mean(smooth)) if smooth else 1.0,
                min(smooth, default=1.0),
                float(sum(other[0] == states[0] for other in options)),
                float(sum(other[-1] == states[-1] for other in options)),
                *(words.count(word) / len(states) for word in _TELLING),
                *(float(word in states[0].lower()) for word in _TELLING),
                *(float(word in states[-1].lower()) for word in _TELLING),
            ]
        )
    return rows


_TELLING = (
    "constant",
    "larger",
    "smaller",
    "same",
    "former",
    "latter",
    "front",
    "behind",
    "left",
    "right",
    "above",
    "below",
)


@lru_cache(maxsize=65536)
def _bucket(word: str) -> int:
    return int(_hashed(word) * _WORD_BUCKETS)


def _question_features(table: DataFrame) -> np.ndarray:
    """(n,F) numbers that describe what a question says: its type first, its times, and which words are in it."""
    rows = []
    for kind, question in zip(table["type"], table["question"], strict=True):
        times = [float(time) for time in _TIMES.findall(question)[:3]]
        times += [-1.0] * (3 - len(times))
        words = np.bincount([_bucket(word) for word in _WORDS.findall(question.lower())], minlength=_WORD_BUCKETS)
        rows.append([_hashed(kind), *times, times[1] - times[0], times[2] - times[0], question.count("camera"), *words])
    return np.array(rows)


def _boosted(
    seen: np.ndarray, asked: np.ndarray, train: DataFrame, options: np.ndarray, asks: np.ndarray, seed: int
) -> np.ndarray:
    """(n,4) scores of boosted trees over one row per option: its features (·,4,F) and its question's (·,Q)."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from threadpoolctl import threadpool_limits

    def rows(option: np.ndarray, question: np.ndarray) -> np.ndarray:
        return np.concatenate([option, np.repeat(question[:, None], 4, axis=1)], axis=-1).reshape(4 * len(option), -1)

    model = HistGradientBoostingClassifier(max_iter=100, learning_rate=0.1, random_state=seed % 2**32)
    # One thread: sums in the same order on every machine, and no spinning where the cores are busy.
    with threadpool_limits(1):
        model.fit(rows(seen, asked), _keyed(train))
        return model.predict_proba(rows(options, asks))[:, 1].reshape(-1, 4)


def _keyed(table: DataFrame) -> np.ndarray:
    """(4n,) whether each option is the keyed one."""
    keyed = np.array([_LETTERS.index(letter) for letter in table["answer"]])
    return (np.arange(4) == keyed[:, None]).ravel()


def _tokens(pair: tuple[str, str]) -> list[str]:
    """N-grams of states of the option, words of the question, and the pairs of both."""
    question, option = pair
    states = states_of(option)
    said = [f"n={len(states)}", f"first={states[0]}", f"last={states[-1]}", *{f"has={state}" for state in states}]
    grams = ["=".join(states[start : start + n]) for n in (1, 2, 3) for start in range(len(states) - n + 1)]
    words = _WORDS.findall(question.lower())
    asked = sorted({*words, *(" ".join(two) for two in pairwise(words))})
    return [*said, *grams, *(f"{word}&{part}" for word in asked for part in said)]


def _words(train: DataFrame, held_out: DataFrame, seed: int) -> np.ndarray:
    """(n,4) scores of a logistic regression over hashed n-grams of question and option."""
    from sklearn.feature_extraction.text import HashingVectorizer
    from sklearn.linear_model import LogisticRegression

    vectorizer = HashingVectorizer(analyzer=_tokens, n_features=_TEXT_BUCKETS, norm="l2", alternate_sign=False)

    def rows(table: DataFrame):
        return vectorizer.transform(
            (question, option)
            for question, options in zip(table["question"], table["options"], strict=True)
            for option in options
        )

    model = LogisticRegression(C=10.0, max_iter=200, solver="liblinear", random_state=seed % 2**32)
    model.fit(rows(train), _keyed(train))
    return model.decision_function(rows(held_out)).reshape(-1, 4)
