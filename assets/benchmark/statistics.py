"""How sure one may be of an accuracy, when questions come in clips.

The questions of one clip share its video, its geometry and often their options, so that their outcomes are not
independent: intervals that count questions are too narrow. Here the clip is what counts. How often each interval holds
the truth is measured by `make bench NAME=evaluation`.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist

import numpy as np

DECIMALS = 6

# Below this many clips resamples span too little: simulated 95 % intervals held the truth in 0.927 of trials with 40
# clips, 0.915 with 8 and 0.83 with 5 (accuracy 0.9 or 0.25, intra-class correlation 0.3), where the interval by
# `clustered_score`, which takes over, held it in 0.94 to 0.98. Beyond it the two differ by less than 0.01.
FEW_CLIPS = 100

# However much clips look alike, an interval is never narrower than for this many times the variance of independent
# questions: with few clips that is luck. 1 would cost coverage where questions are independent (0.98 with 12 clips).
LEAST_DESIGN_EFFECT = 0.5


@dataclass(frozen=True)
class Estimate:
    """A share with its interval.

    Attributes:
        value: the share, 0..1 (a difference: -1..1).
        low: lower end of the interval.
        high: upper end of the interval.
        n: questions counted.
        clips: clips they come from.
        method: "cluster bootstrap"; "cluster robust" where clips are few, and for differences; "independent questions"
            where there is only one clip.
    """

    value: float
    low: float
    high: float
    n: int
    clips: int
    method: str


class ClipBootstrap:
    """Intervals of one set of questions; resamples of clips are drawn once, so that all figures read the same draws.

    With many clips the interval is the expanded percentile interval: quantiles of the resampled figure, moved outwards
    so that few clips are not taken for many (T. Hesterberg, "What Teachers Should Know About the Bootstrap", The
    American Statistician 69(4), 2015, section 4.2: alpha/2 becomes the normal tail at -sqrt(C/(C-1)) t(alpha/2, C-1)).
    With fewer it is `clustered_score`. Neither is ever narrower than `LEAST_DESIGN_EFFECT` allows.

    Memory: resamples x clips float64, drawn at the first figure that needs them.
    """

    def __init__(self, clips: np.ndarray, resamples: int, confidence: float, seed: int):
        """Prepare the draws.

        Args:
            clips: (n,) clip identity of each question.
            resamples: how many draws.
            confidence: of the intervals, for example 0.95.
            seed: the draws depend on it and on the clips' names, not on the rows' order.
        """
        self.names, self.clip_of = np.unique(np.asarray(clips, dtype=str), return_inverse=True)
        self.resamples, self.confidence, self.seed = resamples, confidence, seed

    @cached_property
    def weights(self) -> np.ndarray:
        """(resamples, C): how often each clip is in each draw."""
        text = "|".join([str(self.seed), *self.names])
        digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
        generator = np.random.default_rng(int.from_bytes(digest[:8], "little"))
        count = len(self.names)
        return generator.multinomial(count, np.full(count, 1 / count), size=self.resamples).astype(np.float64)

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
        counts = self.sums(chosen.astype(float))
        if not counts.any():
            return Estimate(float("nan"), 0.0, 1.0, 0, 0, "independent questions")
        totals = self.sums(np.where(chosen, right, 0.0))[:, None]
        value, low, high = self.share_intervals(totals, counts)
        return _estimate(value[0], low[0], high[0], int(counts.sum()), self._method(counts))

    def share_intervals(self, totals: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Several shares of the same questions at once.

        Args:
            totals: (C, K) right answers in each clip, for each of K readers.
            counts: (C,) questions of each clip, at least one in all.

        Returns:
            (K,) shares, lower and upper ends.
        """
        n = counts.sum()
        value = totals.sum(0) / n
        influence = (totals - value * counts[:, None]) / n

        def resampled() -> np.ndarray:
            drawn = self.weights @ counts
            return (self.weights @ totals)[drawn > 0] / drawn[drawn > 0, None]

        return value, *self._interval(value, influence, counts / n, float(n), resampled)

    def difference(self, first: np.ndarray, second: np.ndarray) -> Estimate:
        """How much larger the first reader's share is than the second's on the same questions.

        Args:
            first: (n,) 0 or 1 per question.
            second: (n,) 0 or 1 per question.
        """
        gain = np.asarray(first, float) - np.asarray(second, float)
        return PairedDifference.of(gain, self.clip_of).estimate(self.confidence)

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
        # As many independent questions as would give a mean of groups its variance: K^2 / sum(1 / n_k).
        independent = len(names) ** 2 / np.sum(1 / sizes)
        influence = ((totals - shares * counts) / sizes).mean(1, keepdims=True)

        def resampled() -> np.ndarray:
            drawn = self.weights @ counts
            with np.errstate(invalid="ignore", divide="ignore"):
                drawn_shares = np.where(drawn > 0, self.weights @ totals / drawn, np.nan)
            return np.nanmean(drawn_shares, axis=1)[:, None]

        leverage = (counts / sizes).mean(1)
        value = np.array([shares.mean()])
        low, high = self._interval(value, influence, leverage, float(independent), resampled)
        return _estimate(value[0], low[0], high[0], len(right), self._method(counts.sum(1)))

    def _method(self, counts: np.ndarray) -> tuple[int, str]:
        """How many clips hold a question, and what is therefore done."""
        clips = int(np.sum(counts > 0))
        names = ("independent questions", "cluster robust", "cluster bootstrap")
        return clips, names[int(clips >= 2) + int(clips >= FEW_CLIPS)]

    def _interval(self, value, influence, leverage, independent: float, resampled) -> tuple[np.ndarray, np.ndarray]:
        """The interval that suits the number of clips.

        Args:
            value: (K,) the figures.
            influence: (C, K) how much each clip pulls a figure away from its value; each column sums to zero.
            leverage: (C,) share of the weight that each clip has.
            independent: how many independent questions would be as sure.
            resampled: gives the (B, K) figures in each draw.
        """
        from scipy.stats import t

        clips, quantile = int(np.sum(leverage > 0)), NormalDist().inv_cdf((1 + self.confidence) / 2)
        if clips < 2:
            return score_interval(value, independent, quantile)
        floor = score_interval(value, independent / LEAST_DESIGN_EFFECT, quantile)
        if clips < FEW_CLIPS:
            low, high = clustered_score(value, influence, leverage, self.confidence)
        else:
            expanded = np.sqrt(clips / (clips - 1)) * t.ppf((1 - self.confidence) / 2, clips - 1)
            tail = NormalDist().cdf(float(expanded))
            low, high = np.quantile(resampled(), [tail, 1 - tail], axis=0)
        return np.minimum(low, floor[0]), np.maximum(high, floor[1])


