"""Whether a checkpoint takes the champion's place: a rule over measured facts, and its reason in words."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from assets.benchmark.comparison import Comparison, Scores, compare, why_not_comparable
from validations.blind_statistics import Share, clustered_share

CHANCE = 0.25

# One-sided. A challenger that is no better is promoted in one comparison of forty.
SIGNIFICANCE = 0.025

Verdict = Literal["promoted", "not promoted", "not comparable", "stays champion"]


@dataclass(frozen=True)
class ReleaseChecks:
    """What is known of the checks of the data that a checkpoint learned from.

    Attributes:
        release: DVC hash of the release.
        committed: whether that hash is the committed one. A link whose blocking check failed is never committed.
        failed: names of blocking checks that failed.
        warned: names of advisory checks that failed.
        passed: names of checks that are on record as passed.
    """

    release: str
    committed: bool
    failed: tuple[str, ...] = ()
    warned: tuple[str, ...] = ()
    passed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Criterion:
    """One condition of a promotion.

    Attributes:
        name: of the condition.
        passed: whether it holds; where it was not measured it does not stand in the way.
        measured: whether it was measured at all.
        reason: with its numbers, one line.
    """

    name: str
    passed: bool
    reason: str
    measured: bool = True

    def __str__(self) -> str:
        return (
            f"{'yes' if self.passed and self.measured else '-' if self.passed else 'NO':3} {self.name}: {self.reason}"
        )


@dataclass(frozen=True)
class Decision:
    """What was decided, why, and on which numbers.

    Attributes:
        verdict: "not comparable" where challenger and champion did not answer the same questions; "stays champion"
            where the champion itself was measured again.
        criteria: every condition in turn.
        numbers: what a script may want to read.
    """

    verdict: Verdict
    criteria: tuple[Criterion, ...]
    numbers: Mapping[str, float]

    @property
    def promoted(self) -> bool:
        """Whether the challenger becomes champion."""
        return self.verdict == "promoted"

    @property
    def reason(self) -> str:
        """One line per criterion."""
        return "\n".join(map(str, self.criteria))


def decide(
    challenger: Scores, champion: Scores | None, release: ReleaseChecks, general: Comparison | str | None = None
) -> Decision:
    """Judge a challenger.

    It is promoted only if it is significantly better than the champion on the bench (paired, by clips, one-sided),
    not significantly worse on general understanding, its release passed every check, and its answers without the video
    are at chance. Without a champion it must beat chance and its own answers without the video.

    Args:
        challenger: answers of the checkpoint to be judged.
        champion: answers of the champion to the same questions; None where there is no champion yet.
        release: checks of the data that the challenger learned from.
        general: challenger against champion on a benchmark of general understanding; None where the champion was never
            asked one, and a text that says why where only the challenger's answers are missing.
    """
    numbers = {"accuracy": float(challenger.right.mean()), "questions": float(len(challenger))}
    if champion is not None and (difference := why_not_comparable(challenger, champion)):
        reason = f"{difference}; evaluate champion and challenger on one bench"
        return Decision("not comparable", (Criterion("same questions", False, reason),), numbers)
    if champion is None:
        bench = _first(challenger, numbers)
    else:
        bench = (_better("better than the champion", challenger, champion.right, numbers, "difference"),)
    criteria = (*bench, _general(general, numbers), _release(release), _blind(challenger, numbers))
    verdict = "promoted" if all(criterion.passed for criterion in criteria) else "not promoted"
    return Decision(verdict, criteria, numbers)


def stays_champion(version: int, answers: Scores) -> Decision:
    """The champion was measured again, so that challengers can be compared with it; there is nothing to decide."""
    told = Criterion("champion", True, f"version {version} is the champion already; its answers are on record")
    return Decision(
        "stays champion", (told,), {"accuracy": float(answers.right.mean()), "questions": float(len(answers))}
    )


def _first(challenger: Scores, numbers: dict[str, float]) -> tuple[Criterion, ...]:
    """Without a champion: better than chance, and than the same checkpoint without the video."""
    share = clustered_share(challenger.right, [challenger.quad, challenger.clip], CHANCE)
    numbers["p_above_chance"] = share.p_value
    return (
        Criterion(
            "better than chance",
            share.p_value <= SIGNIFICANCE,
            f"no champion yet; {_of(share)}, p = {share.p_value:.2g}, needed {SIGNIFICANCE:g} or less",
        ),
        _better("better than without the video", challenger, challenger.blind_right, numbers, "gain_over_blind"),
    )


def _better(name: str, challenger: Scores, other, numbers: dict[str, float], prefix: str) -> Criterion:
    """Significantly more right answers than `other` (n,) bool gives on the same questions."""
    found = compare(challenger.right, other, challenger.clip)
    numbers |= _numbers(found, prefix)
    enough = found.p_better <= SIGNIFICANCE
    return Criterion(name, enough, f"{_points(found)}, p = {found.p_better:.2g}, needed {SIGNIFICANCE:g} or less")


def _general(found: Comparison | str | None, numbers: dict[str, float]) -> Criterion:
    name = "general understanding no worse"
    if isinstance(found, str):
        return Criterion(name, False, found)
    if found is None:
        return Criterion(name, True, "not measured, so it says nothing for or against", measured=False)
    numbers |= _numbers(found, "general")
    worse = found.p_worse <= SIGNIFICANCE
    return Criterion(name, not worse, f"{_points(found)}, p of being worse {found.p_worse:.2g}")


def _release(release: ReleaseChecks) -> Criterion:
    name, short = "release passed its checks", release.release[:12]
    if release.failed:
        return Criterion(name, False, f"release {short} failed {', '.join(release.failed)}")
    if not release.committed:
        return Criterion(name, False, f"release {short} is not the committed one; make splits again")
    known = f"{', '.join(release.passed)} on record" if release.passed else "no record of its checks here"
    warned = f"; warnings of {', '.join(release.warned)}" if release.warned else ""
    return Criterion(name, True, f"release {short} is committed, as only what passed is; {known}{warned}")


def _blind(challenger: Scores, numbers: dict[str, float]) -> Criterion:
    share = clustered_share(challenger.blind_right, [challenger.quad, challenger.clip], CHANCE)
    numbers |= {"blind": share.accuracy, "blind_low": share.low, "blind_high": share.high}
    numbers["p_blind_above_chance"] = share.p_value
    reason = f"without the video {_of(share)}, p of being above {share.p_value:.2g}"
    return Criterion("blind score at chance", share.p_value > SIGNIFICANCE, reason)


def _of(share: Share) -> str:
    return (
        f"{share.accuracy:.1%} of {share.n} questions right "
        f"(95 % interval {share.low:.1%} to {share.high:.1%}; chance {CHANCE:.0%})"
    )


def _points(found: Comparison) -> str:
    gain = found.difference
    return (
        f"{100 * gain.value:+.1f} points (95 % interval {100 * gain.low:+.1f} to {100 * gain.high:+.1f}) on "
        f"{gain.n} questions of {gain.clips} clips; {found.only_first} gained, {found.only_second} lost"
    )


def _numbers(found: Comparison, prefix: str) -> dict[str, float]:
    return {
        prefix: found.difference.value,
        f"{prefix}_low": found.difference.low,
        f"{prefix}_high": found.difference.high,
        f"{prefix}_p_better": found.p_better,
        f"{prefix}_p_worse": found.p_worse,
        f"{prefix}_cohens_g": found.cohens_g,
    }
