import dataclasses
import re

import pytest
import yaml

from models.parameters import TrainingParameters
from orchestration.parameters import Parameters, ParametersError, choose, load, profiles
from tests.conftest import ROOT

PARAMS = ROOT / "params.yaml"


@pytest.fixture(params=profiles(PARAMS))
def chosen(request, tmp_path):
    """The parameters of each profile in turn."""
    path = tmp_path / "params.yaml"
    path.write_text(PARAMS.read_text())
    choose(path, request.param)
    return load(path)


def test_there_are_profiles_from_a_laptop_to_the_published_recipe():
    assert set(profiles(PARAMS)) == {"laptop", "gpu", "paper", "paper-fast"}


def test_every_profile_loads_and_the_trainer_reads_it_as_it_is(chosen):
    assert isinstance(chosen, Parameters)
    assert TrainingParameters.from_mapping(chosen.checkpoint.to_mapping()) == chosen.checkpoint


def test_a_profile_makes_the_records_that_its_model_reads(chosen):
    """Cells and tokens differ in their channels; a pool that holds both is of no use to one geometry module."""
    network, module = chosen.geometry.foundation, chosen.checkpoint.geometry
    makers = {"foundation"} if module.prior == "tokens" else {"rendered", "annotated", "foundation", "classical"}
    assert set(chosen.geometry.estimators) <= makers
    if network.given:
        assert (network.prior == "cells") == (module.prior == "cells")


def names_of(values, path=""):
    """Dotted names of all that a nested mapping holds."""
    for name, value in values.items():
        yield f"{path}{name}"
        if isinstance(value, dict):
            yield from names_of(value, f"{path}{name}.")


def test_the_laptop_profile_spells_out_every_parameter():
    document = yaml.safe_load(PARAMS.read_text())
    known = Parameters.model_validate(document["laptop"]).model_dump(mode="json")
    assert set(names_of(document["laptop"])) == set(names_of(known))


def descriptions_of(parameters):
    """What is said of each parameter of the training."""
    for entry in dataclasses.fields(parameters):
        value = getattr(parameters, entry.name)
        if dataclasses.is_dataclass(value):
            yield from descriptions_of(value)
        else:
            yield entry.metadata["description"]


def test_the_laptop_profile_says_what_each_parameter_of_the_training_does():
    section = PARAMS.read_text().split("checkpoint: &laptop_checkpoint")[1].split("# The benchmark report.")[0]
    comments = " ".join(line.partition("# ")[2] for line in section.splitlines())
    assert [said for said in descriptions_of(TrainingParameters()) if said not in comments] == []


def test_choosing_a_profile_keeps_the_comments(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(PARAMS.read_text())
    other = next(name for name in profiles(path) if name != "laptop")
    choose(path, other)
    changed = [line for line in path.read_text().splitlines() if line not in PARAMS.read_text().splitlines()]
    assert changed == [f"profile: {other}"]


@pytest.mark.parametrize(
    ("section", "key", "value", "says"),
    [
        ("videos", "framse", 32, r"unknown key laptop\.videos\.framse"),
        ("videos", "frames", "many", r"laptop\.videos\.frames: 'many'"),
        ("checkpoint", "stepps", 3, "stepps"),
        ("checkpoint", "steps", "three", "steps"),
        ("checkpoint", "videos_rate", 3.5, r"laptop\.checkpoint: videos_rate = 3\.5: must be at most 1; correct"),
        ("splits", "train", 2.0, "train"),
    ],
)
def test_a_wrong_parameter_is_one_line_with_file_value_and_remedy(tmp_path, section, key, value, says):
    document = yaml.safe_load(PARAMS.read_text())
    document["laptop"][section][key] = value
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(document))
    with pytest.raises(ParametersError) as caught:
        load(path)
    message = str(caught.value)
    assert str(path) in message
    assert re.search(says, message)
    assert "\n" not in message and len(message) < len(str(path)) + 300


def test_an_unknown_profile_names_the_known_ones(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(PARAMS.read_text())
    with pytest.raises(ParametersError, match="laptop"):
        choose(path, "no-such-profile")
