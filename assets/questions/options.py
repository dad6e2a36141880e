"""Four questions, four options: matching questions into quads so that text alone tells nothing.

Each option of a quad is the true answer of exactly one of its questions, so a reader of the options alone is right
once in four whatever it prefers. What is left is the link from a question's words to its answer; partners are chosen
to read alike (same type, viewpoint, roles, about the same interval), and so that a reader that learned from other
scenes (``blind_reader``) finds every option equally fitting for all four. A question that finds no quad is dropped: any
other rule would break the exchange of options within a quad.
"""

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np

from assets.questions.blind_reader import Reading
from assets.questions.parameters import QuestionParameters
from assets.questions.row import LETTERS, NON_TEMPLATE, content_id, content_seed

BLOCK = 2048
_LENGTH, _START, _MOMENT, _ROLE, _CLASS, _SAME_CLIP, _EDIT = 4.0, 1.0, 0.5, 2.0, 0.5, 0.5, 1.0
# What a unit of these costs weighs against what the reader finds, where both decide on a quad.
_LIKENESS = 0.02


@dataclass(frozen=True)
class Quad:
    """Four rows (indices into the pool) that share options; ``order`` shows them as options A to D."""

    quad: str
    members: tuple[int, int, int, int]
    order: tuple[int, int, int, int]


def stratum(row: dict) -> tuple:
    """What questions must have in common to share options.

    Whether there are pixels (a quad goes whole into a release, or whole beside it), type, whether the camera or an
    agent looks, which targets are the camera or the viewpoint's own subject, number of states (1 or 2, exactly 3 to 6,
    7 or more), and for directions and orientations that change the first state. Non-template questions bring their own
    pool.
    """
    if row["type"] == NON_TEMPLATE:
        return row["has_video"], row["type"], row["option_pool"]
    special = tuple(
        role if role == "camera" else "own" if target == row["viewpoint_subject"] else ""
        for role, target in zip(row["target_roles"], row["targets"], strict=True)
    )
    if row["type"].endswith("_dis"):
        # A distance has no order and no viewpoint: only whether the camera is one of the two can matter.
        special = tuple(sorted(role for role in special if role == "camera"))
    number = min(max(len(row["states"]), 2), 7)
    first = row["states"][0] if row["type"].endswith(("_dir", "_ori")) and number > 2 else ""
    return row["has_video"], row["type"], row["viewpoint_role"] == "camera", special, number, first


