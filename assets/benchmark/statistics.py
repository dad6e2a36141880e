"""How sure one may be of an accuracy, when questions come in clips.

The questions of one clip share its video, its geometry and often their options, so that their outcomes are not
independent: intervals that count questions are too narrow. Here clips are drawn, with all their questions.
"""

import hashlib
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

DECIMALS = 6


# Below this many clips the resampled means span too little: simulated 95 % intervals of 2 or 3 clips held the truth in
# 50 to 80 % of trials. Student's t over the clips, which takes over, held it in 87 to 96 %.
FEW_CLIPS = 5


@dataclass(frozen=True)
class Estimate:
    """A share with its interval.

    Attributes:
        value: the share, 0..1 (a difference: -1..1).
        low: lower end of the interval.
        high: upper end of the interval.
        n: questions counted.
        clips: clips they come from.
        method: "cluster bootstrap"; "cluster t" where clips are few; "independent questions" where clips cannot tell
            (only one, or all alike).
    """

    value: float
    low: float
    high: float
    n: int
    clips: int
    method: str


class ClipBootstrap:
    """Resamples of clips, drawn once, so that every figure of a report is read from the same draws.

    The interval is the expanded percentile interval: quantiles of the resampled figure, moved outwards so that few
    clips are not taken for many (T. Hesterberg, "What Teachers Should Know About the Bootstrap", The American
    Statistician 69(4), 2015, section 4.2: alpha/2 becomes the normal tail at -sqrt(C/(C-1)) t(alpha/2, C-1)). It is
    never narrower than for independent questions, or clips that look alike by luck would make it so.

    Memory: resamples x clips float32.
    """

    def __init__(self, clips: np.ndarray, resamples: int, confidence: float, seed: int):
        """Draw the resamples.

        Args:
            clips: (n,) clip identity of each question.
            resamples: how many draws.
            confidence: of the intervals, for example 0.95.
            seed: the draws depend on it and on the clips' names, not on the rows' order.
        """
        self.names, self.clip_of = np.unique(np.asarray(clips, dtype=str), return_inverse=True)
        self.confidence = confidence
        text = "|".join([str(seed), *self.names])
        digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
        generator = np.random.default_rng(int.from_bytes(digest[:8], "little"))
        count = len(self.names)
        self.weights = generator.multinomial(count, np.full(count, 1 / count), size=resamples).astype(np.float32)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """(n,) or (n, K) values of the questions -> (C,) or (C, K) sums over each clip."""
        totals = np.zeros((len(self.names), *values.shape[1:]))
        np.add.at(totals, self.clip_of, values)
        return totals

    def share(self, right: np.ndarray, among: np.ndarray | None = None) -> Estimate:
        """The share of right answers with its interval.

        Args:
            right: (n,) 0 or 1 per question.
            among: (n,) bool, which questions count; None for all.
        """
        chosen = np.ones(len(right), bool) if among is None else np.asarray(among, bool)
        successes, n = float(np.sum(right[chosen])), int(chosen.sum())
        return self._mean(np.asarray(right, float), chosen, wilson(successes, n, self.confidence), (0, 1))

    def difference(self, first: np.ndarray, second: np.ndarray) -> Estimate:
        """How much larger the first reader's share is than the second's on the same questions.

        Args:
            first: (n,) 0 or 1 per question.
            second: (n,) 0 or 1 per question.
        """
        gain = np.asarray(first, float) - np.asarray(second, float)
        floor = agresti_min(int((gain > 0).sum()), int((gain < 0).sum()), len(gain), self.confidence)
        return self._mean(gain, np.ones(len(gain), bool), floor, (-1, 1))

    def macro(self, right: np.ndarray, groups: np.ndarray) -> Estimate:
        """The mean over groups (question types) of the share of right answers in each.

        Args:
            right: (n,) 0 or 1 per question.
            groups: (n,) name of each question's group.
        """
        names, group_of = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
        member = np.eye(len(names))[group_of]
        counts, totals = self.sums(member), self.sums(member * np.asarray(right, float)[:, None])
        sizes = counts.sum(0)
        shares = totals.sum(0) / sizes
        drawn = self.weights.astype(np.float64) @ counts
        with np.errstate(invalid="ignore", divide="ignore"):
            resampled = np.where(drawn > 0, self.weights.astype(np.float64) @ totals / drawn, np.nan)
        # As many independent questions as would give a mean of groups its variance: K^2 / sum(1 / n_k).
        independent = len(names) ** 2 / np.sum(1 / sizes)
        floor = wilson(shares.mean() * independent, independent, self.confidence)
        influence = ((totals - shares * counts) / sizes).mean(1)
        return self._estimate(shares.mean(), np.nanmean(resampled, axis=1), influence, floor, (0, 1), len(right))

    def _mean(self, values: np.ndarray, chosen: np.ndarray, floor: tuple, bounds: tuple) -> Estimate:
        """The mean of the chosen values, a ratio of two sums over clips."""
        counts, totals = self.sums(chosen.astype(float)), self.sums(np.where(chosen, values, 0.0))
        n = int(counts.sum())
        value = totals.sum() / n if n else float("nan")
        drawn = self.weights.astype(np.float64) @ counts
        resampled = (self.weights.astype(np.float64) @ totals)[drawn > 0] / drawn[drawn > 0]
        influence = ((totals - value * counts) / max(n, 1))[counts > 0]
        return self._estimate(value, resampled, influence, floor, bounds, n)

    def _estimate(
        self, value: float, resampled: np.ndarray, influence: np.ndarray, floor: tuple, bounds: tuple, n: int
    ) -> Estimate:
        """Choose the interval.

        Args:
            value: the figure.
            resampled: (B,) the figure in each draw.
            influence: (C,) how much each clip pulls the figure away from its value; they sum to zero.
            floor: (low, high) for independent questions; the interval holds it.
            bounds: what the figure can be at all.
            n: questions counted.
        """
        from scipy.stats import t

        clips, tail = len(influence), (1 - self.confidence) / 2
        if clips < 2 or np.abs(influence).max() < 1e-12:
            (low, high), method = floor, "independent questions"
        elif clips < FEW_CLIPS:
            half = -t.ppf(tail, clips - 1) * np.sqrt(clips / (clips - 1) * np.sum(influence**2))
            (low, high), method = (value - half, value + half), "cluster t"
        else:
            expanded = NormalDist().cdf(float(np.sqrt(clips / (clips - 1)) * t.ppf(tail, clips - 1)))
            (low, high), method = np.quantile(resampled, [expanded, 1 - expanded]), "cluster bootstrap"
        low, high = max(bounds[0], min(low, floor[0])), min(bounds[1], max(high, floor[1]))
        return Estimate(*(round(float(x), DECIMALS) for x in (value, low, high)), n, clips, method)


