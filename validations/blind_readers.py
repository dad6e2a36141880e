"""Readers of the blind audit that count: boosted trees on described options, n-grams, and two fixed rules.

Every reader scores (n,4) options of held-out questions, higher is likelier, and may say what gave answers away.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, pairwise

import numpy as np
from scipy import sparse

from validations.blind_text import LETTERS, Texts, distinct, option_words, question_grams, question_words, states_of

STRONGEST = 8
_PAIR_BUCKETS = 2**20
# Questions whose pairs of words and states are spelled out at once; bounds memory, changes nothing.
_CHUNK = 4096
_LEAST_COUNT = 2
_SMOOTHING = 0.1
_MOST_STEPS = 60
_COMMON_WORDS = 24
# Asked words in more than this share of questions tell types apart no better than the type does.
_TOO_COMMON = 0.9
_LOOKED_AT = 600
_KEPT_ROWS = 0.7
_LETTER_WORD = re.compile(r"[^\W\d_]+")


@dataclass(frozen=True)
class Giveaway:
    """Something in the text that helped a reader, and how much, in the reader's own unit."""

    text: str
    weight: float
    unit: str


@dataclass(frozen=True)
class Described:
    """Questions in numbers: ``options`` (n,4,F) of each option among its four, ``asked`` (n,Q) of the question."""

    options: np.ndarray
    asked: np.ndarray
    option_names: list[str]
    asked_names: list[str]


def describe(train: Texts, held_out: Texts) -> tuple[Described, Described]:
    """Describe both tables by the words that are common in the first.

    The first feature of an option is its number of states, the second how like the others it is; the first feature of
    a question is its type.
    """
    spoken = _common([word for four in train.options for option in four for word in _letter_words(option)], np.inf)
    asked = _common([word for question in train.questions for word in set(question_words(question))], len(train))
    kinds = {kind: code for code, kind in enumerate(sorted(set(train.kinds)))}
    return tuple(_described(texts, spoken, asked, kinds) for texts in (train, held_out))


def _common(words: list[str], questions: float) -> list[str]:
    counts = sorted((-count, word) for word, count in Counter(words).items() if count <= _TOO_COMMON * questions)
    return [word for _, word in counts[:_COMMON_WORDS]]


def _letter_words(text: str) -> list[str]:
    return _LETTER_WORD.findall(text.lower())


def _described(texts: Texts, spoken: list[str], asked: list[str], kinds: dict[str, int]) -> Described:
    options, which = distinct([option for four in texts.options for option in four])
    own = np.array([_own(option, spoken) for option in options])[which].reshape(len(texts), 4, -1)
    among = np.array([_among(four) for four in texts.options])
    lengths = among[..., :1]
    relative = [
        (lengths.swapaxes(1, 2) < lengths).sum(-1, keepdims=True),
        (lengths.swapaxes(1, 2) == lengths).sum(-1, keepdims=True),
        lengths - lengths.mean(1, keepdims=True),
        np.broadcast_to(np.arange(4.0)[:, None], lengths.shape),
    ]
    questions, which = distinct(texts.questions)
    said = np.array([_asked(question, asked) for question in questions])[which]
    kind = np.array([kinds.get(kind, -1) for kind in texts.kinds], float)
    return Described(
        np.concatenate([among, *relative, own], axis=-1),
        np.concatenate([kind[:, None], said], axis=1),
        [
            "number of states",
            "likeness to the other options",
            "likeness to the nearest option",
            "options with the same first state",
            "options with the same last state",
            "shorter options",
            "options as long",
            "length beyond the average of the four",
            "letter",
            "characters",
            "share of different states",
            "smoothness",
            "smoothness of the roughest step",
            *(f'"{word}" in the {where}' for where in ("option", "first state", "last state") for word in spoken),
        ],
        [
            "type",
            "start",
            "length of the interval",
            "moment after the start",
            "length of the question",
            *(f'"{word}" in the question' for word in asked),
        ],
    )


@lru_cache(maxsize=2**15)
def _among(options: tuple[str, ...]) -> list[list[float]]:
    """Of each of four options: number of states, mean and greatest likeness to the others, shared ends.

    The likeness of two options is the share of steps (from a state to the next, with the ends) that both have.
    """
    states = [states_of(option) for option in options]
    steps = [set(pairwise(["", *sequence, ""])) for sequence in states]
    alike = np.zeros((4, 4))
    for one, other in combinations(range(4), 2):
        alike[one, other] = alike[other, one] = len(steps[one] & steps[other]) / len(steps[one] | steps[other])
    return [
        [
            len(sequence),
            alike[index].sum() / 3,
            alike[index].max(),
            sum(other[0] == sequence[0] for other in states),
            sum(other[-1] == sequence[-1] for other in states),
        ]
        for index, sequence in enumerate(states)
    ]


