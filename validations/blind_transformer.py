"""A small text transformer, trained from random weights, as a reader of the blind audit.

One transformer reads a question, one reads an option, a third lets the four options of a question meet; the letter of
an option is part of what it reads. The loss is a softmax over the four options, and beside it one over the right
answers of the whole batch (van den Oord et al. 2018, arXiv 1807.03748), which teaches what usually answers a question
from far fewer of them than the four options alone could.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from validations.blind_text import Texts, distinct, option_words, question_words

WIDTH, HEADS, HIDDEN, DROPOUT = 64, 4, 128, 0.1
BATCH, RATE, DECAY = 96, 2e-3, 0.05
EPOCHS = 8
FEWEST_STEPS = 100
WARMUP = 0.1
# A word must be read so often before it has a vector of its own.
LEAST_COUNT = 3
MOST_WORDS = 8192
LONGEST_QUESTION, LONGEST_OPTION = 48, 24
_PAD, _UNKNOWN, _MARK = 0, 1, 2


@dataclass(frozen=True)
class _Read:
    """n questions in numbers.

    ``questions`` (n,S) words and ``options`` (m,L) words of all different options, behind a mark and padded with 0;
    ``offered`` (n,4) which of those options a question offers.
    """

    questions: np.ndarray
    options: np.ndarray
    offered: np.ndarray


def read(train: Texts, held_out: Texts, seed: int, most_steps: int) -> np.ndarray:
    """Train on one table and score the options of another.

    Args:
        train: questions to learn from.
        held_out: n questions to answer.
        seed: of the weights, the order of batches and dropout.
        most_steps: training takes at most so many batches.

    Returns:
        (n,4) scores, higher is likelier.
    """
    import torch

    vocabulary = _vocabulary(train)
    steps = min(most_steps, max(FEWEST_STEPS, EPOCHS * -(-len(train) // BATCH)))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed % 2**63)
            network = _network(len(vocabulary) + _MARK + 1)
            _fit(network, _encoded(train, vocabulary), train, steps, np.random.default_rng(seed))
            return _scores(network.eval(), _encoded(held_out, vocabulary))
    finally:
        torch.set_num_threads(threads)


def _vocabulary(train: Texts) -> dict[str, int]:
    counts: Counter = Counter()
    for question in train.questions:
        counts.update(question_words(question))
    for options in train.options:
        for option in options:
            counts.update(option_words(option))
    known = sorted((-count, word) for word, count in counts.items() if count >= LEAST_COUNT)[:MOST_WORDS]
    return {word: index for index, (_, word) in enumerate(known, _MARK + 1)}


def _encoded(texts: Texts, vocabulary: dict[str, int]) -> _Read:
    options, offered = distinct([option for four in texts.options for option in four])
    return _Read(
        _padded(texts.questions, question_words, vocabulary, LONGEST_QUESTION),
        _padded(options, option_words, vocabulary, LONGEST_OPTION),
        offered.reshape(-1, 4),
    )


def _padded(
    texts: list[str], words: Callable[[str], list[str]], vocabulary: dict[str, int], longest: int
) -> np.ndarray:
    rows = [[_MARK] + [vocabulary.get(word, _UNKNOWN) for word in words(text)[:longest]] for text in texts]
    padded = np.full((len(rows), max(map(len, rows))), _PAD, np.int64)
    for row, codes in zip(padded, rows, strict=True):
        row[: len(codes)] = codes
    return padded


def _network(words: int):
    import torch
    from torch import nn

    def layer():
        return nn.TransformerEncoderLayer(WIDTH, HEADS, HIDDEN, DROPOUT, batch_first=True, norm_first=True)

    class Reader(nn.Module):
        """(n,S) words of questions, (m,L) words of options, (n,4) which is offered where."""

        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(words, WIDTH, padding_idx=_PAD)
            self.places = nn.Embedding(max(LONGEST_QUESTION, LONGEST_OPTION) + 1, WIDTH)
            self.letters = nn.Embedding(4, WIDTH)
            self.asking, self.answering, self.among = layer(), layer(), layer()
            self.asked, self.answered, self.given = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
            self.lean = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 1))
            for table in (self.words, self.places, self.letters):
                nn.init.normal_(table.weight, std=0.3)

        def forward(self, questions, options, offered):
            """Return (n,4) scores, and (n,m) how well every option goes with every question."""
            question, option = self.gist(self.asking, questions), self.gist(self.answering, options)
            fit = self.asked(question) @ self.answered(option).T / WIDTH**0.5
            meeting = option[offered] + self.given(question)[:, None] + self.letters.weight
            return fit.gather(1, offered) + self.lean(self.among(meeting))[..., 0], fit

        def gist(self, transformer, words):
            blank = words == _PAD
            read = transformer(self.words(words) + self.places.weight[: words.shape[1]], src_key_padding_mask=blank)
            # The mark alone starts without content; the mean of all words gives training a straight way in.
            shown = (~blank)[..., None]
            return torch.where(shown, read, 0.0).sum(1) / shown.sum(1)

    return Reader()


def _fit(network, read: _Read, train: Texts, steps: int, rng: np.random.Generator) -> None:
    import torch
    from torch.nn.functional import cross_entropy

    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=max(steps, 2), pct_start=WARMUP)
    network.train()
    batches: list[np.ndarray] = []
    for _ in range(steps):
        batches = batches or _batches(read, train.kinds, rng)
        batch = batches.pop()
        questions, options, offered = _tensors(read, batch)
        keyed = torch.from_numpy(train.keyed[batch])
        scores, fit = network(questions, options, offered)
        answers = offered.gather(1, keyed[:, None])[:, 0]
        others, position = torch.unique(answers, return_inverse=True)
        loss = cross_entropy(scores, keyed) + cross_entropy(fit[:, others], position)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()


def _batches(read: _Read, kinds: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """One pass over all questions in a drawn order: of like types together, and those that share their four options.

    What is merely liked about an option then cancels within the batch, and what is left to learn is how it goes with
    the question.
    """
    sets = np.unique(np.sort(read.offered, axis=1), axis=0, return_inverse=True)[1].ravel()
    drawn = rng.random(sets.max() + 1)[sets]
    kind = np.unique(kinds, return_inverse=True)[1]
    ordered = np.lexsort((drawn, kind))
    batches = np.array_split(ordered, -(-len(ordered) // BATCH))
    return [batches[place] for place in rng.permutation(len(batches))]


def _tensors(read: _Read, batch: np.ndarray):
    """Take a batch: its questions, its different options, and which are offered; without padding that all share."""
    import torch

    options, offered = np.unique(read.offered[batch], return_inverse=True)
    parts = (read.questions[batch], read.options[options])
    words = (torch.from_numpy(part[:, : int((part != _PAD).sum(1).max())]) for part in parts)
    return (*words, torch.from_numpy(offered.reshape(-1, 4)))


def _scores(network, read: _Read) -> np.ndarray:
    import torch

    count = len(read.questions)
    with torch.inference_mode():
        batches = np.array_split(np.arange(count), -(-count // BATCH))
        return np.concatenate([network(*_tensors(read, batch))[0].double().numpy() for batch in batches])
