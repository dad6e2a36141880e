"""What training knows of a question beyond its answer: where the things it names are, and what happens when.

The pipeline knows, from masks and tracks, which cells of the prior features show each thing (`prior_cover` of a scene
record), and a question's row says which things it is about and which state each step of its interval was in. `Guide`
lays that out beside a batch; `models.grounding` teaches the geometry module with it. Nothing here is read by a model
that answers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

ROLES = ("former", "latter", "viewpoint")
"""What a question's things are to it: the first and second that it is about, and from where it is seen."""
KINDS = ("dis", "dir", "ori", "spd", "spd_comp", "dir_pred")
"""What a question may ask for, as its type says behind `abs_` or `rel_`."""
NO_THING, NO_WORD, NOTHING, UNKNOWN = -1, -1, 0, -100
SILENCE = "nothing"
"""The word for state NOTHING."""

ITEM = re.compile(r"\(\d+\) ([^()]+?)\.(?= \(\d|$)")
"""A numbered state of a procedural answer."""


@dataclass(frozen=True)
class Procedure:
    """How the answer of a question came about.

    Attributes:
        states: of each described step, in order.
        begin: seconds at which the first step begins.
        ends: (steps,) seconds at which they end.
        things: number in the scene record of the thing in each of `ROLES`, NO_THING for the camera or nobody.
        names: how the question calls them, "" for nobody.
    """

    states: tuple[str, ...]
    begin: float
    ends: np.ndarray
    things: tuple[int, ...]
    names: tuple[str, ...]

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Procedure | None:
        """From a row of a split; None where the row does not say (official questions, free questions)."""
        try:
            evidence = json.loads(row["evidence"])
            objects = {role: evidence["objects"].get(role) for role in ROLES}
            runs = np.array(evidence["runs"])
            times = np.array(evidence["times"], float)
            states, targets = list(row["states"]), list(row["targets"])
            things = tuple(NO_THING if number is None else int(number) for number in objects.values())
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError):
            return None
        whole = runs.dtype.kind == "i" and all(number is None or number >= 0 for number in objects.values())
        sound = whole and runs.ndim == times.ndim == 1 and len(runs) == len(states) > 0 and (runs > 0).all()
        steps = int(runs.sum()) if sound else 0
        if not 0 < steps <= len(times) or not np.isfinite(times).all():
            return None
        ends = times[-steps:]
        begin = times[-steps - 1] if len(times) > steps else ends[0] - (ends[1] - ends[0] if steps > 1 else 0.0)
        called = dict(zip(("former", "latter"), targets, strict=False)) | {"viewpoint": row.get("viewpoint_subject")}
        said = tuple(state for state, run in zip(states, runs.tolist(), strict=True) for _ in range(run))
        return cls(said, float(begin), ends, things, tuple(called.get(role) or "" for role in ROLES))

    def states_at(self, moments: np.ndarray) -> list[str]:
        """The state at each of (N,) moments in seconds, "" outside the interval.

        What happens after the last moment, where a question asks for a prediction, is said at the last.
        """
        step = np.searchsorted(self.ends, moments - 1e-6)
        inside = (moments > self.begin + 1e-6) & (step < len(self.ends))
        said = [self.states[place] if within else "" for place, within in zip(step, inside, strict=True)]
        if self.begin >= moments[-1] - 1e-6:
            said[-1] = self.states[-1]
        return said


@dataclass(frozen=True)
class Things:
    """The named things of a clip: n names, and (n,T',h',w') shares of the prior's cells that each covers, 0..1."""

    names: list[str]
    cover: np.ndarray


@dataclass(frozen=True)
class Notes:
    """What training knows of one question.

    Attributes:
        option_ends: place of the last token of each option among the branch's tokens.
        agrees: for each state that an option lists the place of its last token, and whether the option tells the same
            as the right one up to there; empty where the right one is unknown.
        states: text of the state that each geometry token should say, "" for nothing; empty where it is unknown.
        things: as in `Procedure`.
        spans: (3,Lq) bool, which tokens of the question's text name the thing in each of `ROLES`.
        kind: place of what is asked for in `KINDS`, UNKNOWN for anything else.
    """

    option_ends: tuple[int, ...]
    agrees: tuple[tuple[int, bool], ...] = ()
    states: Sequence[str] = ()
    things: tuple[int, ...] = (NO_THING,) * len(ROLES)
    spans: np.ndarray | None = None
    kind: int = UNKNOWN


