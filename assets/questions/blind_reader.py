"""The reader that quads are built against: it guesses answers from the words of a question and never sees a scene.

Two small networks place questions and answers in one space, such that the product of a question with an answer is, up
to a constant of the question, the log of how much likelier that answer is than elsewhere in its stratum (a softmax over
the answers of a batch; van den Oord et al. 2018, arXiv 1807.03748). Questions whose products with four answers agree
cannot be told apart by what this reader has learned. It reads every question with networks that were trained on other
clips only: what could be learned from a clip's own questions is no shortcut.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np

from assets.questions.row import FAMILIES, NON_TEMPLATE, content_seed
from assets.questions.states import DIRECTION_STATES

WORDS, PAIRS, HIDDEN, WIDTH = 256, 128, 64, 32
BATCH = 128
RATE, DECAY, DROPOUT = 3e-3, 0.05, 0.1
TIME_UNIT = 10.0
# Vectors are rounded before anything is decided on them, so that last-bit differences between processors vanish.
DECIMALS = 3
_FAMILIES = (*FAMILIES, NON_TEMPLATE[4:])
_WORD = re.compile(r"[^\W\d_]+|\d+")


@dataclass(frozen=True)
class Reading:
    """What the reader makes of n questions and their n answers: ``asked`` and ``answered``, each (n, WIDTH) f32.

    ``asked[i] @ answered[j]`` may be compared over i and j of one group (see ``read``), and not across groups.
    """

    asked: np.ndarray
    answered: np.ndarray

    @classmethod
    def nothing(cls, rows: int) -> "Reading":
        """What a reader makes of rows that has learned nothing: every answer fits every question."""
        return cls(np.zeros((rows, WIDTH), np.float32), np.zeros((rows, WIDTH), np.float32))

    def take(self, which: np.ndarray) -> "Reading":
        """Select rows by indices."""
        return Reading(self.asked[which], self.answered[which])


def read(rows: Sequence[dict], groups: Sequence[Hashable], strata: Sequence[Hashable], epochs: int) -> Reading:
    """Read every question with networks that were trained on the other groups.

    Args:
        rows: candidate rows, in an order that does not depend on their arrival.
        groups: of each row; all rows of a clip are in one group.
        strata: of each row; answers are told apart within a stratum.
        epochs: passes over the rows of the other groups; with 0, or with one group only, all products are 0.
    """
    reading = Reading.nothing(len(rows))
    names = sorted(set(groups), key=str)
    if not epochs or len(names) < 2:
        return reading
    questions, answers = _question_features(rows), _answer_features(rows)
    said = np.unique([row["meaning"] for row in rows], return_inverse=True)[1]
    group = np.array([names.index(name) for name in groups])
    pools = defaultdict(list)
    for index, stratum in enumerate(strata):
        pools[stratum].append(index)
    for number, name in enumerate(names):
        others = [indices[group[indices] != number] for indices in map(np.array, pools.values())]
        learned = [indices for indices in others if len(indices)]
        networks = _trained(questions, answers, said, learned, epochs, str(name))
        own = np.flatnonzero(group == number)
        reading.asked[own], reading.answered[own] = _vectors(networks, questions[own], answers[own])
    return reading


def _trained(
    questions: np.ndarray, answers: np.ndarray, said: np.ndarray, pools: list[np.ndarray], epochs: int, name: str
):
    """Networks for questions and answers, trained to find each question's answer among those of its batch."""
    import torch

    rng = np.random.default_rng(content_seed("blind reader", name))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(content_seed("networks", name) % 2**63)
        networks = torch.nn.ModuleList(_network(features.shape[1]) for features in (questions, answers))
        optimizer = torch.optim.AdamW(networks.parameters(), RATE, weight_decay=DECAY)
        steps = epochs * len(_batches(pools, np.random.default_rng(0)))
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=max(steps, 2))
        questions, answers, said = map(torch.from_numpy, (questions, answers, said))
        for _ in range(epochs):
            for batch, pool in _batches(pools, rng):
                products = networks[0](questions[batch]) @ networks[1](answers[batch]).T
                beside = torch.from_numpy(pool[:, None] == pool)
                # Whoever gave the same answer is right too.
                same = beside & (said[batch][:, None] == said[batch])
                offered = products.masked_fill(~beside, -torch.inf).logsumexp(1)
                loss = (offered - products.masked_fill(~same, -torch.inf).logsumexp(1)).mean()
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
    return networks.eval()


