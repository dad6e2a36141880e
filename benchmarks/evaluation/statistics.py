"""How often 95 % intervals hold the truth, and how often the promotion rule is wrong, where the truth is known."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from assets.benchmark.comparison import Scores
from assets.benchmark.promotion import CHANCE, ReleaseChecks, decide
from assets.benchmark.statistics import ClipBootstrap
from benchmarks.figure import Figure

SEED = 20260601
RESAMPLES = 2000
CONFIDENCE = 0.95

# Questions and clips: DSR-Bench (1,484 questions, about 2.6 per clip), one of its types, and smaller benches.
BENCH = (1484, 571)
SIZES = (BENCH, (114, 90), (120, 40))
FEW = ((60, 20), (48, 12), (48, 8), (40, 5))
ACCURACIES = (0.25, 0.6, 0.9)

# Intra-class correlation of the outcomes within a clip.
CORRELATIONS = (0.0, 0.1, 0.3)
CORRELATION = 0.2

COMPARISONS = 1000
ACCURACY, GAIN = 0.55, 0.05

# Share of clips that are as difficult for both checkpoints, and of questions on which both have the same luck.
AGREEMENT = 0.5


def figures(repetitions: int = 6000, comparisons: int = COMPARISONS) -> dict[str, Figure]:
    """Figures of intervals and promotion; they depend on the code alone.

    Args:
        repetitions: simulated benches per setting of the intervals.
        comparisons: simulated pairs of checkpoints.
    """
    return interval_figures(repetitions) | promotion_figures(comparisons)


def interval_figures(repetitions: int) -> dict[str, Figure]:
    """Coverage over all settings of size, accuracy and correlation: mean, lowest and highest."""
    generator = np.random.default_rng(SEED)
    covered = _covered(SIZES, repetitions, generator)
    lowest, highest = min(covered, key=covered.get), max(covered, key=covered.get)
    at_bench = [share for (size, *_), share in covered.items() if size == BENCH]
    few = _covered(FEW, repetitions, generator)
    how = (
        f"mean of {len(covered)} settings, {repetitions} simulated benches each: {SIZES[-1][0]} to {SIZES[0][0]} "
        f"questions of {SIZES[-1][1]} to {SIZES[0][1]} clips, accuracy {ACCURACIES[0]} to {ACCURACIES[-1]}, "
        f"correlation within a clip 0 to {CORRELATIONS[-1]}"
    )
    at_size = f"the bench's size: mean; {min(at_bench):.3f} to {max(at_bench):.3f}"
    with_few = (
        f"lowest with {FEW[-1][1]} to {FEW[0][1]} clips; highest {max(few.values()):.3f}: wide rather than narrow"
    )
    return {
        "interval_coverage": Figure(_mean(covered.values()), 0.93, "higher", "share", how),
        "interval_coverage_lowest": Figure(covered[lowest], 0.93, "higher", "share", _named(lowest)),
        "interval_coverage_highest": Figure(covered[highest], 0.97, "lower", "share", _named(highest)),
        "interval_coverage_bench": Figure(_mean(at_bench), 0.93, "higher", "share", at_size),
        "interval_coverage_few_clips": Figure(min(few.values()), 0.93, "higher", "share", with_few),
    }


def _covered(sizes, repetitions: int, generator: np.random.Generator) -> dict[tuple, float]:
    settings = itertools.product(sizes, ACCURACIES, CORRELATIONS)
    return {setting: coverage(*setting, repetitions, generator) for setting in settings}


def _named(setting: tuple) -> str:
    (questions, clips), accuracy, correlation = setting
    return f"of those settings: {questions} questions of {clips} clips, accuracy {accuracy}, correlation {correlation}"


def coverage(
    size: tuple[int, int], accuracy: float, correlation: float, repetitions: int, generator: np.random.Generator
) -> float:
    """In what share of simulated benches the interval of the project's own statistics holds the true accuracy.

    A clip's difficulty is drawn from the beta distribution that gives outcomes within it the correlation asked for.
    """
    counts = clip_sizes(*size, generator)
    difficulty = difficulties(accuracy, correlation, (len(counts), repetitions), generator)
    totals = generator.binomial(counts[:, None], difficulty).astype(float)
    names = [f"clip {place:06d}" for place in range(len(counts))]
    bootstrap = ClipBootstrap(np.array(names), RESAMPLES, CONFIDENCE, SEED)
    _, low, high = bootstrap.share_intervals(totals, counts.astype(float))
    return float(np.mean((low <= accuracy) & (accuracy <= high)))


def clip_sizes(questions: int, clips: int, generator: np.random.Generator) -> np.ndarray:
    """(clips,) questions of each clip, at least one, as uneven as those of a real bench (geometric)."""
    return 1 + generator.multinomial(questions - clips, generator.dirichlet(np.ones(clips)))


def difficulties(mean: float, correlation: float, shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    """Chances of a right answer: beta with this mean, whose variance is `correlation` of a single outcome's."""
    if correlation == 0:
        return np.full(shape, mean)
    strength = 1 / correlation - 1
    return generator.beta(mean * strength, (1 - mean) * strength, shape)


