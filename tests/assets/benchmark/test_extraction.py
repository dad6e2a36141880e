"""What counts as a reply's answer; each case is a way in which models write, none is taken from published replies."""

import time

import pytest

from assets.benchmark.extraction import LONGEST_REPLY, extract_letter, extract_number

WAYS = ("left", "right", "not moving", "no car there")
COUNTS = ("2", "3", "0", "1")


@pytest.mark.parametrize(
    ("reply", "letter", "rule"),
    [
        ("B", "B", "whole"),
        ("(b).", "B", "whole"),
        ("**Option C**", "C", "whole"),
        ("The truck goes on.\n\nB", "B", "whole"),
        ("Answer: **B. right**", "B", "announced"),
        ("The correct answer is **(C)**.", "C", "announced"),
        ("First it seems the answer is A. On a closer look, the final answer is: D", "D", "announced"),
        ("Answer: C\n\nExplanation: the answer is not A because nothing moves to the left.", "C", "announced"),
        (r"Therefore the final answer is $\boxed{\text{A}}$. I hope it is correct.", "A", "announced"),
        ("<think>So the answer is A.</think>\n<answer>C</answer>", "C", "announced"),
        ("<|begin_of_box|>D<|end_of_box|>", "D", "announced"),
        ('{"answer": "B"}', "B", "whole"),
        ("答案是B。", "B", "announced"),
        ("The final answer is: 'A'.", "A", "announced"),
        ("The answer is A, left.", "A", "announced"),
        ("The answer is right, so I pick it.", "B", "announced"),
        ("The final answer is: A vehicle drives to the right.", "B", "announced"),
        ("The final answer is: not moving (C).", "C", "announced"),
        ("B) right", "B", "labelled"),
        ("D. It drives to the right at last.", "D", "labelled"),
        ("Note: some frames are dark.\nB: right", "B", "labelled"),
        ("A: left", "A", "labelled"),
        ("Looking at it, I would choose option D.", "D", "chosen"),
        ("It stays at one place, so C", "C", "chosen"),
        ("A. left - wrong\nB. right - it is\nC. not moving - wrong\n\nSo it is B.", "B", "chosen"),
        ("A car drives from the left to the right.", "B", "concluded"),
        ("It takes a left turn.", "A", "concluded"),
        ("The car isn't moving towards any side.", "C", "concluded"),
        ("The car is not moving to the left. It goes right.", "B", "concluded"),
        ("I don't see any car in these frames.", "D", "concluded"),
        ("To answer this, I watch the left side first. The car then drives to the right.", "B", "concluded"),
    ],
)
def test_an_answer_is_read(reply, letter, rule):
    found = extract_letter(reply, WAYS)
    assert (found.answer, found.rule) == (letter, rule)


@pytest.mark.parametrize(
    ("reply", "rule"),
    [
        ("Therefore, the final answer is: $LETTER", "placeholder"),
        ("The answer is (A) or (B).", "several"),
        ("Final answer: A, B, C, or D", "several"),
        ("The frames are too dark. I cannot answer this.", "refused"),
        ("The final answer is: N/A", "refused"),
        ("First the car is on the left side. Then it seems to", "broken off"),
        ("A: left\nB: right\nC: not moving\nD: no car there", "broken off"),
        ("<think>It could be B", "nothing"),
        ("E", "nothing"),
        ("It turns left or right.", "nothing"),
        ("Nice weather.", "nothing"),
        ("", "nothing"),
    ],
)
def test_no_answer_is_made_up(reply, rule):
    found = extract_letter(reply, WAYS)
    assert (found.answer, found.rule) == (None, rule)


def test_a_letter_counts_before_the_words_beside_it():
    assert extract_letter("The final answer is: A) not moving.", WAYS).answer == "A"


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("In the video, there are three cars.", "B"),
        ("Image 3 shows it best: there is one car.", "D"),
        ("Answer: 0", "C"),
    ],
)
def test_counts_are_read_in_words_and_digits(reply, letter):
    assert extract_letter(reply, COUNTS).answer == letter


def test_the_longest_option_that_a_sentence_names_is_meant():
    options = ("left", "left and towards the camera", "counter-clockwise", "clockwise")
    assert extract_letter("It goes left and towards the camera.", options).answer == "B"
    assert extract_letter("It turns counterclockwise.", options).answer == "C"
    assert extract_letter("It turns clockwise.", options).answer == "D"
    assert extract_letter("It turns in an anti-clockwise way.", options).answer == "C"


def test_as_many_options_as_there_are_letters():
    options = [f"number {number}" for number in range(26)]
    assert extract_letter("Answer: Z", options).answer == "Z"
    assert extract_letter("Answer: C", options[:2]).answer is None
    for count in (0, 27):
        with pytest.raises(ValueError, match=f"{count} options; give 1 to 26"):
            extract_letter("A", ["x"] * count)


@pytest.mark.parametrize(
    ("reply", "number", "rule"),
    [
        ("3.5", "3.5", "whole"),
        ("1,200", "1200", "whole"),
        ("-2", "-2", "whole"),
        ("about 3.5 meters (11.5 feet)", "3.5", "last"),
        ("I count 2 chairs in frame 1 and 3 later, so the answer is 5 chairs in 8 frames.", "5", "announced"),
        (r"\boxed{12.5}", "12.5", "announced"),
        ("Some 24 m^2.", "24", "last"),
        ("two", "2", "last"),
        ("I cannot tell.", None, "refused"),
        ("many", None, "nothing"),
    ],
)
def test_numbers(reply, number, rule):
    found = extract_number(reply)
    assert (found.answer, found.rule) == (number, rule)
    assert number is None or float(number) == pytest.approx(float(number))


@pytest.mark.parametrize(
    "reply",
    [
        "(" * 99_999,
        "answer is " * 9_999,
        r"\boxed{" * 9_999,
        "A or " * 9_999,
        "\N{ARABIC LIGATURE SALLALLAHOU ALAYHE WASALLAM}" * 9_999,
        "1," * 9_999,
    ],
)
def test_hostile_replies_cost_little(reply):
    start = time.process_time()
    extract_letter(reply, WAYS)
    extract_number(reply)
    assert time.process_time() - start < 2


def test_only_the_end_of_an_endless_reply_is_read():
    assert extract_letter("The answer is A. " + " " * LONGEST_REPLY + "The answer is B.", WAYS).answer == "B"


def test_options_are_no_patterns():
    assert extract_letter("B: (a+)+$ fits", ["[", "(a+)+$"]).answer == "B"
