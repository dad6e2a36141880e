"""How often answers read from free text are those that a judge read from the same replies.

The replies are a sample of those that VLM4D's authors published, each with what their judge took for its answer. The
rules were written on one half of them, chosen by a hash; the other half says what they are worth beyond it.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from assets.benchmark.extraction import extract_letter
from assets.workspace import Workspace
from benchmarks.figure import Figure

# The best public extractor agrees in 0.9495 and 0.9964 of all the 80,916 replies.
BOUNDS = {"extraction_cot": ("cot", 0.97), "extraction_direct": ("direct-output", 0.997)}
SHOWN = 400


@dataclass(frozen=True)
class Reading:
    """What was read from one reply, and by the judge; None is no answer."""

    identity: str
    mode: str
    held_out: bool
    rule: str
    ours: str | None
    judge: str | None
    choices: dict[str, str]
    end: str

    @property
    def disagreement(self) -> str:
        """Its class; "" where both read the same."""
        if self.ours == self.judge:
            return ""
        if self.judge is None:
            return "judge found none"
        return "we found none" if self.ours is None else "another option"


def figures(workspace: Workspace) -> dict[str, Figure]:
    """Agreement on both kinds of replies; the disagreements go to reports/benchmarks/extraction_disagreements.json."""
    path = workspace.root.parent / "shared" / "data" / "benchmarks" / "vlm4d" / "model_responses_6000.jsonl.gz"
    if not path.is_file():
        how = f"no published replies beside the repository ({path.parent.parent.parent.name}/…/{path.name})"
        return {name: Figure(None, bound, "higher", "share", how) for name, (_, bound) in BOUNDS.items()}
    readings = read_replies(path)
    _list_disagreements(readings, workspace.root / "reports" / "benchmarks" / "extraction_disagreements.json")
    return {
        name: agreement([reading for reading in readings if reading.mode == mode], bound)
        for name, (mode, bound) in BOUNDS.items()
    }


def read_replies(path: Path) -> list[Reading]:
    """Read every published reply and hold it against the judge, who writes "C: left", or no letter for no answer."""
    readings = []
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            identity = "|".join(row[name] for name in ("split", "mode", "model", "id"))
            letters = sorted(row["choices"])
            found = extract_letter(row["response"], [row["choices"][letter] for letter in letters])
            judged = re.match(r"([A-Z])\b", row["judge"])
            readings.append(
                Reading(
                    identity=identity,
                    mode=row["mode"],
                    held_out=hashlib.sha256(identity.encode()).digest()[0] % 2 == 1,
                    rule=found.rule,
                    ours=found.answer,
                    judge=judged[1] if judged else None,
                    choices=row["choices"],
                    end=row["response"][-SHOWN:],
                )
            )
    return readings


def agreement(readings: list[Reading], bound: float) -> Figure:
    """The share of replies of which both read the same."""
    same = [not reading.disagreement for reading in readings]
    unseen = [not reading.disagreement for reading in readings if reading.held_out]
    classes = Counter(reading.disagreement for reading in readings if reading.disagreement)
    counts = ", ".join(f"{count} {name}" for name, count in classes.most_common()) or "none"
    how = (
        f"{len(same)} published replies against their judge; on the half that the rules were not written on "
        f"{sum(unseen) / len(unseen):.4f} of {len(unseen)}; disagreeing: {counts}"
    )
    return Figure(sum(same) / len(same), bound, "higher", "share", how)


def _list_disagreements(readings: list[Reading], path: Path) -> None:
    """Write every disagreement with its class and the reply's end, those of one class together."""
    apart = [{"class": reading.disagreement, **asdict(reading)} for reading in readings if reading.disagreement]
    apart.sort(key=lambda row: (row["class"], row["mode"], row["rule"], row["identity"]))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(apart, indent=1))
    os.replace(partial, path)