@dataclass(frozen=True)
class Duel:
    """A simulated bench on which a champion and a challenger are compared.

    Attributes:
        size: questions and clips.
        accuracy: of the champion.
        gain: of the challenger over it.
    """

    size: tuple[int, int]
    accuracy: float
    gain: float

    def promoted(self, comparisons: int, generator: np.random.Generator) -> float:
        """Share of simulated comparisons that end in a promotion by the whole rule."""
        counts = clip_sizes(*self.size, generator)
        clip_of = np.repeat(np.arange(len(counts)), counts)
        release = ReleaseChecks("0" * 32, committed=True)
        decisions = [decide(*self.draw(clip_of, generator), release) for _ in range(comparisons)]
        return float(np.mean([decision.promoted for decision in decisions]))

    def draw(self, clip_of: np.ndarray, generator: np.random.Generator) -> tuple[Scores, Scores]:
        """One bench answered by challenger and champion.

        Some clips are as difficult for both, others for each in its own way; on some questions both have the same luck.
        The challenger gets right the share of what is hard that makes its accuracy larger by the gain.

        Args:
            clip_of: (n,) number of each question's clip.
            generator: of the draws.
        """
        n, clips = len(clip_of), int(clip_of.max()) + 1
        easy = difficulties(self.accuracy, CORRELATION, (clips,), generator)
        luck, same_luck = generator.random(n), generator.random(n) < AGREEMENT
        same_clip = generator.random(clips) < AGREEMENT
        answers = []
        for gain in (self.gain, 0.0):
            own = difficulties(self.accuracy, CORRELATION, (clips,), generator)
            chance = np.where(same_clip, easy, own)
            chance += gain * (1 - chance) / (1 - self.accuracy)
            right = np.where(same_luck, luck, generator.random(n)) < chance[clip_of]
            blind = generator.random(n) < CHANCE
            answers.append(Scores("", np.arange(n), clip_of, np.zeros(n), right, clip_of, blind))
        challenger, champion = answers
        return challenger, champion


def promotion_figures(comparisons: int) -> dict[str, Figure]:
    """How often a challenger that is no better is promoted, and one that is better."""
    generator = np.random.default_rng(SEED + 1)
    wrong = {size: Duel(size, ACCURACY, 0.0).promoted(comparisons, generator) for size in (*SIZES, *FEW)}
    power = Duel(BENCH, ACCURACY, GAIN).promoted(comparisons, generator)
    worst = max(wrong, key=wrong.get)
    how = f"{comparisons} simulated comparisons of equally good checkpoints by the whole rule, {BENCH[0]} questions"
    other = f"the most of {len(wrong)} sizes of bench: {worst[0]} questions of {worst[1]} clips"
    gained = (
        f"true gain of {100 * GAIN:.0f} points over {ACCURACY:.0%}, {BENCH[0]} questions, {comparisons} comparisons"
    )
    return {
        "false_promotions": Figure(wrong[BENCH], 0.05, "lower", "share", how),
        "false_promotions_worst": Figure(wrong[worst], 0.05, "lower", "share", other),
        "promotion_power": Figure(power, None, "higher", "share", gained),
    }


def _mean(values) -> float:
    return float(np.mean(list(values)))
