import numpy as np
import pytest

from benchmarks.evaluation.statistics import Duel, clip_sizes, coverage, difficulties, figures


def test_figures_hold_their_bounds_and_repeat_themselves():
    first, again = figures(400, 100), figures(400, 100)
    assert {name: figure.value for name, figure in first.items()} == {
        name: figure.value for name, figure in again.items()
    }
    assert {"interval_coverage", "false_promotions", "promotion_power"} <= set(first)
    assert not first["interval_coverage"].missed and not first["false_promotions"].missed
    assert first["promotion_power"].value > 0.5


def test_simulated_benches_have_the_truth_that_is_asked_for():
    generator = np.random.default_rng(0)
    sizes = clip_sizes(1484, 571, generator)
    assert (sizes.sum(), len(sizes), sizes.min()) == (1484, 571, 1) and sizes.max() > 5
    chances = difficulties(0.6, 0.3, (200_000,), generator)
    assert chances.mean() == pytest.approx(0.6, abs=0.005)
    assert chances.var() == pytest.approx(0.3 * 0.6 * 0.4, rel=0.02)
    clip_of = np.repeat(np.arange(4000), 3)
    challenger, champion = Duel((12000, 4000), 0.55, 0.05).draw(clip_of, generator)
    assert champion.right.mean() == pytest.approx(0.55, abs=0.02)
    assert challenger.right.mean() - champion.right.mean() == pytest.approx(0.05, abs=0.02)


def test_an_interval_for_independent_questions_would_be_found_out(monkeypatch):
    """Had the project's interval not known of clips, the figure would show it."""
    from assets.benchmark.statistics import ClipBootstrap, score_interval

    def naive(self, totals, counts):
        value = totals.sum(0) / counts.sum()
        return value, *score_interval(value, counts.sum(), 1.96)

    monkeypatch.setattr(ClipBootstrap, "share_intervals", naive)
    assert coverage((1484, 571), 0.6, 0.3, 500, np.random.default_rng(0)) < 0.85
