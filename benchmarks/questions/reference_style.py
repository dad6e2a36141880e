"""Questions with wrong options made the way the reference makes them, which a blind reader must see through.

The reference pushes independent random numbers through the describer of the question's type, merges the states, and
cuts them to a random length within three of the right answer's. A way through the world is smooth; noise is not. And a
comparison of speeds that never changes is worded differently, which noise next to never earns.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from assets.questions.row import LETTERS, content_seed
from assets.questions.states import NONE, STATE_TEXTS, Thresholds, describe, merge
from assets.questions.wording import answer_text

STEPS = 32
DEALT = 12
LENGTH_SLACK = 3
ALWAYS = {
    "Nearly the same": "Their speed is nearly the same",
    "The former is faster": "The former is always faster",
    "The latter is faster": "The latter is always faster",
}


def reference_style(rows: Sequence[dict], seed: int) -> list[dict]:
    """Give questions new options: their own right answer and three of described noise, in a drawn order.

    Args:
        rows: candidate or finished rows, in any order, with ``states`` (N of them) and ``evidence``. A wrong option's
            length is drawn from max(1, N - 3) to N + 3.
        seed: of every draw; what is drawn depends on the rows, not on their order.

    Returns:
        The rows in the same order with new ``options`` and ``answer``, without ``quad`` (they share options no more),
        and without predictions of a direction, whose wrong options the reference makes in another way.
    """
    groups = defaultdict(list)
    for index in sorted(range(len(rows)), key=lambda index: rows[index]["qa_id"]):
        evidence = json.loads(rows[index]["evidence"])
        if evidence["family"] == "dir_pred":
            continue
        # Noise lies far above what counts as standing still, so that scenes of all sizes share a describer.
        groups[evidence["family"], replace(Thresholds(**evidence["thresholds"]), still=0.0)].append(index)
    made: dict[int, dict] = {}
    for family, thresholds in sorted(groups, key=repr):
        members = groups[family, thresholds]
        rng = np.random.default_rng(content_seed("reference style", family, repr(thresholds), str(seed)))
        dealt = _described_noise(family, thresholds, len(members) * DEALT, rng).reshape(len(members), DEALT, -1)
        for index, sequences in zip(members, dealt, strict=True):
            options = _options(family, rows[index]["states"], sequences, thresholds, rng)
            order = rng.permutation(4)
            kept = {name: value for name, value in rows[index].items() if name != "quad"}
            made[index] = kept | {
                "options": [options[place] for place in order],
                "answer": LETTERS[int(np.flatnonzero(order == 0)[0])],
            }
    return [made[index] for index in sorted(made)]


def _described_noise(family: str, thresholds: Thresholds, count: int, rng: np.random.Generator) -> np.ndarray:
    """(count, L) merged states of independent random numbers; NONE behind the last."""
    if family in ("dir", "ori"):
        values = rng.standard_normal((1, count, STEPS, 3))
    else:
        values = rng.uniform(0.1, 1.0, (1, count, STEPS, *([2] if family == "spd_comp" else [])))
    return merge(describe(family, values, np.ones((count, STEPS), bool), thresholds))[0]


def _options(
    family: str, states: Sequence[str], sequences: np.ndarray, thresholds: Thresholds, rng: np.random.Generator
) -> list[str]:
    """Return the right option, then three different ones from noise; more noise is drawn while those repeat."""
    never_changes = family == "spd_comp" and len(states) == 1
    options = [answer_text([ALWAYS[states[0]]] if never_changes else states)]
    while True:
        for sequence in sequences:
            length = int(rng.integers(max(1, len(states) - LENGTH_SLACK), len(states) + LENGTH_SLACK + 1))
            wrong = answer_text([STATE_TEXTS[family][label] for label in sequence[:length] if label != NONE])
            if wrong not in options:
                options.append(wrong)
            if len(options) == 4:
                return options
        sequences = _described_noise(family, thresholds, DEALT, rng)
