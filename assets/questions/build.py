"""From the candidates of all shards to finished questions: quads, letters, balance, yield."""

from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from assets.questions.options import Quad, Reader, letter_of, match_quads
from assets.questions.parameters import QuestionParameters
from assets.questions.row import QUESTIONS, TYPES, YIELD, content_seed, write_table
from assets.questions.wording import answer_text
from assets.videos.split import SplitParameters, split_of

SPLITS = ("train", "val", "bench")


def finish(
    candidates: list[dict],
    parameters: QuestionParameters,
    split: Callable[[str], str],
    reader: Reader | None = None,
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> tuple[list[dict], Counter]:
    """Turn candidates into questions.

    Args:
        candidates: rows of candidates tables, in any order.
        parameters: matching and balance.
        split: the split of a clip; quads never cross it.
        reader: see ``options.match_quads``.
        progress: called after every split.

    Returns:
        Question rows sorted by split, clip, type and identity; and counts of (split, type, outcome).
    """
    pools = defaultdict(list)
    for row in {row["qa_id"]: row for row in candidates}.values():
        pools[split(row["clip"])].append(row)
    finished: list[dict] = []
    outcome: Counter = Counter()
    for done, (name, rows) in enumerate(sorted(pools.items()), start=1):
        quads = match_quads(rows, parameters, reader)
        kept = _balanced(quads, rows, parameters)
        finished += [_finished(quad, member, rows, name) for quad in kept for member in quad.members]
        outcome.update((name, row["type"], "candidates") for row in rows)
        outcome.update((name, rows[quad.members[0]]["type"], "quads") for quad in quads)
        outcome.update((name, rows[quad.members[0]]["type"], "kept_quads") for quad in kept)
        progress(done, len(pools), f"options matched in {name}")
    finished.sort(key=lambda row: (row["split"], row["clip"], row["type"], row["qa_id"]))
    return finished, outcome


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
        "options": [answer_text(rows[other]["states"]) for other in quad.order],
        "answer": letter_of(quad, member),
        "split": split,
        "quad": quad.quad,
    }


def build_questions(
    candidate_shards: list[Path],
    out: Path,
    parameters: QuestionParameters,
    split_parameters: SplitParameters,
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> dict[str, int]:
    """Write questions.parquet and yield.parquet from the candidates of all shards.

    Args:
        candidate_shards: folders that ``candidates.derive_shard`` wrote, in any order.
        out: folder to write to.
        parameters: matching and balance.
        split_parameters: which clips go to which split.
        progress: called after every split.

    Returns:
        Number of candidates and of questions.
    """

    def split(clip: str) -> str:
        return split_of(clip, split_parameters)

    candidates: list[dict] = []
    dropped: Counter = Counter()
    for shard in candidate_shards:
        candidates += pq.read_table(shard / "candidates.parquet").to_pylist()
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
            lost = {reason: dropped[split, kind, reason] for reason in ("unstable", "too_long", "duplicate")}
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
