import pytest

from validations.leakage import Leak, find_leaks, repeated_share


def test_separate_splits_do_not_leak(questions):
    assert find_leaks(questions) == []


@pytest.mark.parametrize(
    ("column", "kind"),
    [("clip", "clip"), ("videoID", "source video"), ("quad", "quad"), ("qa_id", "question")],
)
def test_each_crossing_is_named(questions, column, kind):
    questions.loc[questions.index[-1], column] = questions.loc[0, column]
    assert find_leaks(questions) == [Leak(kind, questions.loc[0, column], ("bench", "train"))]
    assert str(find_leaks(questions)[0]).endswith("lies in bench and train")


def test_two_clips_of_the_same_footage_must_lie_on_one_side(questions):
    train, bench = (questions.loc[questions["split"] == split, "clip"].unique() for split in ("train", "bench"))
    assert find_leaks(questions, {train[1]: train[0]}) == []
    assert find_leaks(questions, {bench[0]: train[0]}) == [Leak("footage", train[0], ("bench", "train"))]


def test_bench_questions_copied_from_train_are_counted(questions):
    train, bench = (questions[questions["split"] == split].copy() for split in ("train", "bench"))
    assert repeated_share(train, bench) == 0.0
    bench["question"] = train["question"].to_numpy()
    assert repeated_share(train, bench) == 1.0


def test_a_repeated_text_with_another_truth_is_not_memorable(questions):
    train, bench = (questions[questions["split"] == split].copy() for split in ("train", "bench"))
    bench["question"] = train["question"].to_numpy()
    bench["answer"] = bench["answer"].map({"A": "B", "B": "C", "C": "D", "D": "A"})
    assert repeated_share(train, bench) == 0.0


def test_shuffled_options_are_the_same_question(questions):
    train, bench = (questions[questions["split"] == split].copy() for split in ("train", "bench"))
    bench["question"] = train["question"].to_numpy()
    bench["options"] = bench["options"].map(lambda options: options[::-1])
    bench["answer"] = bench["answer"].map({"A": "D", "B": "C", "C": "B", "D": "A"})
    assert repeated_share(train, bench) == 1.0


def test_an_empty_bench_repeats_nothing(questions):
    assert repeated_share(questions, questions.iloc[:0]) == 0.0
