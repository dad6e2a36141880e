import numpy as np
import pytest
from scipy.stats import binomtest, t

from assets.benchmark.statistics import (
    ClipBootstrap,
    PairedDifference,
    calibration,
    mcnemar,
    position_bias,
    rotations,
    wilson,
)


def draw_clustered(generator, clips, questions, accuracy, spread):
    """Outcomes of questions whose clips differ in difficulty (a beta distribution around the accuracy)."""
    difficulty = generator.beta(accuracy * spread, (1 - accuracy) * spread, clips)
    names = np.repeat([f"clip {i}" for i in range(clips)], questions)
    return names, (generator.random(clips * questions) < np.repeat(difficulty, questions)).astype(int)


@pytest.mark.parametrize(("clips", "accuracy"), [(3, 0.4), (4, 0.5), (8, 0.6), (30, 0.4), (120, 0.8)])
def test_intervals_cover_the_truth_as_often_as_they_say(clips, accuracy):
    generator = np.random.default_rng(7)
    covered, covered_counting_questions, trials = 0, 0, 400
    for trial in range(trials):
        names, outcomes = draw_clustered(generator, clips, 12, accuracy, spread=3)
        estimate = ClipBootstrap(names, 400, 0.95, trial).share(outcomes)
        covered += estimate.low <= accuracy <= estimate.high
        low, high = wilson(outcomes.sum(), len(outcomes), 0.95)
        covered_counting_questions += low <= accuracy <= high
    assert 0.92 <= covered / trials <= 0.99
    assert covered_counting_questions / trials < 0.85