@dataclass(frozen=True)
class Guide:
    """Notes of a batch as tensors: Q questions, R rows with a prior, N geometry tokens.

    Attributes:
        option_ends: (B,L) bool, four slots for each question.
        state_words: (S,K) ids of the words of each state that occurs, NO_WORD on padding; state NOTHING comes first.
        states: (Q,N) the state each geometry token should say, UNKNOWN where nobody knows.
        things: (Q,3) place of the thing in each of `ROLES` among those of its clip, or NO_THING.
        spans: (Q,3,Lq) bool; tokens of the question's text that name it.
        thing_words: (R,n,K') ids of the words of each thing's name, NO_WORD on padding.
        cover: (R,n,T',h',w') shares of the prior's cells that each thing covers; None without a prior.
        agrees: (B,L) whether an option tells the same as the right one up to here, 1 or 0; UNKNOWN where no state ends.
        kinds: (Q,) what each question asks for, by place in `KINDS`, UNKNOWN for anything else.
    """

    option_ends: Tensor
    state_words: Tensor
    states: Tensor
    things: Tensor
    spans: Tensor
    thing_words: Tensor
    cover: Tensor | None
    agrees: Tensor | None = None
    kinds: Tensor | None = None

    def to(self, device: torch.device | str, **options: bool) -> Guide:
        """The same on another device."""
        moved = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return Guide(**{k: v if v is None else v.to(device, **options) for k, v in moved.items()})


def guide_of(
    notes: Sequence[Notes],
    things: Sequence[Things],
    option_ends: Tensor,
    words: Callable[[str], list[int]],
    tokens: int,
    size: Sequence[int],
    agrees: Tensor | None = None,
) -> Guide:
    """Lay notes out as tensors.

    Args:
        notes: of Q questions.
        things: of R rows with a prior.
        option_ends: (B,L) bool.
        words: ids of a text.
        tokens: geometry tokens in front of a question.
        size: T',h',w' to which priors are padded, and Lq, to which questions are.
        agrees: (B,L) as in `Guide`.
    """
    states = {"": NOTHING}
    said = np.full((len(notes), tokens), UNKNOWN)
    spans = np.zeros((len(notes), len(ROLES), size[3]), bool)
    for place, note in enumerate(notes):
        if len(note.states):
            said[place] = [states.setdefault(state, len(states)) for state in note.states]
        if note.spans is not None:
            spans[place, :, : note.spans.shape[1]] = note.spans
    # At least one, which nobody names and nothing shows, so that no tensor is without a thing.
    most = max([len(row.names) for row in things], default=0) or 1
    cover = np.zeros((len(things), most, *size[:3]), np.float32)
    for place, row in enumerate(things):
        t, h, w = row.cover.shape[1:]
        cover[place, : len(row.names), :t, :h, :w] = row.cover
    names = [[words(name) for name in row.names] + [[]] * (most - len(row.names)) for row in things]
    return Guide(
        option_ends,
        # As a state stands behind its number in an answer.
        _padded([words(SILENCE), *[words(f") {state}.") for state in list(states)[1:]]]),
        torch.from_numpy(said),
        torch.tensor([note.things for note in notes]),
        torch.from_numpy(spans),
        _padded([ids for row in names for ids in row]).unflatten(0, (len(things), most)),
        torch.from_numpy(cover) if things else None,
        agrees,
        torch.tensor([note.kind for note in notes]),
    )


def kind_of(question_type: str) -> int:
    """Place in `KINDS` of what a question of a type asks for, UNKNOWN for anything else."""
    asked = question_type.partition("_")[2]
    return KINDS.index(asked) if asked in KINDS else UNKNOWN


def _padded(texts: Sequence[Sequence[int]]) -> Tensor:
    longest = max(map(len, texts), default=1) or 1
    rows = [[*ids, *[NO_WORD] * (longest - len(ids))] for ids in texts]
    return torch.tensor(rows, dtype=torch.long).reshape(len(texts), longest)


def states_of(option: str) -> list[str]:
    """The states that an option lists; an option that lists none is one itself."""
    return ITEM.findall(option) or [option]


def state_ends(option: str) -> list[int]:
    """How many characters into an option each of `states_of` ends."""
    return [found.end() for found in ITEM.finditer(option)] or [len(option)]