def _own(option: str, spoken: list[str]) -> list[float]:
    """Characters, share of different states, mean and least likeness of neighbouring states, and common words."""
    states = states_of(option)
    parts = [set(state.split("|")) for state in states]
    smooth = [len(a & b) / len(a | b) for a, b in pairwise(parts)] or [1.0]
    said, first, last = Counter(_letter_words(option)), _letter_words(states[0]), _letter_words(states[-1])
    return [
        len(option),
        len(set(states)) / len(states),
        sum(smooth) / len(smooth),
        min(smooth),
        *(said[word] / len(states) for word in spoken),
        *(float(word in first) for word in spoken),
        *(float(word in last) for word in spoken),
    ]


def _asked(question: str, common: list[str]) -> list[float]:
    """Times of a question (-1 where it has none), its length, and which of the common words are in it."""
    words = question_words(question)
    times = [float(word[:-1]) for word in words if re.fullmatch(r"\d+s", word)][:1]
    later = [float(word[:-1]) for word in words if re.fullmatch(r"[+-].*s", word)][:2]
    said = set(words)
    return [
        *[*times, -1.0][:1],
        *[*later, -1.0, -1.0][:2],
        len(words),
        *(float(word in said) for word in common),
    ]


def boosted(train: Texts, seen: Described, shown: Described, keyed: np.ndarray, seed: int, whole_question: bool):
    """Read with boosted trees over one row per option.

    Args:
        train: questions to learn from.
        seen: the same, described.
        shown: n questions to answer.
        keyed: (n,) their right options; used for nothing but to say which features gave them away.
        seed: of the trees.
        whole_question: read all of the question; else its type alone.

    Returns:
        (n,4) scores, and the features that cost the reader most right answers when they are shuffled (looked for where
        it reads the whole question only, which takes in all the rest).
    """
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.inspection import permutation_importance
    from threadpoolctl import threadpool_limits

    last = None if whole_question else 1
    model = HistGradientBoostingClassifier(
        max_iter=100, learning_rate=0.1, max_features=0.2, early_stopping=False, random_state=seed % 2**32
    )
    right = (np.arange(4) == train.keyed[:, None]).ravel()
    # Where four questions share four options every single feature is balanced to the last row: no first split gains
    # anything, and what features say together is never found. Without some of the rows trees can start.
    kept = np.random.default_rng(seed).random(len(right)) < _KEPT_ROWS
    # One thread: sums in the same order on every machine, and no spinning where the cores are busy.
    with threadpool_limits(1):
        model.fit(_rows(seen, last)[kept], right[kept])
        rows = _rows(shown, last)
        scores = model.predict_proba(rows)[:, 1].reshape(-1, 4)
        if not whole_question:
            return scores, []
        found = permutation_importance(
            model,
            rows[: 4 * _LOOKED_AT],
            keyed[:_LOOKED_AT],
            scoring=lambda model, rows, keyed: (
                model.predict_proba(rows)[:, 1].reshape(-1, 4).argmax(1) == keyed
            ).mean(),
            n_repeats=1,
            random_state=seed % 2**32,
        ).importances_mean
    names = shown.option_names + shown.asked_names[:last]
    return scores, _strongest(found, names, "share of questions that are answered right only with it")


def _rows(described: Described, last: int | None) -> np.ndarray:
    asked = np.repeat(described.asked[:, None, :last], 4, axis=1)
    return np.concatenate([described.options, asked], axis=-1).reshape(4 * len(asked), -1)


def _strongest(share: np.ndarray, names: list[str], unit: str) -> list[Giveaway]:
    order = np.argsort(-share, kind="stable")[:STRONGEST]
    return [Giveaway(names[index], round(float(share[index]), 4), unit) for index in order if share[index] > 0]


def words(train: Texts, held_out: Texts) -> tuple[np.ndarray, list[Giveaway]]:
    """Read with a conditional logit over n-grams of states, and over pairs of a question's words with an option's.

    The model is McFadden's (1974, "Conditional logit analysis of qualitative choice behavior"): a softmax over the four
    options of a score that is linear in their features, with a quadratic penalty.

    Returns:
        (n,4) scores of ``held_out``, and what added most to the right option's lead over the four, on average.
    """
    from sklearn.feature_extraction.text import CountVectorizer

    ask = CountVectorizer(analyzer=_grams, min_df=_least(train), binary=True, dtype=np.float32)
    offer = CountVectorizer(analyzer=_parts, min_df=_least(train), binary=True, dtype=np.float32)
    ask.fit(train.questions)
    offer.fit([option for four in train.options for option in four])
    weights = _fitted(_features(train, ask, offer), train.keyed)
    shown = _features(held_out, ask, offer)
    scores = (shown @ weights).reshape(-1, 4)
    lead = (np.arange(4) == held_out.keyed[:, None]) - 0.25
    added = weights * (shown.T @ lead.ravel().astype(np.float32)) / len(held_out)
    return scores, _named(added, held_out, ask, offer)


def _least(train: Texts) -> int:
    return _LEAST_COUNT if len(train) > 4 * _LEAST_COUNT else 1


def _grams(question: str) -> list[str]:
    """Words and pairs of words; "?" stands for any question, so that there is a vocabulary whatever is asked."""
    return ["?", *question_grams(question)]


