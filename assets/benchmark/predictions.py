"""What models have answered: kept as soon as it is known, so that no question is ever put to the same model twice.

An answer is known by what it rests on alone: the reader's identity, the question's text with its options, the bytes
that the reader saw of the clip, and the way of asking. So the same question in another suite, report or order is the
same answer, and whatever changes an answer makes another key.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from assets.reuse import sha256_of

if TYPE_CHECKING:
    import pyarrow as pa

    from assets.benchmark.readers import Manner, Places, Reader
    from models.data import Question

Progress = Callable[[int, int, str], None]
Refuse = Callable[[str, str], None]

# SQLite takes only so many placeholders in a statement.
CHUNK = 500
SECONDS_FOR_THE_LOCK = 60.0


class PredictionCacheError(ValueError):
    """The file of kept answers cannot be used."""


@dataclass(frozen=True)
class Reply:
    """What a reader answered to one question.

    Attributes:
        item_id: of the question.
        shares: probability of each option's letter, adding up to 1; None where only text was asked for or none told.
        text: what it said; None where only letters were weighed.
        answer: the letter or number that it comes to, None where it comes to none or nobody has looked yet.
    """

    item_id: str
    shares: tuple[float, ...] | None = None
    text: str | None = None
    answer: str | None = None


class PredictionCache:
    """Answers in one SQLite file; nothing in it is ever changed.

    What `add` has returned from is on the disk, whatever happens to the process afterwards, and several processes may
    use one file.
    """

    def __init__(self, path: Path) -> None:
        """Open the file, or begin it.

        Raises:
            PredictionCacheError: it is damaged or no file of this kind.
        """
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._opened() as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT NOT NULL)")

    def known(self, keys: Iterable[str]) -> dict[str, Reply]:
        """Those of the answers that are there, by their keys; they carry no item's name."""
        wanted, found = sorted(set(keys)), {}
        with self._opened() as connection:
            for start in range(0, len(wanted), CHUNK):
                some = wanted[start : start + CHUNK]
                places = ",".join("?" * len(some))
                # Only question marks are put in.
                rows = connection.execute(f"SELECT key, reply FROM replies WHERE key IN ({places})", some)
                found |= {key: _reply(reply) for key, reply in rows}
        return found

    def add(self, replies: Mapping[str, Reply]) -> None:
        """Keep answers, all of them or none; of two for one key the first stays."""
        rows = [(key, json.dumps(asdict(replace(reply, item_id="")))) for key, reply in sorted(replies.items())]
        with self._opened() as connection:
            connection.executemany("INSERT OR IGNORE INTO replies VALUES (?, ?)", rows)

    @contextmanager
    def _opened(self):
        """A connection whose changes are on the disk at the end, or not made at all."""
        try:
            with closing(sqlite3.connect(self.path, timeout=SECONDS_FOR_THE_LOCK)) as connection, connection:
                yield connection
        except (sqlite3.Error, ValueError, TypeError) as error:
            raise PredictionCacheError(
                f"{self.path}: the kept answers cannot be used ({error}); delete the file to ask everything again"
            ) from error


def _reply(text: str) -> Reply:
    fields = json.loads(text)
    shares = fields["shares"]
    return Reply("", None if shares is None else tuple(map(float, shares)), fields["text"], fields["answer"])


