import dataclasses
import json

import pytest

from models.parameters import GuidanceParameters, LoraParameters, ParameterError, TrainingParameters

SILENT = dict.fromkeys((entry.name for entry in dataclasses.fields(GuidanceParameters)), 0.0)


def test_mapping_and_object_are_each_others_inverse():
    given = TrainingParameters(steps=3, base="somewhere", lora=LoraParameters(targets=("q_proj",)), compile=True)
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
        ({"steps": 0, "reading_steps": 0, "naming_steps": 0, "grounding_steps": 0}, "nothing would be trained"),
        ({"learning_rates": {"language": 0}, "reading_steps": 0, "lora": {"rank": 4}}, "adapters of lora"),
        ({"lora": {"targets": "q_proj"}}, "lora.targets = 'q_proj': expected a list of names"),
        ({"grounding_steps": 5, "geometry": {"variant": "none"}}, "no geometry module is trained"),
        ({"grounding_steps": 0, "geometry": {"variant": "none"}}, "naming_steps, grounding_steps: no geometry module"),
        ({"grounding_steps": 5, "learning_rates": {"geometry": 0}}, "no geometry module is trained"),
        ({"revision": "main"}, "has no meaning without base"),
        ({"keep": "best"}, "needs evaluate_every"),
        ({"accumulate": 2, "devices": 4}, "clips_per_batch = 4: is less than"),
        ({"compile": 1}, "compile = 1: expected bool"),
        ({"strategy": "deepspeed"}, "choose one of auto, ddp, fsdp"),
        ({"grounding_steps": 5, "guidance": SILENT}, "all weights of guidance are 0"),
        ({"naming_steps": 5, "grounding_steps": 0, "guidance": SILENT}, "all weights of guidance are 0"),
        ({"strategy": "fsdp"}, "is not for models in shards"),
        ({"geometry": {"prior": "tokens"}}, "guidance: reads geometric cells"),
        ({"guidance": {"cells": -1}}, "cells = -1.0: must be at least 0"),
        ({"guidance": {"gaze": 1}}, "guidance.gaze: no such parameter"),
        ({"videos_rate": 1.5}, "videos_rate = 1.5: must be at most 1"),
        ({"reading_questions": 0}, "reading_questions = 0: must be at least 1"),
        ({"geometry": {"context": 0}}, "context = 0: must be at least 1"),
    ],
)
def test_bad_values_are_named(mapping, said):
    with pytest.raises(ParameterError, match=said):
        TrainingParameters.from_mapping(mapping)


def test_pydantic_checks_the_same_class():
    pydantic = pytest.importorskip("pydantic")
    adapter = pydantic.TypeAdapter(TrainingParameters)
    assert adapter.validate_python({"steps": 7, "tiny": {"layers": 1}}).tiny.layers == 1
    assert adapter.validate_python({"lora": {"targets": ["q_proj"]}}).lora.targets == ("q_proj",)
    with pytest.raises(pydantic.ValidationError):
        adapter.validate_python({"stepz": 7})
    with pytest.raises(pydantic.ValidationError):
        adapter.validate_python({"tiny": {"layer": 7}})


def test_every_parameter_is_described():
    plain = [f.name for f in dataclasses.fields(TrainingParameters) if not f.metadata.get("description")]
    assert plain == ["tiny", "geometry", "lora", "learning_rates", "guidance"]