def match_quads(
    rows: Sequence[dict],
    parameters: QuestionParameters,
    reading: Reading | None = None,
    groups: Sequence[Hashable] | None = None,
) -> list[Quad]:
    """Match questions into quads.

    Args:
        rows: candidate rows, in any order.
        parameters: shortlist, interval slack, and what the reader may still find.
        reading: what the blind reader makes of the rows; None where there is no reader.
        groups: of each row; a quad stays within a group. None: all are one group.

    Returns:
        Quads in the order of their identities; every row is in at most one.
    """
    reading = Reading.nothing(len(rows)) if reading is None else reading
    strata = defaultdict(list)
    for index in sorted(range(len(rows)), key=lambda index: rows[index]["qa_id"]):
        strata[groups and groups[index], stratum(rows[index])].append(index)
    quads = []
    for indices in strata.values():
        # Identities are hashes, so blocks of a large stratum are a fair deal and keep the cost linear in its size.
        for block in np.array_split(np.array(indices), -(-len(indices) // BLOCK)):
            matched = _match_block([rows[index] for index in block], parameters, reading.take(block))
            quads += [_quad([int(block[member]) for member in members], rows) for members in matched]
    return sorted(quads, key=lambda quad: quad.quad)


def _quad(members: list[int], rows: Sequence[dict]) -> Quad:
    """Name a quad and order its options by a draw seeded from the four questions."""
    members = sorted(members, key=lambda index: rows[index]["qa_id"])
    identity = content_id("quad", *(rows[index]["qa_id"] for index in members))
    order = np.random.default_rng(content_seed(identity)).permutation(4)
    return Quad(identity, tuple(members), tuple(members[position] for position in order))


def letter_of(quad: Quad, member: int) -> str:
    """Return the letter under which a member's own answer is shown; the four letters are each used once."""
    return LETTERS[quad.order.index(member)]


def _match_block(rows: list[dict], parameters: QuestionParameters, reading: Reading) -> list[tuple[int, ...]]:
    """Greedy quads among rows of one stratum, each seeded from the commonest answer left."""
    if len({row["meaning"] for row in rows}) < 4:
        return []
    cost = _Cost(rows)
    left = np.ones(len(rows), bool)
    waiting = defaultdict(list)
    for index in range(len(rows) - 1, -1, -1):
        waiting[rows[index]["meaning"]].append(index)
    remaining = Counter({answer: len(indices) for answer, indices in waiting.items()})
    quads = []
    while remaining:
        answer = min(remaining, key=lambda answer: (-remaining[answer], answer))
        seed = waiting[answer].pop()
        if not left[seed]:
            continue
        members = _partners(seed, rows, cost, reading, left, parameters)
        for member in members or (seed,):
            left[member] = False
            said = rows[member]["meaning"]
            remaining[said] -= 1
            if not remaining[said]:
                del remaining[said]
        if members:
            quads.append(members)
        elif len(remaining) < 4:
            break
    return quads


def _partners(
    seed: int,
    rows: list[dict],
    cost: "_Cost",
    reading: Reading,
    left: np.ndarray,
    parameters: QuestionParameters,
) -> tuple[int, ...] | None:
    """Choose three partners that read like the seed and like each other and whose answers are four; None if none do."""
    slack = np.log1p(parameters.interval_slack)
    apart, close = cost.of(seed)
    nearby = np.flatnonzero(left & (cost.answers != cost.answers[seed]) & (close <= slack))
    # A stable sort, so that ties are broken by identity; twice the shortlist is looked at for the dearer edit distance.
    nearby = nearby[np.argsort(apart[nearby], kind="stable")][: 2 * parameters.shortlist]
    nearby = nearby[[compatible(rows[other], rows[seed]) for other in nearby]]
    total = apart[nearby] + cost.edits(seed, nearby)
    order = np.argsort(total, kind="stable")[: parameters.shortlist]
    pool, total = np.concatenate([[seed], nearby[order]]).astype(int), total[order]
    if len(pool) < 4:
        return None
    fits = np.array([[compatible(rows[one], rows[other]) for other in pool] for one in pool])
    fits &= np.abs(cost.length[pool, None] - cost.length[pool]) <= slack
    quads = _quads_of_first(len(pool))
    quads = quads[fits[quads[:, :, None], quads[:, None, :]].reshape(-1, 16).sum(1) == 12]
    if not len(quads):
        return None
    disagreement, bias = told_apart(reading.asked[pool] @ reading.answered[pool].T, quads)
    score = disagreement + bias + _LIKENESS * total[quads[:, 1:] - 1].sum(1)
    best = int(np.argmin(np.where(disagreement <= parameters.reader_gap, score, np.inf)))
    return tuple(pool[quads[best]].tolist()) if disagreement[best] <= parameters.reader_gap else None


@lru_cache(maxsize=64)
def _quads_of_first(count: int) -> np.ndarray:
    """(Q, 4) every choice of 0 and three others of 1 .. count - 1."""
    others = np.array(list(combinations(range(1, count), 3)), int).reshape(-1, 3)
    return np.concatenate([np.zeros((len(others), 1), int), others], axis=1)


def told_apart(products: np.ndarray, quads: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What a reader makes of quads.

    Args:
        products: (n, n) how well answer j fits question i, as logarithms up to a constant of the question.
        quads: (Q, 4) questions that would share their answers.

    Returns:
        disagreement: (Q,) mean total variation between what it believes of each question and of the four on average.
        bias: (Q,) how far its chance of being right is from one in four.
    """
    belief = products[quads[:, :, None], quads[:, None, :]].astype(float)
    belief = np.exp(belief - belief.max(-1, keepdims=True))
    belief /= belief.sum(-1, keepdims=True)
    disagreement = np.abs(belief - belief.mean(1, keepdims=True)).sum(-1).mean(1) / 2
    return disagreement, np.abs(np.einsum("qii->q", belief) / 4 - 0.25)


def compatible(one: dict, other: dict) -> bool:
    """Whether neither question's answer is, within tolerance, also true of the other's clip."""
    return (
        one["meaning"] != other["meaning"]
        and one["meaning"] not in other["tolerated"]
        and other["meaning"] not in one["tolerated"]
    )


class _Cost:
    """How differently two questions of one stratum read, and how far apart their answers are."""

    def __init__(self, rows: list[dict]):
        length = np.array([row["interval_end"] - row["interval_start"] for row in rows])
        self.length = np.log(np.maximum(length, 1e-6))
        self.start = np.array([row["interval_start"] for row in rows])
        self.moment = np.array([row["viewpoint_time"] or 0.0 for row in rows])
        self.scale = max(float(np.median(self.start + length)), 1e-6)
        self.roles = _codes([(row["viewpoint_role"], *row["target_roles"]) for row in rows])
        self.classes = _codes([tuple(row["target_classes"]) for row in rows])
        self.clips = _codes([(row["clip"],) for row in rows])[:, 0]
        self.answers = _codes([(row["meaning"],) for row in rows])[:, 0]
        sequences = [[int(state) for state in row["meaning"].split(".")] for row in rows]
        self.lengths = np.array([len(sequence) for sequence in sequences])
        self.sequences = np.full((len(rows), self.lengths.max()), -1)
        for index, sequence in enumerate(sequences):
            self.sequences[index, : len(sequence)] = sequence

    def of(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Cost of pairing each row with ``index`` and the distance of its interval's log length, both (n,)."""
        close = np.abs(self.length - self.length[index])
        apart = (
            _LENGTH * close
            + _START * np.abs(self.start - self.start[index]) / self.scale
            + _MOMENT * np.abs(self.moment - self.moment[index]) / self.scale
            + _ROLE * (self.roles != self.roles[index]).sum(axis=1)
            + _CLASS * (self.classes != self.classes[index]).sum(axis=1)
            + _SAME_CLIP * (self.clips == self.clips[index])
        )
        return apart, close

    def edits(self, index: int, others: np.ndarray) -> np.ndarray:
        """Edit distance between the answer of ``index`` and those of others, as a share of the longer one, (m,)."""
        own = self.sequences[index, : self.lengths[index]]
        theirs = self.sequences[others]
        columns = np.arange(theirs.shape[1] + 1)
        previous = np.broadcast_to(columns, (len(others), len(columns)))
        for row, state in enumerate(own, start=1):
            best = np.empty(previous.shape, int)
            best[:, 0] = row
            best[:, 1:] = np.minimum(previous[:, 1:] + 1, previous[:, :-1] + (theirs != state))
            # Insertions run along the row: min over k <= j of best[k] + (j - k).
            previous = np.minimum.accumulate(best - columns, axis=1) + columns
        distance = previous[np.arange(len(others)), self.lengths[others]]
        return _EDIT * distance / np.maximum(self.lengths[others], len(own))


def _codes(tuples: list[tuple[str, ...]]) -> np.ndarray:
    """(n,k) integers that are equal where the strings are."""
    columns = zip(*tuples, strict=True)
    return np.stack([np.unique(np.array(column, dtype=object), return_inverse=True)[1] for column in columns], axis=1)
