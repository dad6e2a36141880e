"""Qwen2.5-VL and Qwen3-VL with geometry after their vision tokens, and how they are loaded.

The classes are transformers' own with an `Attachment` in front of them.
"""

from __future__ import annotations

from pathlib import Path

import safetensors
import torch
from transformers import PreTrainedConfig, Qwen2_5_VLForConditionalGeneration, Qwen3VLForConditionalGeneration
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from models.attachment import GEOMETRY_PARTS, Attachment, accepts_geometry
from models.configuration import GeometricQwen3Config, GeometricQwenConfig
from models.parameters import ParameterError
from models.pixels import QWEN2_5_PATCHING, QWEN3_PATCHING
from models.published import is_published, load_published
from models.weights import read_json


class GeometricQwen(Attachment, Qwen2_5_VLForConditionalGeneration):
    """`Qwen2_5_VLForConditionalGeneration` and, if the configuration names one, a geometry module."""

    config_class = GeometricQwenConfig
    patching = QWEN2_5_PATCHING
    timestamps = False
    forward = accepts_geometry(Qwen2_5_VLForConditionalGeneration.forward)


class GeometricQwen3(Attachment, Qwen3VLForConditionalGeneration):
    """`Qwen3VLForConditionalGeneration` and, if the configuration names one, a geometry module."""

    config_class = GeometricQwen3Config
    patching = QWEN3_PATCHING
    timestamps = True
    forward = accepts_geometry(Qwen3VLForConditionalGeneration.forward)


CLASSES = {"qwen2_5_vl": GeometricQwen, "qwen3_vl": GeometricQwen3}

# transformers finds the key layout of published weights (`visual.…`, `model.layers.…`) by the name of the class;
# under another name the language model of a checkpoint would silently be left out. Qwen3-VL's needs no conversion.
register_checkpoint_conversion_mapping(
    GeometricQwen.__name__,
    get_checkpoint_conversion_mapping(Qwen2_5_VLForConditionalGeneration.__name__),
    overwrite=True,
)


def load_base(
    base: str,
    geometry: dict | None,
    *,
    revision: str | None = None,
    attention: str = "sdpa",
    dtype: torch.dtype = torch.float32,
) -> GeometricQwen | GeometricQwen3:
    """A published or fine-tuned Qwen2.5-VL or Qwen3-VL; a missing geometry module starts at random.

    The reference's published model brings its own geometry module, whatever `geometry` says of its size.

    Args:
        base: local folder or hub id.
        geometry: as `geometry_config` returns it.
        revision: commit, tag or branch of a hub id; None is the newest.
        attention: the language model's, sdpa, eager or flex_attention.
        dtype: of the weights.

    Raises:
        ParameterError: if nothing can be loaded from there.
        WeightsError: if an index of shards or a published file is damaged.
    """
    try:
        if is_published(base, revision):
            model = load_published(base, dtype, revision=revision, attention=attention)
            return _without_geometry(model) if geometry is None else model
        kind = _class_of(base, revision)
        config = kind.config_class.from_pretrained(base, revision=revision or "main")
        config.geometry_config = geometry
        model, missing = _load(kind, base, config=config, revision=revision or "main", dtype=dtype)
    except OSError as error:
        line = str(error).strip().splitlines()[0]
        raise ParameterError(f"base {base}: no Qwen-VL can be loaded from there ({line})") from error
    if lost := [name for name in missing if not name.startswith(GEOMETRY_PARTS)]:
        raise ParameterError(f"base {base}: lacks {len(lost)} weights of its base model, the first is {lost[0]}")
    model.attend_with(attention)
    return model


def _without_geometry(model: GeometricQwen) -> GeometricQwen:
    model.gsm, model.config.geometry_config = None, None
    return model


def load_checkpoint(folder: Path) -> GeometricQwen | GeometricQwen3:
    """The model saved in a checkpoint folder, in float32 and evaluation mode.

    Raises:
        ParameterError: if a weight is missing, a file damaged or the folder that of another model.
        OSError: if its configuration cannot be read.
    """
    model, missing = _load(_class_of(folder), folder, dtype=torch.float32)
    if missing:
        raise ParameterError(f"{folder}: lacks {len(missing)} weights, the first is {missing[0]}")
    return model.eval()


def check_weights(folder: Path) -> None:
    """Look at every safetensors file of a local model folder before any of it is loaded.

    Raises:
        ParameterError: if there is none, or one is missing or cut short; the line names it.
        WeightsError: if the index of shards cannot be read.
    """
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    names = [SAFE_WEIGHTS_NAME]
    if index.is_file():
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise ParameterError(f"{index} is no index of shards: fetch it again")
        # Only the names' last parts: an index may not point out of its folder.
        names = sorted({Path(str(shard)).name for shard in shards.values()})
    for path in (folder / name for name in names):
        if not path.is_file():
            raise ParameterError(f"{path} is missing: fetch the model's weights as safetensors")
        try:
            with safetensors.safe_open(path, framework="pt"):
                pass
        except (safetensors.SafetensorError, OSError) as error:
            raise ParameterError(f"{path} is damaged or cut short ({error}): fetch it again") from error


def _class_of(source: str | Path, revision: str | None = None) -> type[GeometricQwen] | type[GeometricQwen3]:
    kind = PreTrainedConfig.get_config_dict(source, revision=revision or "main")[0].get("model_type")
    if kind is None:
        raise ParameterError(f"base {source}: no Qwen-VL can be loaded from there (no config.json that names a model)")
    if kind not in CLASSES:
        raise ParameterError(f"base {source}: is a {kind}, not one of {', '.join(CLASSES)}")
    return CLASSES[kind]


def _load(kind: type, source: str | Path, **options) -> tuple[GeometricQwen | GeometricQwen3, list[str]]:
    """A model from safetensors only, and the names of weights that were not there."""
    if Path(source).is_dir():
        check_weights(Path(source))
    model, report = kind.from_pretrained(
        source, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True, **options
    )
    if report["mismatched_keys"]:
        name, found, wanted = sorted(report["mismatched_keys"])[0]
        raise ParameterError(
            f"{source}: {name} has shape {tuple(found)}, the configuration asks for {tuple(wanted)}: "
            "its weights and its config.json do not belong together"
        )
    return model, sorted(report["missing_keys"])