def _parts(option: str) -> list[str]:
    """What an option says: how many states, the first, the last, each, and the runs of two and three."""
    states = option_words(option)
    ends = [f"{len(states)} states", f"first {states[0]}", f"last {states[-1]}"] if states else ["0 states"]
    runs = [" > ".join(states[start : start + n]) for n in (2, 3) for start in range(len(states) - n + 1)]
    return [*ends, *states, *runs]


def _features(texts: Texts, ask, offer) -> sparse.csr_matrix:
    """(4n, parts + 4 letters + buckets of pairs) of every option; rows have unit length."""
    from sklearn.preprocessing import normalize

    asked, offered = _counted(texts, ask, offer)
    letters = sparse.csr_matrix(np.tile(np.eye(4, dtype=np.float32), (len(texts), 1)))
    pairs = [
        sparse.csr_matrix(
            (np.ones(len(word), np.float32), _bucket(word, part), np.concatenate([[0], np.cumsum(sizes)])),
            shape=(len(sizes), _PAIR_BUCKETS),
        )
        for sizes, word, part in _pairs(asked, offered)
    ]
    return normalize(sparse.hstack([offered, letters, sparse.vstack(pairs)], format="csr"), copy=False)


def _counted(texts: Texts, ask, offer) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """(4n, words) of the question of every option, and (4n, parts) of the option."""
    questions, asked = distinct(texts.questions)
    options, offered = distinct([option for four in texts.options for option in four])
    return ask.transform(questions)[np.repeat(asked, 4)], offer.transform(options)[offered]


def _pairs(asked: sparse.csr_matrix, offered: sparse.csr_matrix) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Every pair of a word and a part that stand in the same row, in chunks: pairs per row, words, parts."""
    for start in range(0, asked.shape[0], 4 * _CHUNK):
        words, parts = asked[start : start + 4 * _CHUNK], offered[start : start + 4 * _CHUNK]
        many = np.diff(parts.indptr)
        sizes = np.diff(words.indptr) * many
        within = np.arange(sizes.sum(), dtype=np.int64) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        row = np.repeat(np.arange(len(sizes)), sizes)
        word = words.indices[words.indptr[row] + within // many[row]]
        yield sizes, word, parts.indices[parts.indptr[row] + within % many[row]]


def _bucket(word: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Spread pairs over buckets by Fibonacci hashing (Knuth, The Art of Computer Programming 3, 6.4)."""
    mixed = (word.astype(np.uint64) << np.uint64(32) | part.astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
    return (mixed >> np.uint64(64 - _PAIR_BUCKETS.bit_length() + 1)).astype(np.int32)


def _fitted(features: sparse.csr_matrix, keyed: np.ndarray) -> np.ndarray:
    from scipy.optimize import minimize

    used = np.flatnonzero(np.bincount(features.indices, minlength=features.shape[1]))
    narrow = features[:, used]
    turned = narrow.T.tocsr()
    right = np.arange(4) == keyed[:, None]

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        scores = (narrow @ weights.astype(np.float32)).reshape(-1, 4).astype(float)
        scores -= scores.max(1, keepdims=True)
        chances = np.exp(scores)
        chances /= chances.sum(1, keepdims=True)
        slope = turned @ (chances - right).ravel().astype(np.float32)
        value = -np.log(np.maximum(chances[right], 1e-12)).sum() + _SMOOTHING / 2 * weights @ weights
        return value, slope + _SMOOTHING * weights

    found = minimize(loss, np.zeros(len(used)), jac=True, method="L-BFGS-B", options={"maxiter": _MOST_STEPS})
    weights = np.zeros(features.shape[1], np.float32)
    weights[used] = found.x
    return weights


def _named(added: np.ndarray, held_out: Texts, ask, offer) -> list[Giveaway]:
    """Say in words what the strongest features are, one for each part of options.

    A bucket goes by the pair that fell into it most often.
    """
    parts = [*offer.get_feature_names_out(), *(f"letter {letter}" for letter in LETTERS)]
    strongest = np.argsort(-added, kind="stable")[: STRONGEST**2]
    wanted = strongest[strongest >= len(parts)] - len(parts)
    seen: Counter = Counter()
    for _, word, part in _pairs(*_counted(held_out, ask, offer)):
        bucket = _bucket(word, part)
        hit = np.isin(bucket, wanted)
        seen.update(zip(bucket[hit].tolist(), word[hit].tolist(), part[hit].tolist(), strict=True))
    questions = ask.get_feature_names_out()
    names = {index: (part, f'"{part}" in the option') for index, part in enumerate(parts)}
    for (bucket, word, part), _ in sorted(seen.items(), key=lambda item: item[1]):
        text = f'"{questions[word]}" in the question with "{parts[part]}" in the option'
        names[len(parts) + bucket] = (parts[part], text)
    found: dict[str, Giveaway] = {}
    for index in strongest[added[strongest] > 0].tolist():
        part, text = names[index]
        found.setdefault(part, Giveaway(text, round(float(added[index]), 4), "added to the right option's log-odds"))
    return list(found.values())[:STRONGEST]
