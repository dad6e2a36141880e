import hashlib
import json
import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import nn

from models.weights import WeightsError, load_into, locate, open_weights


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


@pytest.fixture
def original() -> nn.Module:
    torch.manual_seed(0)
    return network()


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return network()


def write_single(folder, module, name="model.safetensors"):
    folder.mkdir(parents=True, exist_ok=True)
    save_file(module.state_dict(), folder / name)
    return folder


def write_shards(folder, module, prefix="model"):
    """The hub's layout: first layer in one shard, second in another, and the index."""
    folder.mkdir(parents=True, exist_ok=True)
    mapping = {}
    for number in (0, 1):
        name = f"{prefix}-{number + 1:05}-of-00002.safetensors"
        part = {key: tensor for key, tensor in module.state_dict().items() if key.startswith(str(number))}
        save_file(part, folder / name)
        mapping.update(dict.fromkeys(part, name))
    index = {"metadata": {"total_size": 1}, "weight_map": mapping}
    (folder / f"{prefix}.safetensors.index.json").write_text(json.dumps(index))
    return folder


def write_torch(folder, module, zipped=True):
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(module.state_dict(), folder / "model.pth", _use_new_zipfile_serialization=zipped)
    return folder


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("write", [write_single, write_shards, write_torch, lambda f, m: write_torch(f, m, False)])
def test_every_form_loads_into_meta_and_into_place(tmp_path, original, write):
    weights = open_weights(str(write(tmp_path / "w", original)))
    lazy, filled = on_meta(), network()
    parameters = list(filled.parameters())
    load_into(lazy, weights)
    load_into(filled, weights)
    assert same(lazy, original) and same(filled, original)
    assert all(a is b for a, b in zip(parameters, filled.parameters(), strict=True))


def test_a_file_can_be_meant_itself(tmp_path, original):
    folder = write_single(write_torch(tmp_path / "w", network()), original)
    assert open_weights(str(folder)).files == (folder / "model.safetensors",)
    named = open_weights(str(folder / "model.pth"))
    assert named.folder == folder and named.files == (folder / "model.pth",)


def test_tensors_take_the_dtype_of_the_module(tmp_path, original):
    weights = open_weights(str(write_single(tmp_path / "w", original.to(torch.bfloat16))))
    loaded = on_meta()
    load_into(loaded, weights)
    assert {tensor.dtype for tensor in loaded.state_dict().values()} == {torch.float32}
    assert same(loaded, original.float())


def test_the_hash_is_of_bytes_not_of_names_places_or_times(tmp_path, original):
    single = write_single(tmp_path / "one", original)
    digest = open_weights(str(single)).sha256
    assert digest == hashlib.sha256((single / "model.safetensors").read_bytes()).hexdigest()
    shutil.copytree(single, tmp_path / "moved")
    os.utime(tmp_path / "moved" / "model.safetensors", (1, 1))
    assert open_weights(str(tmp_path / "moved")).sha256 == digest
    shards = open_weights(str(write_shards(tmp_path / "shards", original))).sha256
    assert open_weights(str(write_shards(tmp_path / "renamed", original, "other"))).sha256 == shards != digest
    with torch.no_grad():
        original[0].bias[0] += 1
    assert open_weights(str(write_shards(tmp_path / "changed", original))).sha256 != shards


def test_keys_can_be_renamed_and_parts_left_out(tmp_path, original):
    weights = open_weights(str(write_single(tmp_path / "w", nn.ModuleDict({"net": original}))))
    loaded = on_meta()
    load_into(loaded, weights, rename=lambda key: key.removeprefix("net."))
    assert same(loaded, original)
    first = nn.Sequential(nn.Linear(3, 4))
    load_into(first, weights, rename=lambda key: key.removeprefix("net."), strict=False)
    assert torch.equal(first[0].weight, original[0].weight)


def refused(message, location, module=None, **options):
    """Opening and loading says all of `message`, in one line."""
    with pytest.raises(WeightsError) as caught:
        load_into(on_meta() if module is None else module, open_weights(str(location)), **options)
    said = str(caught.value)
    assert "\n" not in said and "; " in said and all(part in said for part in message), said


@pytest.mark.parametrize("keep", [0, 4, 8, 60, -1])
@pytest.mark.parametrize(("write", "name"), [(write_single, "model.safetensors"), (write_torch, "model.pth")])
def test_truncated_files_are_named(tmp_path, original, write, name, keep):
    path = write(tmp_path / "w", original) / name
    path.write_bytes(path.read_bytes()[:keep])
    refused([str(path), "download the weights again"], tmp_path / "w")


