from hypothesis import given
from hypothesis import strategies as st

from assets.questions.wording import CAMERA, answer_text, boxed_name, clean_names, pointing_names, question_text


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


def test_names_point_with_their_marks():
    assert pointing_names(["red robot", "car 1", "car 2", "dog 1"], [0, 2, 1, 0], 48) == [
        "red robot",
        "car marked 2",
        "car marked 1",
        "dog",
    ]


@given(st.lists(st.text(max_size=80), max_size=6), st.integers(8, 60))
def test_what_points_is_printable_bounded_and_unique(names, length):
    said = pointing_names(names, [0] * len(names), length)
    assert len({name.casefold() for name in said} | {CAMERA}) == len(names) + 1
    for name in said:
        assert name and name.isprintable() and len(name) <= length + 4
        assert not set(name) & set("<>|{}[],;:?!\n\t")


def test_boxes_stand_in_the_text_as_in_the_paper():
    assert boxed_name("car 2", [1.0, 2.0, 30.0, 40.0], "initial", 48) == (
        "car with initial bounding box coordinates [1,2,30,40]"
    )
    assert boxed_name("[<dog>, 1]", [1, 2, 3, 4], "", 48) == "dog with bounding box coordinates [1,2,3,4]"