@pytest.mark.parametrize("clips", [1, 3, 6])
def test_a_guesser_is_seldom_told_from_chance(clips):
    generator = np.random.default_rng(11)
    names = np.repeat([f"clip {i}" for i in range(clips)], 240 // clips)
    told = 0
    for trial in range(300):
        estimate = ClipBootstrap(names, 200, 0.95, trial).share((generator.random(len(names)) < 0.25).astype(int))
        told += not estimate.low <= 0.25 <= estimate.high
    assert told / 300 <= 0.07


def test_value_counts_and_method():
    names = np.array(["a"] * 4 + ["b"] * 4 + ["c"] * 2)
    outcomes = np.array([1, 1, 1, 0, 0, 0, 1, 0, 1, 1])
    estimate = ClipBootstrap(names, 500, 0.95, 0).share(outcomes)
    assert (estimate.value, estimate.n, estimate.clips, estimate.method) == (0.6, 10, 3, "cluster robust")
    # Clip means 3/4, 1/4, 1 weighed 0.4, 0.4, 0.2: influences 0.06, -0.14, 0.08; 1 / 0.36 clips of equal weight.
    variance = 0.06**2 / 0.6 + 0.14**2 / 0.6 + 0.08**2 / 0.8
    effective, square = 0.24 / variance, t.ppf(0.975, 1 / 0.36 - 1) ** 2
    middle = (0.6 + square / (2 * effective)) / (1 + square / effective)
    half = np.sqrt(square * 0.24 / effective + (square / (2 * effective)) ** 2) / (1 + square / effective)
    assert (estimate.low, estimate.high) == (pytest.approx(middle - half, abs=1e-6), pytest.approx(middle + half))


def test_with_enough_clips_they_are_drawn():
    generator = np.random.default_rng(4)
    names, outcomes = draw_clustered(generator, 120, 4, 0.5, 2)
    estimate = ClipBootstrap(names, 4000, 0.95, 0).share(outcomes)
    error = outcomes.reshape(120, 4).mean(1).std(ddof=1) / np.sqrt(120)
    assert estimate.method == "cluster bootstrap"
    assert estimate.high - estimate.low == pytest.approx(2 * t.ppf(0.975, 119) * error, rel=0.1)


def test_the_two_intervals_meet_where_one_takes_over():
    generator = np.random.default_rng(8)
    names, outcomes = draw_clustered(generator, 100, 4, 0.6, 2)
    drawn = ClipBootstrap(names, 4000, 0.95, 0).share(outcomes)
    robust = ClipBootstrap(names, 4000, 0.95, 0).share(outcomes, names != "clip 0")
    assert (drawn.method, robust.method) == ("cluster bootstrap", "cluster robust")
    assert (drawn.low, drawn.high) == pytest.approx((robust.low, robust.high), abs=0.01)


def test_clips_that_look_alike_do_not_narrow_the_interval():
    names = np.repeat([f"clip {i}" for i in range(8)], 10)
    outcomes = np.tile([1, 0, 0, 1, 0, 1, 0, 0, 1, 0], 8)
    outcomes[0] = 0
    estimate = ClipBootstrap(names, 300, 0.95, 0).share(outcomes)
    low, high = wilson(2 * outcomes.sum(), 2 * 80, 0.95)
    assert estimate.low <= round(low, 6) and estimate.high >= round(high, 6)


def test_neither_the_order_of_the_rows_nor_the_run_changes_the_interval():
    generator = np.random.default_rng(1)
    names, outcomes = draw_clustered(generator, 120, 5, 0.5, 3)
    order = generator.permutation(len(names))
    first = ClipBootstrap(names, 300, 0.95, 3).share(outcomes)
    assert ClipBootstrap(names[order], 300, 0.95, 3).share(outcomes[order]) == first
    assert ClipBootstrap(names, 300, 0.95, 4).share(outcomes) != first


@pytest.mark.parametrize(
    ("names", "outcomes", "times"),
    [(["a"] * 8, [1, 0, 0, 1, 1, 0, 1, 1], 1), (["a"] * 4 + ["b"] * 4, [1, 0, 0, 0] * 2, 2)],
    ids=["one clip", "all clips alike"],
)
def test_wilson_where_clips_cannot_tell(names, outcomes, times):
    estimate = ClipBootstrap(np.array(names), 200, 0.95, 0).share(np.array(outcomes))
    reference = binomtest(times * sum(outcomes), times * len(outcomes)).proportion_ci(0.95, method="wilson")
    assert (estimate.low, estimate.high) == pytest.approx((reference.low, reference.high), abs=1e-6)


def test_clips_of_one_mind_count_once():
    """Thirty right answers in three clips are no better proof than three."""
    estimate = ClipBootstrap(np.repeat(["a", "b", "c"], 10), 200, 0.95, 0).share(np.ones(30))
    square = t.ppf(0.975, 2) ** 2
    assert (estimate.low, estimate.high) == (pytest.approx(1 / (1 + square / 3), abs=1e-6), 1)


def test_a_subset_counts_only_its_questions_and_clips():
    names = np.array(["a", "a", "b", "b", "c"])
    outcomes = np.array([1, 0, 1, 1, 0])
    estimate = ClipBootstrap(names, 300, 0.95, 0).share(outcomes, among=np.array([1, 1, 1, 0, 0], bool))
    assert (estimate.n, estimate.clips, estimate.value) == (3, 2, 0.666667)


def test_nothing_counted_is_not_a_figure():
    estimate = ClipBootstrap(np.array(["a", "b"]), 50, 0.95, 0).share(np.array([1, 0]), np.zeros(2, bool))
    assert np.isnan(estimate.value) and (estimate.low, estimate.high, estimate.n) == (0, 1, 0)


def test_macro_is_the_mean_of_the_groups():
    generator = np.random.default_rng(2)
    names, outcomes = draw_clustered(generator, 12, 6, 0.6, 3)
    groups = np.array(["x", "x", "x", "x", "x", "y"] * 12)
    macro = ClipBootstrap(names, 500, 0.95, 0).macro(outcomes, groups)
    expected = (outcomes[groups == "x"].mean() + outcomes[groups == "y"].mean()) / 2
    assert macro.value == pytest.approx(expected, abs=1e-6)
    assert macro.low < expected < macro.high


def test_a_paired_difference_is_surer_than_the_two_readers_alone():
    generator = np.random.default_rng(3)
    names, blind = draw_clustered(generator, 40, 8, 0.4, 2)
    seeing = np.where(generator.random(len(blind)) < 0.15, 1, blind)
    bootstrap = ClipBootstrap(names, 800, 0.95, 0)
    difference = bootstrap.difference(seeing, blind)
    widths = [bootstrap.share(outcomes) for outcomes in (seeing, blind)]
    assert difference.low > 0
    assert difference.high - difference.low < min(width.high - width.low for width in widths)


def test_a_difference_of_equal_readers_stays_around_zero():
    names = np.repeat([f"clip {i}" for i in range(10)], 2)
    first, second = np.array([1, 0] * 10), np.array([0, 1] * 10)
    estimate = ClipBootstrap(names, 100, 0.95, 0).difference(first, second)
    assert estimate.value == 0.0
    assert -1 <= estimate.low < 0 < estimate.high <= 1
    same = ClipBootstrap(names, 100, 0.95, 0).difference(first, first)
    assert same.value == 0 and -0.2 < same.low < 0 < same.high < 0.2


def test_a_paired_difference_on_known_counts():
    # 20 questions of 4 clips, 6 gained, 2 lost. Agresti and Min: sqrt(8 + 1 - 16 / 22) / 22.
    gain = np.array([1, 1, 1, 0, 0, 1, 1, 0, 0, 0, 1, 0, 0, 0, 0, -1, -1, 0, 0, 0])
    paired = PairedDifference.of(gain, np.repeat(range(4), 5))
    influence = (np.array([3, 2, 1, -2]) - 5 * 0.2) / 20
    assert paired.independent == pytest.approx(np.sqrt(9 - 16 / 22) / 22)
    assert paired.clustered == pytest.approx(np.sqrt(np.sum(influence**2) / 0.75))
    assert (paired.value, paired.freedom, paired.n, paired.clips) == (0.2, 3, 20, 4)
    half = t.ppf(0.975, 3) * paired.clustered
    assert paired.estimate(0.95).low == pytest.approx(0.2 - half, abs=1e-6)


def test_test_and_interval_of_a_difference_say_the_same():
    generator = np.random.default_rng(5)
    for _ in range(200):
        clip_of = np.sort(generator.integers(0, 8, 60))
        gain = generator.choice([-1, 0, 1], 60, p=[0.1, 0.6, 0.3])
        paired = PairedDifference.of(gain, clip_of)
        assert (paired.p_above() < 0.025) == (paired.estimate(0.95).low > 0)
        assert paired.p_above() + paired.p_below() >= 1


def test_one_clip_shows_no_difference():
    paired = PairedDifference.of(np.ones(50), np.zeros(50, int))
    assert (paired.p_above(), paired.clustered) == (1.0, None)


def test_mcnemar_on_known_counts():
    first = np.array([1] * 9 + [0] * 1 + [1] * 5, bool)
    second = np.array([0] * 9 + [1] * 1 + [1] * 5, bool)
    assert mcnemar(first, second) == pytest.approx(2 * (1 + 10) / 2**10)
    assert mcnemar(first, first) == 1.0


def test_calibration_of_known_answers():
    probabilities = np.array([[0.9, 0.1, 0, 0]] * 10 + [[0.3, 0.25, 0.25, 0.2]] * 10)
    truth = np.array([0] * 9 + [1] + [0] * 3 + [1] * 7)
    result = calibration(probabilities, truth, 10)
    assert result.error == 0
    assert result.n.tolist() == [10, 10]
    assert result.accuracy.tolist() == [0.3, 0.9]
    certain = calibration(np.array([[1.0, 0, 0, 0]] * 4), np.array([0, 1, 1, 1]), 10)
    assert (certain.error, certain.brier, certain.high.tolist()) == (0.75, 1.5, [1.0])


def test_a_model_that_likes_a_place_is_found_out():
    generator = np.random.default_rng(6)
    names = np.repeat([f"clip {i}" for i in range(60)], 4)
    truth = np.tile(range(4), 60)
    chosen = np.where(generator.random(240) < 0.4, 0, truth)
    bias = position_bias(ClipBootstrap(names, 300, 0.95, 0), chosen, truth)
    assert bias.accuracy[0].value == 1.0 and bias.accuracy[1].value < 0.75
    assert bias.excess[0].low > 0.2 and bias.excess[3].high < 0
    assert bias.total == pytest.approx(np.mean(chosen == 0) - 0.25, abs=1e-6)
    fair = position_bias(ClipBootstrap(names, 300, 0.95, 0), truth, truth)
    assert fair.total == 0 and all(part.low <= 0 <= part.high for part in fair.excess)


def test_rotated_options_part_knowledge_from_habit():
    truth = np.tile(range(4), 20)
    clips = np.repeat([f"clip {i}" for i in range(20)], 4)
    knowing = (truth[:, None] + np.arange(4)) % 4
    habit = np.zeros((80, 4), int)
    mixed = np.where(np.arange(80)[:, None] < 40, knowing, habit)
    known, always_first, half = (rotations(chosen, truth, clips, 300, 0.95, 0) for chosen in (knowing, habit, mixed))
    assert (known.accuracy.value, known.always_right.value, known.consistent.value, known.bias.total) == (1, 1, 1, 0)
    assert (always_first.accuracy.value, always_first.always_right.value, always_first.consistent.value) == (0.25, 0, 0)
    assert always_first.bias.total == 0.75
    assert (half.accuracy.value, half.always_right.value, half.accuracy.n) == (0.625, 0.5, 320)
    silent = rotations(np.full((80, 4), -1), truth, clips, 300, 0.95, 0)
    assert (silent.accuracy.value, silent.always_right.value, silent.consistent.value) == (0, 0, 0)
    assert [part.value for part in silent.bias.chosen] == [0] * 4
    with pytest.raises(ValueError, match="as many rotations as options"):
        rotations(knowing[:, :3], truth, clips, 300, 0.95, 0)
