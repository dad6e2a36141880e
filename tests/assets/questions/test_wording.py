from hypothesis import given
from hypothesis import strategies as st

from assets.questions.wording import CAMERA, answer_text, clean_names, question_text


def test_questions_read_as_in_the_paper():
    assert question_text("dis", "red robot", None, "blue crate", "camera", 3.0, 6.51) == (
        "Between 3.0s and 6.5s, following the perspective of red robot, "
        "how does the distance between blue crate and camera change?"
    )
    assert question_text("dir_pred", "camera", 2.04, "red robot", None, 3.0, 6.5) == (
        "From the perspective of camera at 2.0s, predict the moving direction of red robot."
    )
    assert question_text("spd_comp", "camera", 0.0, "a", "b", 1, 2).endswith("compare the speed between a and b.")


def test_answers_number_their_states():
    assert answer_text(["Front", "Front|Left"]) == "(1) Front. (2) Front|Left."


@given(st.lists(st.text(max_size=80), max_size=6), st.integers(8, 60))
def test_names_are_printable_bounded_and_unique(names, length):
    cleaned = clean_names(names, length)
    folded = [name.casefold() for name in cleaned]
    assert len(set(folded)) == len(names) and CAMERA not in folded
    for name in cleaned:
        assert name and name.isprintable() and len(name) <= length + 4
        assert not set(name) & set("<>|{}[]\n\t")


def test_good_names_stay():
    assert clean_names(["red robot", "blue crate"], 48) == ["red robot", "blue crate"]
