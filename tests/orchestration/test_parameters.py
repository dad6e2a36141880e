import re

import pytest
import yaml

from orchestration.parameters import Parameters, ParametersError, choose, load, profiles
from tests.conftest import ROOT

PARAMS = ROOT / "params.yaml"


@pytest.mark.parametrize("profile", profiles(PARAMS))
def test_every_profile_loads(profile, tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(PARAMS.read_text())
    choose(path, profile)
    assert isinstance(load(path), Parameters)


def test_the_laptop_profile_spells_out_every_parameter():
    written = yaml.safe_load(PARAMS.read_text())["laptop"]
    assert load(PARAMS).model_dump(mode="json").keys() == written.keys()
    for section, values in load(PARAMS).model_dump(mode="json").items():
        assert values.keys() == written[section].keys(), section


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
    assert "\n" not in message


def test_an_unknown_profile_names_the_known_ones(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(PARAMS.read_text())
    with pytest.raises(ParametersError, match="laptop"):
        choose(path, "no-such-profile")
