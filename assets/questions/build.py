"""From the candidates of all shards to finished questions: quads, letters, balance, yield."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pyarrow.parquet as pq

from assets.questions.blind_reader import read
from assets.questions.options import Quad, letter_of, match_quads, stratum
from assets.questions.parameters import QuestionParameters
from assets.questions.row import NON_TEMPLATE, QUESTIONS, TYPES, YIELD, content_seed, write_table
from assets.questions.wording import answer_text
from assets.videos.split import SplitParameters, split_of

SPLITS = ("train", "val", "bench")
# The largest split is read in this many parts, each by a reader that learned from everything else.
TRAIN_FOLDS = 2


def finish(
    candidates: list[dict],
    parameters: QuestionParameters,
    split: Callable[[str], str],
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> tuple[list[dict], Counter]:
    """Turn candidates into questions.

    Args:
        candidates: rows of candidates tables, in any order.
        parameters: matching and balance.
        split: the split of a clip; quads never cross it.
        progress: called after every step.

    Returns:
        Question rows sorted by split, clip, type and identity; and counts of (split, type, outcome).
    """
    rows = [row for _, row in sorted({row["qa_id"]: row for row in candidates}.items())]
    groups = [_group(row["clip"], split) for row in rows]
    reading = read(rows, groups, [stratum(row) for row in rows], parameters.reader_epochs)
    progress(1, 3, "read without the videos")
    quads = match_quads(rows, parameters, reading, groups)
    progress(2, 3, "options matched")
    finished: list[dict] = []
    outcome: Counter = Counter((split(row["clip"]), row["type"], "candidates") for row in rows)
    for name in SPLITS:
        own = [quad for quad in quads if split(rows[quad.members[0]]["clip"]) == name]
        kept = _balanced(own, rows, parameters)
        finished += [_finished(quad, member, rows, name) for quad in kept for member in quad.members]
        outcome.update((name, rows[quad.members[0]]["type"], "quads") for quad in own)
        outcome.update((name, rows[quad.members[0]]["type"], "kept_quads") for quad in kept)
    finished.sort(key=lambda row: (row["split"], row["clip"], row["type"], row["qa_id"]))
    progress(3, 3, "balanced")
    return finished, outcome


def _group(clip: str, split: Callable[[str], str]) -> str:
    """Whose questions are read together by a reader that has seen none of them: a split, or a part of the largest."""
    side = split(clip)
    return f"{side} {content_seed('fold', clip) % TRAIN_FOLDS}" if side == "train" else side


def _balanced(quads: list[Quad], rows: list[dict], parameters: QuestionParameters) -> list[Quad]:
    """Keep whole quads so that no type and no clip outweighs the others.

    A type keeps at most ``type_balance`` times the median type's number of quads, a clip at most ``max_per_clip``
    questions; types and, within them, numbers of states take turns.
    """
    by_type = defaultdict(list)
    for quad in quads:
        by_type[rows[quad.members[0]]["type"]].append(quad)
    if not by_type:
        return []
    most = int(np.ceil(parameters.type_balance * np.median([len(group) for group in by_type.values()])))
    leveled = [_in_turn(group, rows)[:most] for _, group in sorted(by_type.items())]
    load: Counter = Counter()
    kept = []
    for turn in range(max(map(len, leveled))):
        for quad in (group[turn] for group in leveled if turn < len(group)):
            added = Counter(rows[member]["clip"] for member in quad.members)
            if all(load[clip] + count <= parameters.max_per_clip for clip, count in added.items()):
                load += added
                kept.append(quad)
    return kept


def _in_turn(quads: list[Quad], rows: list[dict]) -> list[Quad]:
    """Order one type's quads so that every prefix is balanced over numbers of states."""
    rank: Counter = Counter()
    turns = {}
    for quad in sorted(quads, key=lambda quad: content_seed(quad.quad, "turn")):
        number = max(len(rows[member]["states"]) for member in quad.members)
        turns[quad.quad] = (rank[number], number)
        rank[number] += 1
    return sorted(quads, key=lambda quad: turns[quad.quad])


def _finished(quad: Quad, member: int, rows: list[dict], split: str) -> dict:
    row = {name: value for name, value in rows[member].items() if name in QUESTIONS.names}
    return row | {
        "videoID": row["clip"],
        "options": [_option(rows[other]) for other in quad.order],
        "answer": letter_of(quad, member),
        "split": split,
        "quad": quad.quad,
    }


def _option(row: dict) -> str:
    """A question's answer as an option: states in a row are numbered, the name of a thing or a count is not."""
    bare = row["type"] == NON_TEMPLATE and not row["option_pool"].startswith("states ")
    return row["states"][0] if bare else answer_text(row["states"])


def build_questions(
    candidate_shards: list[Path],
    out: Path,
    parameters: QuestionParameters,
    split_parameters: SplitParameters,
    copies: Mapping[str, str] = MappingProxyType({}),
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> dict[str, int]:
    """Write questions.parquet and yield.parquet from the candidates of all shards.

    Args:
        candidate_shards: folders that ``candidates.derive_shard`` wrote, in any order.
        out: folder to write to.
        parameters: matching and balance.
        split_parameters: which clips go to which split.
        copies: clips that show the same as another clip of the pool; nothing is asked about them.
        progress: called after every split.

    Returns:
        Number of candidates and of questions.
    """

    def split(clip: str) -> str:
        return split_of(clip, split_parameters)

    candidates: list[dict] = []
    dropped: Counter = Counter()
    for shard in candidate_shards:
        found = pq.read_table(shard / "candidates.parquet").to_pylist()
        candidates += [row for row in found if row["clip"] not in copies]
        for row in found:
            if row["clip"] in copies:
                dropped[split(row["clip"]), row["type"], "copied"] += 1
        for row in pq.read_table(shard / "dropped.parquet").to_pylist():
            dropped[split(row["clip"]), row["type"], row["reason"]] += row["count"]
    questions, outcome = finish(candidates, parameters, split, progress=progress)
    write_table(questions, QUESTIONS, out / "questions.parquet")
    write_table(_yield(outcome, dropped), YIELD, out / "yield.parquet")
    return {"candidates": len(candidates), "questions": len(questions)}


def _yield(outcome: Counter, dropped: Counter) -> list[dict]:
    """One row per split and type that had candidates: where they went, adding up."""
    rows = []
    for split in SPLITS:
        for kind in TYPES:
            lost = {reason: dropped[split, kind, reason] for reason in ("unstable", "too_long", "duplicate", "copied")}
            stable = outcome[split, kind, "candidates"]
            if not stable and not any(lost.values()):
                continue
            quads, kept = 4 * outcome[split, kind, "quads"], 4 * outcome[split, kind, "kept_quads"]
            rows.append(
                {
                    "split": split,
                    "type": kind,
                    "candidates": stable + sum(lost.values()),
                    **lost,
                    "no_quad": stable - quads,
                    "surplus": quads - kept,
                    "kept": kept,
                }
            )
    return rows
