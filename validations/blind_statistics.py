"""How sure an accuracy is when questions are not independent: clustered intervals, a one-sided test, Holm."""

from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Share:
    """A share of right answers: its 95 % interval, and the chance of so many if the true share were ``chance``."""

    n: int
    correct: int
    accuracy: float
    low: float
    high: float
    p_value: float


def wilson(correct: float, n: float, z: float = stats.norm.ppf(0.5 + CONFIDENCE / 2)) -> tuple[float, float]:
    """Wilson's interval of a share (Wilson 1927, JASA 22, 209-212), 95 % by default; (0, 1) where n is 0."""
    if n == 0:
        return 0.0, 1.0
    share = correct / n
    center = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return float(max(center - half, 0.0)), float(min(center + half, 1.0))


def clustered_share(right: np.ndarray, clusters: list[np.ndarray], chance: float) -> Share:
    """Share of right answers among questions that hang together.

    The variance of the mean is the largest of the cluster-robust variances by each clustering and, with two of them,
    of the two-way one (Cameron, Gelbach & Miller 2011, JBES 29, 238-249). Its ratio to the binomial variance, never
    below 1, divides the number of questions; interval (Wilson) and test (score) use that number and Student's t with
    as many degrees of freedom as the coarsest clustering has clusters, less one, as surveys do (Korn & Graubard 1998).

    Args:
        right: (n,) whether each answer is right.
        clusters: up to two columns (n,) of labels, such as the quad and the clip; none for independent questions.
        chance: share that the test holds against.

    Returns:
        The share; with fewer than two clusters nothing is known: interval (0, 1) and p-value 1.
    """
    n, share = len(right), float(np.mean(right)) if len(right) else 0.0
    codes = [np.unique(labels, return_inverse=True)[1] for labels in clusters] or [np.arange(n)]
    fewest = min((int(code.max()) + 1 for code in codes), default=0) if n else 0
    if fewest < 2:
        return Share(n, int(np.sum(right)), share, 0.0, 1.0, 1.0)
    effective = n / max(_design_effect(np.asarray(right, float) - share, codes), 1.0)
    low, high = wilson(share * effective, effective, stats.t.ppf(0.5 + CONFIDENCE / 2, fewest - 1))
    excess = (share - chance) / np.sqrt(chance * (1 - chance) / effective)
    return Share(n, int(np.sum(right)), share, low, high, float(stats.t.sf(excess, fewest - 1)))


def _design_effect(off: np.ndarray, codes: list[np.ndarray]) -> float:
    """How many times the variance of the mean exceeds that of independent answers; ``off`` (n,) is right less mean."""
    binomial = float(off @ off)
    if binomial == 0:
        # All right or all wrong: clusters of one mind count once.
        return len(off) / min(int(code.max()) + 1 for code in codes)
    ways = [_between(off, code) for code in codes]
    if len(codes) == 2:
        both = codes[0] * (int(codes[1].max()) + 1) + codes[1]
        ways.append(ways[0] + ways[1] - _between(off, np.unique(both, return_inverse=True)[1]))
    return max(ways) / binomial


def _between(off: np.ndarray, code: np.ndarray) -> float:
    """Sum over clusters of the squared sum within, corrected for few clusters."""
    sums = np.bincount(code, off)
    return float(sums @ sums) * len(sums) / (len(sums) - 1)


def holm(p_values: np.ndarray) -> np.ndarray:
    """Adjust p-values for testing all of them (Holm 1979, Scandinavian Journal of Statistics 6, 65-70)."""
    order = np.argsort(p_values, kind="stable")
    stepped = np.maximum.accumulate(p_values[order] * np.arange(len(p_values), 0, -1))
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted
