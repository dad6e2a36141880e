"""Configurations of Qwen-VL models with geometry."""

from __future__ import annotations

import dataclasses

from transformers import Qwen2_5_VLConfig, Qwen3VLConfig

from models.gsm import CELL_CHANNELS
from models.parameters import GeometryModelParameters, ParameterError


class GeometricQwenConfig(Qwen2_5_VLConfig):
    """Qwen2.5-VL's configuration with `geometry_config`: `GeometryModelParameters` and the prior's `channels`.

    The model type stays qwen2_5_vl, so that transformers' plain class loads the folder too.
    """

    geometry_config: dict | None = None


class GeometricQwen3Config(Qwen3VLConfig):
    """The same for Qwen3-VL."""

    geometry_config: dict | None = None


def geometry_config(parameters: GeometryModelParameters, channels: int) -> dict | None:
    """The configuration's `geometry_config`; None where the parameters ask for no geometry.

    Raises:
        ParameterError: if geometric cells are announced and the files hold something else.
    """
    selects = parameters.variant in ("gsm", "fused")
    if parameters.variant == "none" or (selects and parameters.queries == 0):
        return None
    if parameters.prior == "cells" and channels != CELL_CHANNELS:
        raise ParameterError(
            f"prior_features have {channels} channels, geometric cells have {CELL_CHANNELS}: "
            "set geometry.prior to tokens if a reconstruction network made them"
        )
    return {**dataclasses.asdict(parameters), "channels": channels}