def _estimate(value: float, low: float, high: float, n: int, method: tuple[int, str]) -> Estimate:
    return Estimate(*(round(float(x), DECIMALS) for x in (value, low, high)), n, *method)


def clustered_score(
    value: np.ndarray, influence: np.ndarray, leverage: np.ndarray, confidence: float
) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's interval with the number of independent questions that the variance between clips amounts to.

    Variance and degrees of freedom: `cluster_variance`, `degrees_of_freedom`. The number p (1 - p) / variance replaces
    that of the questions and Student's t the normal quantile, as surveys do (E. Korn and B. Graubard, "Confidence
    intervals for proportions with small expected number of positive counts estimated from survey data", Survey
    Methodology 24, 1998). Where all answers are right, or all wrong, clips of one mind count once.

    Args:
        value: (K,) shares.
        influence: (C, K) how much each clip pulls a share away from its value.
        leverage: (C,) share of the weight that each clip has; at least two are above zero.
        confidence: of the interval.

    Returns:
        (K,) lower and upper ends.
    """
    from scipy.stats import t

    variance, spread = cluster_variance(influence, leverage), value * (1 - value)
    clips = 1 / np.sum(leverage**2)
    with np.errstate(invalid="ignore", divide="ignore"):
        effective = np.where(spread > 0, spread / np.maximum(variance, np.finfo(float).tiny), clips)
    return score_interval(value, effective, t.ppf((1 + confidence) / 2, degrees_of_freedom(leverage)))


def cluster_variance(influence: np.ndarray, leverage: np.ndarray) -> np.ndarray:
    """Variance of a mean whose observations come in clips, corrected for few of them.

    Each clip's squared influence is divided by one less its leverage, which makes the sum unbiased for independent
    questions (R. Bell and D. McCaffrey, "Bias reduction in standard errors for linear regression with multi-stage
    samples", Survey Methodology 28, 2002; "CR2").

    Args:
        influence: (C, K) how much each clip pulls each figure away from its value.
        leverage: (C,) share of the weight that each clip has, each below 1.

    Returns:
        (K,) variances.
    """
    return np.sum(influence**2 / (1 - leverage)[:, None], axis=0)


def degrees_of_freedom(leverage: np.ndarray) -> float:
    """Of `cluster_variance`: as many as clips of equal weight, less one; one large clip among small ones counts most.

    Satterthwaite's approximation for a mean (Bell and McCaffrey 2002); at least 1.
    """
    return max(1 / float(np.sum(leverage**2)) - 1, 1.0)


@dataclass(frozen=True)
class PairedDifference:
    """The mean difference of two readers on the same questions, with both of its standard errors.

    A test must reject by both: by the variance between clips, and as if questions were independent, since a handful of
    clips may agree by luck.

    Attributes:
        value: mean difference, -1..1.
        clustered: standard error from the variance between clips; None with one clip.
        freedom: its degrees of freedom.
        independent: standard error for independent questions, half a question added to each cell of the table of pairs
            (A. Agresti and Y. Min, Statistics in Medicine 24, 2005).
        n: questions.
        clips: clips they come from.
    """

    value: float
    clustered: float | None
    freedom: float
    independent: float
    n: int
    clips: int

    @classmethod
    def of(cls, gain: np.ndarray, clip_of: np.ndarray) -> "PairedDifference":
        """Measure it.

        Args:
            gain: (n,) 1 where only the first reader is right, -1 where only the second is, else 0; n at least 1.
            clip_of: (n,) number of each question's clip.
        """
        n, gained, lost = len(gain), int(np.sum(gain > 0)), int(np.sum(gain < 0))
        counts, value = np.bincount(clip_of).astype(float), float(np.mean(gain))
        leverage = counts / n
        influence = (np.bincount(clip_of, gain) - value * counts) / n
        clips = int(np.sum(counts > 0))
        clustered = float(np.sqrt(cluster_variance(influence[:, None], leverage)[0])) if clips > 1 else None
        independent = np.sqrt(gained + lost + 1 - (gained - lost) ** 2 / (n + 2)) / (n + 2)
        freedom = degrees_of_freedom(leverage)
        return cls(value, clustered, freedom, float(independent), n, clips)

    def estimate(self, confidence: float) -> Estimate:
        """The difference and its interval: the values that the test does not reject."""
        from scipy.stats import t

        half = NormalDist().inv_cdf((1 + confidence) / 2) * self.independent
        if self.clustered is not None:
            half = max(half, t.ppf((1 + confidence) / 2, self.freedom) * self.clustered)
        method = (self.clips, "independent questions" if self.clustered is None else "cluster robust")
        return _estimate(self.value, max(-1.0, self.value - half), min(1.0, self.value + half), self.n, method)

    def p_above(self, bound: float = 0.0) -> float:
        """One-sided p value of "the true difference is not above the bound"; 1 with one clip, which shows nothing."""
        return self._tail(self.value - bound)

    def p_below(self, bound: float = 0.0) -> float:
        """One-sided p value of "the true difference is not below the bound"; 1 with one clip, which shows nothing."""
        return self._tail(bound - self.value)

    def _tail(self, excess: float) -> float:
        from scipy.stats import t

        if self.clustered is None:
            return 1.0
        counting = NormalDist().cdf(-excess / self.independent)
        between = float(t.sf(excess / self.clustered, self.freedom)) if self.clustered > 0 else 0.0
        return max(counting, between)


def score_interval(share, n, quantile: float) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's score interval (E. B. Wilson, JASA 22, 1927), elementwise.

    Args:
        share: (K,) or a number, 0..1.
        n: observations behind it, above 0; need not be whole.
        quantile: of the standard normal or Student's t distribution, two-sided.
    """
    square = quantile * quantile / n
    middle = (share + square / 2) / (1 + square)
    half = np.sqrt(square * share * (1 - share) + square * square / 4) / (1 + square)
    return np.maximum(0.0, middle - half), np.minimum(1.0, middle + half)


def wilson(successes: float, n: float, confidence: float) -> tuple[float, float]:
    """`score_interval` of n independent outcomes.

    Returns:
        (low, high); (0, 1) where nothing was counted.
    """
    if n == 0:
        return 0.0, 1.0
    low, high = score_interval(successes / n, n, NormalDist().inv_cdf((1 + confidence) / 2))
    return float(low), float(high)


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


@dataclass(frozen=True)
class PositionBias:
    """Whether a model prefers a place among the options.

    Attributes:
        accuracy: per position, the share of right answers where the right option stands there.
        chosen: per position, the share of answers that name it.
        excess: per position, by how much it is named more often than it is right; without bias, around zero.
        total: half the sum of the absolute excesses: the share of answers that would have to move.
    """

    accuracy: tuple[Estimate, ...]
    chosen: tuple[Estimate, ...]
    excess: tuple[Estimate, ...]
    total: float


def position_bias(bootstrap: ClipBootstrap, chosen: np.ndarray, truth: np.ndarray, positions: int = 4) -> PositionBias:
    """Accuracy and share of answers by position.

    Args:
        bootstrap: over the clips of the n answers; where questions were asked in several rotations, each is a row.
        chosen: (n,) position that the model named; -1 where it named none.
        truth: (n,) position of the right option.
        positions: how many there are.
    """
    places, right = range(positions), (chosen == truth).astype(float)
    excess = tuple(bootstrap.difference(chosen == place, truth == place) for place in places)
    return PositionBias(
        tuple(bootstrap.share(right, truth == place) for place in places),
        tuple(bootstrap.share((chosen == place).astype(float)) for place in places),
        excess,
        round(sum(abs(part.value) for part in excess) / 2, DECIMALS),
    )


@dataclass(frozen=True)
class Rotations:
    """What a model makes of the same questions with their options moved round.

    Attributes:
        accuracy: mean over rotations.
        always_right: share of questions that are right in every rotation ("circular evaluation": Y. Liu et al.,
            MMBench, ECCV 2024).
        consistent: share of questions whose answer is the same option in every rotation, right or wrong.
        bias: over all rotations, in which each option stood in each place equally often: what is left is the model's.
    """

    accuracy: Estimate
    always_right: Estimate
    consistent: Estimate
    bias: PositionBias


def rotations(
    chosen: np.ndarray, truth: np.ndarray, clips: Sequence[str], resamples: int, confidence: float, seed: int
) -> Rotations:
    """Compare the answers to R rotations of R options; in rotation r, option i stands at position (i + r) mod R.

    Args:
        chosen: (n, R) position that the model named in each rotation; -1 where it named none, which is wrong.
        truth: (n,) position of the right option in rotation 0.
        clips: (n,) clip of each question.
        resamples: as `ClipBootstrap`.
        confidence: as `ClipBootstrap`.
        seed: as `ClipBootstrap`.

    Raises:
        ValueError: the columns are not one per option.
    """
    chosen, truth = np.asarray(chosen, int), np.asarray(truth, int)
    count = chosen.shape[1]
    if chosen.min(initial=0) < -1 or truth.min(initial=0) < 0 or max(chosen.max(initial=0), truth.max()) >= count:
        raise ValueError(f"{count} rotations but a position outside 0 to {count - 1}: ask as many rotations as options")
    option = np.where(chosen < 0, -1, (chosen - np.arange(count)) % count)
    right = option == truth[:, None]
    single = ClipBootstrap(np.asarray(clips), resamples, confidence, seed)
    repeated = ClipBootstrap(np.repeat(clips, count), resamples, confidence, seed)
    moved = (truth[:, None] + np.arange(count)) % count
    return Rotations(
        repeated.share(right.ravel().astype(float)),
        single.share(right.all(1).astype(float)),
        single.share(((option == option[:, :1]) & (option >= 0)).all(1).astype(float)),
        position_bias(repeated, chosen.ravel(), moved.ravel(), count),
    )