def prediction_key(reader: Reader, question: Question, seen: str, manner: Manner) -> str:
    """What an answer is known by.

    Args:
        reader: only its identity counts.
        question: its text and options count, and until when the clip may be seen; not its name.
        seen: digest of what there is to be seen of the clip.
        manner: of asking; where it is blind, nothing of the clip counts.
    """
    sight = None if manner.blind else [seen, question.visible_until]
    parts = [reader.identity, question.question, list(question.options), sight, manner.as_parts()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()


def ask_all(
    reader: Reader,
    questions: Sequence[Question],
    seen: Mapping[str, str],
    places: Places,
    manner: Manner,
    cache: PredictionCache,
    *,
    batch_clips: int = 1,
    progress: Progress = lambda done, total, what: None,
    refuse: Refuse | None = None,
) -> list[Reply | None]:
    """Answers to all questions; only what the cache does not know is asked, and kept clip by clip.

    Args:
        reader: what is asked.
        questions: about any clips, in any order.
        seen: digest of each clip's files, by the clip's name.
        places: where these lie.
        manner: of asking.
        cache: of answers.
        batch_clips: clips asked about before their answers are kept, together.
        progress: called with questions done, questions in all and a word.
        refuse: called with the name of a question that cannot be asked and the reason; None raises the error instead.

    Returns:
        An answer for each question in order, None for those that were refused.

    Raises:
        ClipError, QuestionError: a question cannot be asked, and `refuse` is None.
    """
    from models.data import groups_of

    keys = [prediction_key(reader, one, seen.get(one.clip, ""), manner) for one in questions]
    known: dict[str, Reply] = cache.known(keys)
    refused: dict[str, str] = {}
    groups, done = groups_of(questions), 0
    for start in range(0, len(groups), batch_clips):
        rows = [row for group in groups[start : start + batch_clips] for row in group.rows]
        new: dict[str, Question] = {}
        for row in rows:
            if keys[row] not in known and keys[row] not in refused:
                new.setdefault(keys[row], questions[row])
        if new:
            replies = _ask(reader, new, places, manner, None if refuse is None else refused)
            cache.add(replies)
            known |= replies
        done += len(rows)
        progress(done, len(questions), "blind" if manner.blind else "with video")
    for key, one in zip(keys, questions, strict=True):
        if key in refused:
            refuse(one.qa_id, refused[key])
    found = [known.get(key) for key in keys]
    return [reply and replace(reply, item_id=one.qa_id) for reply, one in zip(found, questions, strict=True)]


def _ask(
    reader: Reader, asked: Mapping[str, Question], places: Places, manner: Manner, refused: dict[str, str] | None
) -> dict[str, Reply]:
    """Answers by key; where one of several questions cannot be asked, the others are asked without it."""
    from models.data import ClipError
    from models.prompt import QuestionError

    try:
        return dict(zip(asked, reader.answer(list(asked.values()), places, manner), strict=True))
    except (ClipError, QuestionError) as error:
        if refused is None:
            raise
        if len(asked) == 1:
            refused[next(iter(asked))] = str(error)
            return {}
    parts = [_ask(reader, {key: question}, places, manner, refused) for key, question in asked.items()]
    return {key: reply for part in parts for key, reply in part.items()}


def cached_predictor(path: Path) -> Callable[..., np.ndarray]:
    """`models.predict.predict` that asks nothing twice: the same arguments, the same answers."""
    return partial(_predict, PredictionCache(path))


def _predict(
    cache: PredictionCache,
    checkpoint: Path,
    questions: pa.Table,
    videos: Path,
    geometry: Path,
    *,
    blind: bool,
    batch_clips: int,
    progress: Progress,
) -> np.ndarray:
    from assets.benchmark.readers import LETTERS_PROTOCOL, LocalReader, Manner, Places
    from models.data import questions_of
    from models.predict import check_four

    listed = questions_of(questions, with_answer=False)
    check_four(listed)
    places = Places(videos, geometry)
    seen = {} if blind else {one.clip: places.digest(one.shard, one.clip) for one in listed}
    manner = Manner(LETTERS_PROTOCOL, blind)
    asked = {"batch_clips": batch_clips, "progress": progress}
    replies = ask_all(LocalReader(str(checkpoint)), listed, seen, places, manner, cache, **asked)
    return np.array([reply.shares for reply in replies], dtype=np.float64).reshape(-1, 4)


def digest_of(*files: Path) -> str:
    """Digest of some files' bytes; of a missing one that it is missing, which whoever reads it will say."""
    digests = [sha256_of(path) if path.is_file() else None for path in files]
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()