def wilson(successes: float, n: float, confidence: float) -> tuple[float, float]:
    """Wilson's score interval of a share of n independent outcomes (E. B. Wilson, JASA 22, 1927).

    Returns:
        (low, high); (0, 1) where nothing was counted.
    """
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return float(max(0.0, middle - half)), float(min(1.0, middle + half))


def agresti_min(gained: int, lost: int, n: int, confidence: float) -> tuple[float, float]:
    """Interval of the difference of two paired shares, questions independent (Agresti and Min, Stat. Med. 24, 2005).

    Half a question is added to each of the four cells of the table of pairs.

    Args:
        gained: questions only the first reader had right.
        lost: questions only the second had right.
        n: questions in all.
        confidence: of the interval.
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    difference = (gained - lost) / (n + 2)
    half = z * np.sqrt(gained + lost + 1 - (gained - lost) ** 2 / (n + 2)) / (n + 2)
    return float(max(-1.0, difference - half)), float(min(1.0, difference + half))


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """Two-sided exact McNemar test of two readers on the same questions (Q. McNemar, Psychometrika 12, 1947).

    Counts questions as independent; the clip-wise interval of the difference is the stricter statement.

    Args:
        first: (n,) bool, whether the first reader was right.
        second: (n,) bool, whether the second was.

    Returns:
        p value; 1 where they never differ.
    """
    from scipy.stats import binomtest

    only_first, only_second = int(np.sum(first & ~second)), int(np.sum(second & ~first))
    discordant = only_first + only_second
    return float(binomtest(only_first, discordant).pvalue) if discordant else 1.0


@dataclass(frozen=True)
class Calibration:
    """Whether a model that says 70 % is right 70 times in a hundred.

    Attributes:
        error: expected calibration error: mean over questions of |confidence - accuracy| of their bin.
        brier: mean squared distance between the four probabilities and the truth, 0..2.
        low, high: (B,) edges of the bins that hold questions.
        confidence: (B,) mean confidence in each.
        accuracy: (B,) share of right answers in each.
        n: (B,) questions in each.
    """

    error: float
    brier: float
    low: np.ndarray
    high: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    n: np.ndarray


def calibration(probabilities: np.ndarray, truth: np.ndarray, bins: int) -> Calibration:
    """Confidence against accuracy in bins of equal width (Guo et al., ICML 2017, equation 3).

    Args:
        probabilities: (n, 4) of the options, each row summing to 1.
        truth: (n,) index of the right option.
        bins: number of bins between 0 and 1; empty ones are left out of the result.
    """
    confidence = probabilities.max(1)
    right = probabilities.argmax(1) == truth
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    n = np.bincount(place, minlength=bins)
    held = np.flatnonzero(n)
    mean_confidence = np.bincount(place, confidence, bins)[held] / n[held]
    accuracy = np.bincount(place, right, bins)[held] / n[held]
    error = float(np.sum(n[held] * np.abs(mean_confidence - accuracy)) / n.sum())
    brier = float(np.mean(np.sum((probabilities - np.eye(4)[truth]) ** 2, axis=1)))
    edges = np.arange(bins + 1) / bins
    return Calibration(
        round(error, DECIMALS),
        round(brier, DECIMALS),
        *(np.round(values, DECIMALS) for values in (edges[held], edges[held + 1], mean_confidence, accuracy)),
        n[held],
    )