def _network(features: int):
    from torch import nn

    return nn.Sequential(nn.Linear(features, HIDDEN), nn.GELU(), nn.Dropout(DROPOUT), nn.Linear(HIDDEN, WIDTH))


def _batches(pools: list[np.ndarray], rng: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray]]:
    """Deal strata, large ones in equal parts, into batches in a drawn order: rows, and which part each is of."""
    parts = []
    for pool in pools:
        parts += np.array_split(rng.permutation(pool), -(-len(pool) // BATCH))
    # Parts in the order of their sizes, whatever they are, so that the number of batches does not depend on the draw.
    order = sorted(range(len(parts)), key=lambda index: -len(parts[index]))
    ends = np.cumsum([len(parts[index]) for index in order])
    batches = []
    for together in np.split(np.array(order), np.flatnonzero(np.diff(ends // (2 * BATCH))) + 1):
        rows = np.concatenate([parts[index] for index in together])
        batches.append((rows, np.repeat(together, [len(parts[index]) for index in together])))
    return [batches[index] for index in rng.permutation(len(batches))]


def _vectors(networks, questions: np.ndarray, answers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    import torch

    with torch.inference_mode():
        asked, answered = networks[0](torch.from_numpy(questions)), networks[1](torch.from_numpy(answers))
    return np.round(asked.numpy(), DECIMALS), np.round(answered.numpy(), DECIMALS)


def _question_features(rows: Sequence[dict]) -> np.ndarray:
    """(n, F) f32 of what a question says: its type, its words, its times."""
    features = np.zeros((len(rows), 2 * len(_FAMILIES) + 7 + WORDS), np.float32)
    words = features[:, -WORDS:]
    for index, row in enumerate(rows):
        start, end, moment = row["interval_start"], row["interval_end"], row["viewpoint_time"]
        features[index, 2 * _FAMILIES.index(row["type"][4:]) + (moment is None)] = 1
        at = start if moment is None else moment
        times = (start, end, end - start, np.log(max(end - start, 1e-3)), at - start, at - end, at < start)
        features[index, 2 * len(_FAMILIES) :][:7] = np.array(times) / TIME_UNIT
        for word in _WORD.findall(row["question"].lower()):
            words[index, _bucket(word, WORDS)] = 1
    return features


def _answer_features(rows: Sequence[dict]) -> np.ndarray:
    """(n, F) f32 of what an answer says: family, number of states, the first, the last, all, and what follows what."""
    states = len(DIRECTION_STATES)
    features = np.zeros((len(rows), len(_FAMILIES) + 1 + 3 * states + PAIRS), np.float32)
    first, last, share = (features[:, len(_FAMILIES) + 1 + k * states :][:, :states] for k in range(3))
    pairs = features[:, -PAIRS:]
    for index, row in enumerate(rows):
        features[index, _FAMILIES.index(row["type"][4:])] = 1
        features[index, len(_FAMILIES)] = len(row["states"]) / 4
        if row["type"] == NON_TEMPLATE:
            # Its answers are words (names, counts, times) whose numbers mean something within their pool only.
            for word in _WORD.findall(" ".join(row["states"]).lower()):
                pairs[index, _bucket(word, PAIRS)] = 1
            continue
        sequence = [int(state) for state in row["meaning"].split(".")]
        first[index, sequence[0]] = last[index, sequence[-1]] = 1
        for state in sequence:
            share[index, state] += 1 / len(sequence)
        for two in pairwise(sequence):
            pairs[index, _bucket(f"{two}", PAIRS)] += 1
    return features


@lru_cache(maxsize=65536)
def _bucket(word: str, buckets: int) -> int:
    return int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "little") % buckets