def test_shapes_and_keys_that_do_not_fit_are_named(tmp_path, original):
    path = write_single(tmp_path / "w", original) / "model.safetensors"
    refused([str(path), "not (5"], path, nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5)))
    refused([str(path), "not (5"], path, nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5)), strict=False)
    refused([str(path), "'1.", "not part of this model"], path, nn.Sequential(nn.Linear(3, 4)))
    refused([str(path), "'2.bias' is missing (2 in all)"], path, nn.Sequential(*network(), nn.Linear(2, 2)))
    refused([str(path), "is there twice"], path, rename=lambda key: key.replace("1.bias", "0.weight"), strict=False)


def test_a_doubled_tensor_is_named(tmp_path, original):
    folder = write_shards(tmp_path / "w", original)
    save_file(original.state_dict(), folder / "model-00002-of-00002.safetensors")
    refused([str(folder / "model-00002"), "is there twice"], folder)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (None, "shard 'model-00002-of-00002.safetensors' is missing"),
        ({"weight_map": {"a": "../secret.safetensors"}}, "'../secret.safetensors' is not the name of a shard"),
        ({"weight_map": {"a": "/etc/passwd"}}, "'/etc/passwd' is not the name of a shard"),
        ({"weight_map": {"a": "model.pth"}}, "'model.pth' is not the name of a shard"),
        ({"weight_map": {"a": "new\nline.safetensors"}}, r"shard 'new\nline.safetensors' is missing"),
        ({"weight_map": {"a": 3}}, "no weight_map"),
        ({"weight_map": {}}, "no weight_map"),
        ([], "holds a list"),
        ("{", "not readable as JSON"),
        ("[" * 100_000, "not readable as JSON"),
    ],
)
def test_indexes_that_lie_are_refused(tmp_path, original, index, message):
    folder = write_shards(tmp_path / "w", original)
    (folder / "model-00002-of-00002.safetensors").unlink()
    if index is not None:
        text = index if isinstance(index, str) else json.dumps(index)
        (folder / "model.safetensors.index.json").write_text(text)
    refused([str(folder), message], folder)


def test_folders_without_or_with_too_many_weights_are_refused(tmp_path, original):
    (tmp_path / "empty").mkdir()
    refused([str(tmp_path / "empty"), "no *.safetensors"], tmp_path / "empty")
    folder = write_single(write_single(tmp_path / "w", original), original, "other.safetensors")
    refused(["several weights", "model.safetensors", "other.safetensors"], folder)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_checkpoint_cannot_run_code(tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    (tmp_path / "model.pt").write_bytes(pickle.dumps({"0.weight": Hostile()}))
    refused([str(tmp_path / "model.pt"), "more than tensors"], tmp_path / "model.pt")
    assert not (tmp_path / "ran").exists()
    torch.save([torch.zeros(2)], tmp_path / "model.pt")
    refused([str(tmp_path / "model.pt"), "no state dict"], tmp_path / "model.pt")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("name", ["model.safetensors", "model.pth"])
def test_damaged_bytes_load_or_are_refused(tmp_path, original, name):
    write = write_single if name.endswith("safetensors") else write_torch
    path = write(tmp_path / "w", original) / name
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    generator = np.random.default_rng(0)
    outcomes = set()
    for _ in range(80):
        damaged = whole.copy()
        damaged[generator.integers(min(len(whole), 600), size=2)] = generator.integers(256, size=2)
        path.write_bytes(damaged.tobytes())
        try:
            load_into(on_meta(), open_weights(str(path)))
            outcomes.add("loaded")
        except WeightsError:
            outcomes.add("refused")
    assert "refused" in outcomes


@pytest.mark.parametrize("location", ["", "no/such/folder", "/no/such", "~nobody", "a" * 5000, "a\0b", "owner/../name"])
def test_locations_that_are_nothing_are_refused(location):
    with pytest.raises(WeightsError, match="no such folder"):
        locate(location)


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """The hub client's own cache, offline."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_a_hub_id_is_read_from_the_hub_clients_cache(hub_cache, original):
    commit = "0123456789" * 4
    repository = hub_cache / "models--owner--name"
    write_single(repository / "snapshots" / commit, original)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    for location in ("owner/name", "owner/name@main", f"owner/name@{commit}"):
        assert open_weights(location).folder == repository / "snapshots" / commit


@pytest.mark.parametrize("location", ["owner/unknown", "owner/unknown@v1", "own--er/bad..name"])
def test_a_hub_id_that_gives_nothing_is_refused_in_one_line(hub_cache, location):
    with pytest.raises(WeightsError) as caught:
        locate(location)
    assert location in str(caught.value) and "give its folder" in str(caught.value) and "\n" not in str(caught.value)
