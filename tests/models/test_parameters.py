import json

import pytest

from models.parameters import ParameterError, TrainingParameters


def test_mapping_and_object_are_each_others_inverse():
    given = TrainingParameters(steps=3, base="somewhere")
    assert TrainingParameters.from_mapping(json.loads(json.dumps(given.to_mapping()))) == given


@pytest.mark.parametrize(
    ("mapping", "said"),
    [
        ({"stepz": 1}, "stepz: no such parameter"),
        ({"tiny": {"hidden": 1}}, "tiny.hidden: no such parameter"),
        ({"steps": "3"}, "steps = '3': expected int"),
        ({"steps": True}, "steps = True"),
        ({"steps": -1}, "must be at least 0"),
        ({"warmup_share": 1.5}, "must be at most 1"),
        ({"precision": "16"}, "choose one of"),
        ({"base": 3}, "expected str or nothing"),
        ({"tiny": 3}, "expected names with values"),
        ({"learning_rates": {"language": 0}}, "the reading stage trains the language model"),
        ({"steps": 0, "reading_steps": 0}, "nothing would be trained"),
    ],
)
def test_bad_values_are_named(mapping, said):
    with pytest.raises(ParameterError, match=said):
        TrainingParameters.from_mapping(mapping)


def test_pydantic_checks_the_same_class():
    pydantic = pytest.importorskip("pydantic")
    adapter = pydantic.TypeAdapter(TrainingParameters)
    assert adapter.validate_python({"steps": 7, "tiny": {"layers": 1}}).tiny.layers == 1
    with pytest.raises(pydantic.ValidationError):
        adapter.validate_python({"stepz": 7})
    with pytest.raises(pydantic.ValidationError):
        adapter.validate_python({"tiny": {"layer": 7}})


def test_every_parameter_is_described():
    import dataclasses

    plain = [f.name for f in dataclasses.fields(TrainingParameters) if not f.metadata.get("description")]
    assert plain == ["tiny", "geometry", "learning_rates"]
